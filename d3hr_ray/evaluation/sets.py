"""Distilled sets, ours and anyone's: found by their folders, known by the files beside their images, read when asked.

Nothing here needs torch or Ray: a wrong path is refused before they are imported.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from d3hr_ray.config import DataConfig, RunError, data_config, fingerprint
from d3hr_ray.datasets.decode import decode
from d3hr_ray.datasets.files import require_folder
from d3hr_ray.datasets.images import Images, Loadable, assemble, glance_rows
from d3hr_ray.datasets.listing import Listing, list_images
from d3hr_ray.datasets.reading import Reading
from d3hr_ray.datasets.source import IMAGE_SUFFIXES, READERS
from d3hr_ray.filesystems import absolute
from d3hr_ray.layout import DISTILLED, IMAGES, MANIFEST, METADATA, RUN, run_at
from d3hr_ray.runs import base_of
from d3hr_ray.sets import about_of, without_axes
from d3hr_ray.stages.images import WEIGHT
from d3hr_ray.store import MARKS, Store


@dataclass(frozen=True)
class DistilledSet:
    """A set to train on. `about` says what made it; `set_seed` distinguishes draws of the same kind.

    `set_hash` is empty until its images are read (comparison.hashed); `weighting` is a digest of what each image counts
    in a loss, empty where all count alike.
    """

    name: str
    images: Loadable
    set_hash: str
    set_seed: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    wnids: tuple[str, ...] | None = None
    weighting: str = ""

    @property
    def key(self) -> str:
        """What workers take its images by: their hash, and what each counts."""
        return "-".join(filter(None, (self.set_hash, self.weighting)))

    @property
    def source(self) -> DataConfig | None:
        """The real images that a set of ours was distilled from; None for a set that others made."""
        plain = self.about.get("data")
        return None if plain is None else data_config(plain)


def find_sets(paths: tuple[str, ...]) -> list[Store]:
    """Paths of sets, of run folders or of their distilled/ => a store per set. Raises ValueError if none."""
    return [store for path in paths for store in _sets_at(path)]


def _sets_at(path: str) -> list[Store]:
    require_folder("--distilled", path, "the folder of a set or of a run")
    store = Store(absolute(path))
    if store.name == IMAGES and _has_train(store.at("..")):
        return [store.at("..")]  # named by the folder that a set's train/ lies in
    if _has_train(store):
        return [store]
    is_run = store.exists(RUN)
    inner = store.at(DISTILLED) if is_run else store
    if names := [n for n in inner.folders() if _has_train(inner.at(n))]:
        return [inner.at(n) for n in names]
    if not is_run and class_folders(store):
        return [store]
    raise ValueError(f"--distilled {path}: no set in it (a folder with train/<class>/<image> or <class>/<image>)")


def images_of(store: Store) -> Store:
    """The folder that holds a set's class folders: its train/, or, where it has none, itself."""
    return store.at(IMAGES) if _has_train(store) else store


def _has_train(store: Store) -> bool:
    """Whether train/ holds folders: one that holds images is a class of that name."""
    return IMAGES in store.folders() and bool(store.at(IMAGES).folders())


def class_folders(store: Store) -> list[str]:
    """Folders with an image, at any depth, in sorted order."""
    return [name for name in store.folders() if not name.startswith(".") and _image_in(store.list(name, True))]


def image_side(store: Store) -> int:
    """The shorter side in pixels of a set's first image."""
    images = images_of(store)
    with Image.open(io.BytesIO(images.read_bytes(_first_image(images)))) as image:
        return int(min(image.size))


def _first_image(store: Store) -> str:
    """The first image's name within a set's class folders. Raises ValueError if there is none."""
    if name := next((f"{n}/{found}" for n in store.folders() if (found := _image_in(store.list(n, True)))), None):
        return name
    raise ValueError(f"--distilled {store.uri}: no image in its class folders")


def _image_in(names: list[str]) -> str | None:
    return next((name for name in names if name.lower().endswith(IMAGE_SUFFIXES)), None)


def run_of(store: Store) -> Store | None:
    """The run folder that a set lies in."""
    run = base_of(run_at(store))
    return run if run.exists(RUN) else None


def source_of(store: Store) -> DataConfig | None:
    """`DistilledSet.source` of a set that is not loaded."""
    return data_config(store.read_json(MANIFEST)["config"]["data"]) if store.exists(MANIFEST) else None


def load_set(store: Store, side: int) -> DistilledSet:
    """A set whose images are to be seen at `side` pixels; none is read yet.

    Raises ValueError for a set that is not finished, or a class without images.
    """
    if store.exists(MANIFEST):
        return _load_ours(store, side)
    run = run_at(store)
    if run.exists(RUN) or MARKS in run.folders():
        raise ValueError(f"--distilled {store.uri} is not finished; run jobs/distill.py on its run folder again")
    listing = list_foreign(store)
    wnids = listing.classes.wnids if all(listing.classes.wnids) else None
    images = Reading.of(listing, listing.classes.sources, side)
    return DistilledSet(store.name, images, "", about={"ipc": min(listing.counts())}, wnids=wnids)  # type: ignore[arg-type]


