"""publish: a variant's images => a dataset that loads by itself: metadata.parquet, a card, and last manifest.json."""

import hashlib
from collections import defaultdict
from typing import Any

import pyarrow as pa

from d3hr_ray.config import RunConfig, as_dict
from d3hr_ray.runs import versions
from d3hr_ray.runtime.telemetry import LOG
from d3hr_ray.sets import Variant
from d3hr_ray.stages.synthesize import written_images
from d3hr_ray.store import Store

LISTED = 20  # classes with repeated pictures that are named
CARD = """---
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


def recipe(config: RunConfig, variant: Variant, inputs: dict[str, Any]) -> dict[str, Any]:
    """All that decides a variant's bytes; other variants of the same run leave it alone."""
    plain = as_dict(config)
    plain["data"].pop("max_rejected")
    plain["inversion"]["timesteps"] = [variant.timestep] if variant.timestep is not None else []
    plain["search"]["ipc"] = [variant.ipc]
    if not config.has_pool:
        plain["cao2"] = None
    if not config.search.is_mixture:
        plain["inversion"]["cluster_timestep"] = None
    if not config.mended:
        plain.pop("mended")
    return {"variant": variant.name, "config": plain, "inputs": inputs}


def pool_recipe(config: RunConfig, pool: Variant, inputs: dict[str, Any], classifier: str | None) -> dict[str, Any]:
    """All that decides what a pool holds: not what is done with it afterwards."""
    plain = recipe(config, pool, inputs)
    plain["config"] |= {"cao2": {key: plain["config"]["cao2"][key] for key in ("pool", "sampler")}, "method": "pool"}
    return plain | ({"classifier": classifier} if classifier else {})


def run_publish(
    store: Store,
    config: RunConfig,
    variant: Variant,
    classes: pa.Table,
    inputs: dict[str, Any],
    images: pa.Table | None,
) -> str:
    """Write a variant's metadata, card and manifest, and return the set's hash. `images` if not by synthesis."""
    table = written_images(store, variant, len(classes)) if images is None else images
    if text := repeats_text(table):
        LOG.warning(f"{variant.name}: {text}")
    folder = f"distilled/{variant.name}"
    lines = sorted(f"{r['sha256']}  {r['file_name']}" for r in table.select(["sha256", "file_name"]).to_pylist())
    set_hash = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    store.write_table(f"{folder}/metadata.parquet", table)
    store.write_bytes(f"{folder}/README.md", _card(config, variant, len(classes), len(table), set_hash).encode())
    files = {line[66:]: line[:64] for line in lines}
    manifest = recipe(config, variant, inputs) | {"set": variant.about, "set_hash": set_hash}
    store.write_json(f"{folder}/manifest.json", manifest | {"versions": versions(), "files": files})
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


def _card(config: RunConfig, variant: Variant, classes: int, images: int, set_hash: str) -> str:
    return CARD.format(
        name=variant.name,
        method=variant.method,
        images=images,
        ipc=variant.ipc,
        classes=classes,
        data=config.data.uri,
        model=config.model.name,
        timestep="none" if variant.timestep is None else variant.timestep,
        inversion=config.inversion.guidance,
        guidance=config.synthesis.guidance,
        search=variant.search or "none",
        seed=variant.seed,
        set_hash=set_hash,
    )
