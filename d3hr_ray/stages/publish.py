"""publish: a set's images => a dataset that loads by itself: metadata.parquet, a card, and last manifest.json."""

import hashlib
from collections import defaultdict
from typing import Any

import pyarrow as pa

from d3hr_ray.layout import CARD, METADATA, manifest_file, set_folder
from d3hr_ray.runs import versions
from d3hr_ray.runtime.console import LOG
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.synthesize import written_images
from d3hr_ray.store import Store

LISTED = 20  # classes with repeated pictures that are named
TEXT = """---
pretty_name: {name}
task_categories:
- image-classification
tags:
- dataset-distillation
- {method}
---
# {name}

{images} images, {ipc} per class of {classes} classes, distilled by d3hr_ray (method `{method}`).

| | |
|---|---|
| source data | `{data}` |
| generator | `{model}` |
| fitted at timestep | {timestep} |
| inversion / sampling guidance | {inversion} / {guidance} |
| search | {search} |
| seed | {seed} |
| set hash | `{set_hash}` |

Load it with `torchvision.datasets.ImageFolder("train")` or `datasets.load_dataset("imagefolder", data_dir=".")`.
Both number the classes by sorted folder name. `metadata.parquet` holds the run's own labels, which differ from that
if wnids were given in another order. `manifest.json` is the whole recipe, with a hash of every image.
"""


def run_publish(
    store: Store,
    spec: SetSpec,
    classes: pa.Table,
    inputs: dict[str, Any],
    images: pa.Table | None,
) -> str:
    """Write a set's metadata, card and manifest, and return the set's hash. `images` if not by synthesis."""
    table = written_images(store, spec, len(classes)) if images is None else images
    if text := repeats_text(table):
        LOG.warning(f"{spec.name}: {text}")
    folder = set_folder(spec)
    lines = sorted(f"{r['sha256']}  {r['file_name']}" for r in table.select(["sha256", "file_name"]).to_pylist())
    set_hash = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    store.write_table(f"{folder}/{METADATA}", table)
    store.write_bytes(f"{folder}/{CARD}", _card(spec, len(classes), len(table), set_hash).encode())
    files = {line[66:]: line[:64] for line in lines}
    manifest = spec.recipe(inputs) | {"set": spec.about, "set_hash": set_hash}
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


def _card(spec: SetSpec, classes: int, images: int, set_hash: str) -> str:
    config = spec.config
    return TEXT.format(
        name=spec.name,
        method=config.method,
        images=images,
        ipc=spec.ipc,
        classes=classes,
        data=config.data.uri,
        model=config.model.name,
        timestep="none" if spec.timestep is None else spec.timestep,
        inversion=config.inversion.guidance,
        guidance=config.synthesis.guidance,
        search=spec.search or "none",
        seed=spec.seed,
        set_hash=set_hash,
    )
