"""publish: a set's images => a dataset that loads by itself: metadata.parquet, a card, and last manifest.json."""

import hashlib
import io
from collections import defaultdict
from typing import Any

import pyarrow as pa
from PIL import Image

from d3hr_ray.layout import CARD, METADATA, manifest_file, set_folder
from d3hr_ray.runs import versions
from d3hr_ray.runtime.console import LOG
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.card import PREVIEW, Looks, Origin, card_text
from d3hr_ray.stages.images import WEIGHT
from d3hr_ray.stages.synthesize import written_images
from d3hr_ray.store import Store

LISTED = 20  # classes with repeated pictures that are named


def run_publish(
    store: Store,
    spec: SetSpec,
    classes: pa.Table,
    inputs: dict[str, Any],
    images: pa.Table | None,
    origin: Origin,
    weights: pa.Array | None = None,
) -> str:
    """Write a set's metadata, card and manifest, and return the set's hash. `images` if not by synthesis.

    `weights` (stages/weights.py), where its images do not count alike, are a column more, beside the hash.
    """
    table = written_images(store, spec, len(classes)) if images is None else images
    if text := repeats_text(table):
        LOG.warning(f"{spec.name}: {text}")
    folder = set_folder(spec)
    lines = sorted(f"{r['sha256']}  {r['file_name']}" for r in table.select(["sha256", "file_name"]).to_pylist())
    set_hash = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    table = table if weights is None else table.append_column(WEIGHT, weights)
    store.write_table(f"{folder}/{METADATA}", table)
    files = {line[66:]: line[:64] for line in lines}
    manifest = spec.recipe(inputs) | {"set": spec.about, "set_hash": set_hash}
    if said := _origin(store, spec, origin):
        manifest["origin"] = said
    store.write_bytes(f"{folder}/{CARD}", card_text(manifest, looks_of(store.at(folder), table)).encode())
    store.write_json(manifest_file(spec), manifest | {"versions": versions(), "files": files})
    return set_hash


def repeats_text(images: pa.Table) -> str:
    """IMAGE_SCHEMA rows => the classes whose files show a picture more than once, with their counts; empty if none do.

    A class with fewer images than --components is one such: its clusters give equal latents.
    """
    files: dict[str, list[str]] = defaultdict(list)
    for row in images.select(["class_name", "sha256"]).to_pylist():
        files[row["class_name"]].append(row["sha256"])
    named = [
        f"class {name!r} has {len(hashes)} files of {len(set(hashes))} pictures"
        for name, hashes in files.items()
        if len(set(hashes)) < len(hashes)
    ]
    more = [f"and {len(named) - LISTED} more classes"] * (len(named) > LISTED)
    fix = "; give fewer --ipc, or more images of them"
    return ", ".join([*named[:LISTED], *more]) + fix if named else ""


def looks_of(own: Store, images: pa.Table) -> Looks:
    """What the card of a set says of its images, IMAGE_SCHEMA rows in its folder: the size is that of the first."""
    with Image.open(io.BytesIO(own.read_bytes(images["file_name"][0].as_py()))) as image:
        side = int(image.width)
    return Looks(len(images), len(images["label"].unique()), side, own.exists(PREVIEW))


def _origin(store: Store, spec: SetSpec, given: Origin) -> dict[str, str]:
    """What is said now of the images' origin, over what was said when the set was published before."""
    file = manifest_file(spec)
    before = store.read_json(file).get("origin", {}) if store.exists(file) else {}
    return before | given.plain