def list_foreign(store: Store) -> Listing:
    """The images of a set that others made: its class folders in sorted order."""
    classes = images_of(store)
    names = class_folders(classes)
    return list_images(DataConfig(classes.uri, "imagefolder", tuple(names)), len(names), names)


def _load_ours(store: Store, side: int) -> DistilledSet:
    manifest, rows = store.read_json(MANIFEST), _rows(store)
    config = manifest["config"]
    words = about_of(manifest)
    about = words | {
        "candidates": config["search"]["candidates"] if words["search"] else None,
        "components": str(config["search"].get("components", 1)) if words["search"] else None,
        "rank": config["search"].get("rank", 0) if words["search"] else None,
        "guidance": config["synthesis"]["guidance"],
        "inversion_guidance": config["inversion"]["guidance"],
        "score": float(np.mean([row["score"] for row in rows])) if words["timestep"] is not None else None,
        "data": config["data"],
        "fidelity": " but ".join([config["fidelity"], *config.get("mended", ())]),
        # Of all that made the set but its seed, timestep and IPC: two settings never share a mean.
        "settings": fingerprint(without_axes(config))[:8],
        "config": json.dumps(without_axes(config)),
    }
    images, weights = Made(store, side, _names(rows), len(rows)), _weights(store, rows)
    weighting = "" if weights is None else fingerprint(weights.tolist())[:8]
    return DistilledSet(words["name"], images, manifest["set_hash"], words["seed"], about, _wnids(rows), weighting)


@dataclass(frozen=True)
class Made:
    """The images of a set of ours, `count` in all. Loading raises RunError for a file that is not the one made."""

    store: Store
    side: int
    classes: tuple[str, ...]
    count: int

    def __len__(self) -> int:
        return self.count

    def load(self, glance: bool = False) -> Images:
        """Read and check the files, by label and index."""
        rows = _rows(self.store)
        labels = np.array([row["label"] for row in rows], np.int64)
        if glance:
            chosen = glance_rows(labels)
            rows, labels = [rows[i] for i in chosen], labels[chosen]
        with ThreadPoolExecutor(READERS if "://" in self.store.uri else 1) as pool:
            pixels = pool.map(lambda row: _read_made(self.store, row, self.side)[None], rows)
            return replace(assemble(self.side, labels, self.classes, pixels), weights=_weights(self.store, rows))


def has_weights(store: Store) -> bool:
    """Whether the images of a set say what each counts."""
    return store.exists(METADATA) and WEIGHT in store.column_names(METADATA)


def check_weights(stores: Sequence[Store]) -> None:
    """Raise ValueError, for --weights, if none of some sets has any."""
    if not any(map(has_weights, stores)):
        raise ValueError(
            f"--weights: no set has any ({', '.join(store.name for store in stores[:3])}); sets of jobs/distill.py "
            "--components K have, older ones once their command is run again (of a sweep: delete manifest.json first)"
        )


def _weights(store: Store, rows: list[dict[str, Any]]) -> np.ndarray | None:
    """What each of a set's images counts, (N,) float32; None where nothing is said.

    Raises RunError for a weight that is not above 0.
    """
    if WEIGHT not in rows[0]:
        return None
    for row in rows:
        if not 0 < (row[WEIGHT] or 0) < float("inf"):
            raise RunError(f"{store.uri}/{METADATA}: weight {row[WEIGHT]} of {row['file_name']} is no number above 0")
    return np.array([row[WEIGHT] for row in rows], np.float32)


def _rows(store: Store) -> list[dict[str, Any]]:
    table = store.read_table(METADATA).sort_by([("label", "ascending"), ("index", "ascending")])
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def _read_made(store: Store, row: dict[str, Any], side: int) -> np.ndarray:
    data = store.read_bytes(row["file_name"])
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise RunError(f"{store.uri}/{row['file_name']} is not the file that was made; distil the set again")
    return decode(data, side)


def _names(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """A name per label; those that ImageNet gives to two classes, such as crane, get their folder's name too."""
    named = {row["label"]: (row["class_name"], row["file_name"].split("/")[1]) for row in rows}
    names = [named[label] for label in sorted(named)]
    times = Counter(name for name, _ in names)
    return tuple(f"{name} ({folder})" if times[name] > 1 else name for name, folder in names)


def _wnids(rows: list[dict[str, Any]]) -> tuple[str, ...] | None:
    named = {row["label"]: row["file_name"].split("/")[1] for row in rows}
    folders = tuple(named[label] for label in sorted(named))
    return folders if all(f[0] == "n" and f[1:].isdecimal() and len(f) == 9 for f in folders) else None
