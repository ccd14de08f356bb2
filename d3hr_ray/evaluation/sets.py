"""Read what is evaluated: distilled sets, ours or anyone's image folder, and real test images in the same class order.

Classes are matched by name, never by position: most reports of chance accuracy are a wrong class order, as in
LINs-lab/RDED's issues 3, 4 and 6.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from d3hr_ray.config import DataConfig, RunError, fingerprint
from d3hr_ray.datasets.decode import decode
from d3hr_ray.datasets.images import Images, Loadable, assemble, glance_rows
from d3hr_ray.datasets.listing import ClassMismatch, Listing, list_images
from d3hr_ray.datasets.look import SHOWN, STORED, Look
from d3hr_ray.datasets.reading import Reading
from d3hr_ray.datasets.source import thread_map
from d3hr_ray.evaluation.folders import class_folders, first_image, images_of
from d3hr_ray.sets import about_of, without_axes
from d3hr_ray.store import Store

READERS = 16  # threads, where storage is remote and each file waits for an answer


@dataclass(frozen=True)
class DistilledSet:
    """A set to train on. `about` says what made it; `set_seed` tells apart draws of the same kind.

    `set_hash` is empty while only its images could tell it (comparison.hashed).
    """

    name: str
    images: Loadable
    set_hash: str
    set_seed: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    wnids: tuple[str, ...] | None = None


def load_set(store: Store, side: int) -> DistilledSet:
    """A set whose images are to be seen at `side` pixels; none is read yet.

    Raises ValueError for a set that is not finished, or a class without images.
    """
    if store.exists("manifest.json"):
        return _load_ours(store, side)
    run = store.at("../..")
    if run.exists("run.json") or ".done" in run.folders():
        raise ValueError(f"--distilled {store.uri} is not finished; run jobs/distill.py on its run folder again")
    listing = list_foreign(store)
    wnids = listing.classes.wnids if all(listing.classes.wnids) else None
    images = Reading.of(listing, listing.classes.sources, side)
    return DistilledSet(store.name, images, "", about={"ipc": min(listing.counts())}, wnids=wnids)  # type: ignore[arg-type]


def image_side(store: Store) -> int:
    """The shorter side in pixels of a set's first image."""
    images = images_of(store)
    with Image.open(io.BytesIO(images.read_bytes(first_image(images)))) as image:
        return int(min(image.size))


def list_foreign(store: Store) -> Listing:
    """The images of a set that others made: its class folders in sorted order."""
    classes = images_of(store)
    names = class_folders(classes)
    return list_images(DataConfig(classes.uri, "imagefolder", tuple(names)), len(names), names)


def _load_ours(store: Store, side: int) -> DistilledSet:
    manifest, rows = store.read_json("manifest.json"), _rows(store)
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
    images = Made(store, side, _names(rows), len(rows))
    return DistilledSet(words["name"], images, manifest["set_hash"], words["seed"], about, _wnids(rows))


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
            return assemble(self.side, labels, self.classes, pixels)


def _rows(store: Store) -> list[dict[str, Any]]:
    table = store.read_table("metadata.parquet").sort_by([("label", "ascending"), ("index", "ascending")])
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
    twice = {name for name, _ in names if sum(name == other for other, _ in names) > 1}
    return tuple(f"{name} ({folder})" if name in twice else name for name, folder in names)


def few(names: Sequence[str]) -> str:
    """Names of classes in a line: all, or of many the first three and the last."""
    if len(names) <= 6:
        return ", ".join(names)
    return f"{', '.join(names[:3])}, ..., {names[-1]} ({len(names)} classes)"


def _wnids(rows: list[dict[str, Any]]) -> tuple[str, ...] | None:
    named = {row["label"]: row["file_name"].split("/")[1] for row in rows}
    folders = tuple(named[label] for label in sorted(named))
    return folders if all(f[0] == "n" and f[1:].isdecimal() and len(f) == 9 for f in folders) else None


def list_real(
    data: DataConfig, classes: tuple[str, ...], wnids: tuple[str, ...] | None, flag: str = "--data"
) -> Listing:
    """Real images of a set's classes, labelled in the set's order; `flag` named their source.

    Raises ValueError for classes that differ, with both lists, or for one without images.
    """
    wanted = wnids or classes
    spread = replace(data, classes=tuple(wanted))
    each = _spread if "://" in data.uri else thread_map
    count, names = (1000, None) if wnids else (len(classes), list(classes))
    try:
        listing = list_images(spread, count, names, each)
    except ClassMismatch as error:
        why = str(error).replace("--classes ", "class ")
        both = f"the set has {few(classes)}, the data {few(error.found)}"
        raise ValueError(f"{flag} {data.uri}: {both} ({why})") from error
    except ValueError as error:
        raise ValueError(str(error).replace("--data ", f"{flag} ", 1)) from error
    empty = [name for name, count in zip(wanted, listing.counts(), strict=True) if count == 0]
    if empty:
        raise ValueError(f"{flag} {data.uri}: no image of class {empty[0]!r}, which the set has")
    return listing


def _spread(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
    """Ray's mapper, which takes seconds to import: sets are read without it."""
    from d3hr_ray.runtime.tasks import ray_map

    return ray_map(function, items)


def look_beside(sets: Sequence[DistilledSet]) -> Look:
    """How the real images beside these sets are read: as the authors' code does where all of them are its."""
    fidelities = [str(found.about.get("fidelity", "")) for found in sets]
    return STORED if fidelities and all(told.startswith("official") for told in fidelities) else SHOWN
