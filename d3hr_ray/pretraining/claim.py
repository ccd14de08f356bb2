"""Whose folder --out is: the images that a model is trained on, listed and held against what lies there already.

Nothing here needs torch: wrong data is told within seconds.
"""

from dataclasses import replace
from typing import Any

import pyarrow.compute as pc

from d3hr_ray.config import DataConfig, as_dict, data_config, differences
from d3hr_ray.datasets.listing import Listing, list_images, open_source
from d3hr_ray.datasets.source import thread_map
from d3hr_ray.filesystems import is_same_place
from d3hr_ray.lock import NAME as LOCK
from d3hr_ray.models.card import locate
from d3hr_ray.pretraining.settings import OWN, SCRATCH, PretrainConfig
from d3hr_ray.pretraining.stream import ImageStream
from d3hr_ray.runtime.console import LOG
from d3hr_ray.runtime.progress import progress
from d3hr_ray.stages import contents
from d3hr_ray.store import TEMP, Store

OURS = "training.json"  # of a finished model
CLAIM = f"{SCRATCH}/settings.json"
VERSIONS = f"{SCRATCH}/versions.parquet"


def prepare(config: PretrainConfig, out: str, workers: int = 0) -> Listing | None:
    """List the images and claim the folder `out` for these settings; None if it holds the trained model already.

    Raises ValueError for data or settings that do not fit each other, the workers, or what `out` holds.
    """
    store = Store(out)
    if store.exists(OURS):
        done = store.read_json(OURS)
        _refuse_others(store, done["settings"], as_dict(config))
        if digest := done.get("images_digest"):  # older versions kept none
            _refuse_other_images(store, config.data, digest)
        return None
    listing = list_classes(config.data)
    _check_shares(config, listing, max(1, workers))
    claim = as_dict(config) | {"images": listing.digest}
    changed = contents.describe(contents.changed_files(store, listing, VERSIONS))
    if store.exists(CLAIM):
        _refuse_others(store, store.read_json(CLAIM), claim, changed)
    elif set(store.list()) - {LOCK}:
        raise ValueError(f"--out {out} holds files of something else; give another --out")
    store.write_json(CLAIM, claim)
    contents.remember(store, listing, VERSIONS)
    # Not refused: they may be copies of the same images, which half-trained weights cannot tell.
    note = f"--data {config.data.uri}: {changed}; training goes on with the files as they are now"
    return replace(listing, notes=(*listing.notes, note)) if changed else listing


def _refuse_other_images(store: Store, data: DataConfig, digest: str) -> None:
    """Raise ValueError if other images lie where a finished model's did. They may be gone: it is whole all the same."""
    try:
        listing = list_classes(data)
    except ValueError as error:
        LOG.warning(f"the images that {store.uri} was trained on are not there now ({error})")
        return
    if listing.digest != digest:
        raise ValueError(
            f"--out {store.uri} was trained on other images than lie at --data {data.uri} now; give another --out, or "
            "--overwrite to train anew"
        )


def trained_on(model: str) -> DataConfig:
    """The data that a model of ours was trained on. Raises ValueError if it is none."""
    store = Store(locate(model))
    if not store.exists(OURS):
        raise ValueError(f"--check {model}: no training.json in it; only models of pretrain.py can be checked")
    return data_config(store.read_json(OURS)["settings"]["data"])


def start_anew(out: str, init: str | None = None) -> None:
    """Delete what a training run writes into `out`, and nothing else.

    Raises ValueError for a model that no run of ours made, and for the one that this run is to begin with.
    """
    store = Store(out)
    if init is not None and is_same_place(out, locate(init)):
        raise ValueError(f"--overwrite would delete --init {init}, which is --out; give another --out")
    files, folders = set(store.list()) - {LOCK}, set(store.folders()) - {TEMP}
    if (files or folders) and not (OURS in files or SCRATCH in folders):
        raise ValueError(f"--overwrite: {out} holds no model of pretrain.py; empty it yourself, or give another --out")
    for name in OWN:
        store.delete(name)


def list_classes(data: DataConfig) -> Listing:
    """List a source with its own classes as labels, which become the model's classes in the same order."""
    once = _Once()
    found = pc.unique(open_source(data).scan(once).images["class_name"]).to_pylist()
    return list_images(data, len(found), found, once)


class _Once:
    """A mapper that scans on the first call and repeats what it found on the next: a big set is listed once."""

    def __init__(self) -> None:
        self._found: list[Any] | None = None

    def __call__(self, function: Any, items: Any) -> list[Any]:
        if self._found is None:
            found = []
            with progress(len(items), "listing", "part") as bar:
                for part in thread_map(function, items):
                    found.append(part)
                    bar.update()
            self._found = found
        return self._found


def _refuse_others(store: Store, old: dict[str, Any], new: dict[str, Any], images: str = "") -> None:
    """Raise ValueError with what differs; a path that is only written in another way does not."""
    if is_same_place(old["data"]["uri"], new["data"]["uri"]):
        new = {**new, "data": {**new["data"], "uri": old["data"]["uri"]}}
    changes = differences(old, new)
    if images and old.get("images") != new.get("images"):
        changes.append(images)
    if changes:
        raise ValueError(
            f"--out {store.uri} has other settings ({'; '.join(changes)}); give the flags of before, another --out, or "
            "--overwrite"
        )


def _check_shares(config: PretrainConfig, listing: Listing, workers: int) -> None:
    """Raise ValueError if the workers cannot share the batches or the images equally."""
    for size in (config.vae.batch_size, config.dit.batch_size):
        if size % workers:
            raise ValueError(f"--batch-size {size} cannot be shared by --workers {workers}; give a multiple of it")
    ImageStream(listing, config.image_size, config.seed, workers - 1, workers)
