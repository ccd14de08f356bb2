"""Which images of a grown set an earlier run has inverted: those that --extend does not invert again.

An image is the same if its id, its class (by wnid or name, and the model's id of it) and its bytes are. Bytes are taken
as the same where the version of their file is (contents.py); those of files written since, or elsewhere, are read and
compared with the keys that the run kept. All others are inverted. What makes latents depends on the bytes and the
model's class alone, never on a label, so classes may be renumbered.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from d3hr_ray.config import RunConfig, data_config
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.source import thread_map
from d3hr_ray.filesystems import is_same_place
from d3hr_ray.layout import CLASSES, KEYS, VERSIONS, finished, keys_file, latents_file, shard_file
from d3hr_ray.runs import read_run
from d3hr_ray.runtime.console import LOG
from d3hr_ray.runtime.tasks import ray_map
from d3hr_ray.stages.contents import files_of
from d3hr_ray.stages.read import content_of, read_keys, shard_unit
from d3hr_ray.stages.shards import places
from d3hr_ray.store import Store

GONE = -1  # the label of a class that the grown set does not have, or whose class of the model is another now


@dataclass(frozen=True)
class Growth:
    """What a run takes over of another: `images` (image_id, source: the other's shard), and `counts` of all images."""

    images: pa.Table
    counts: dict[str, int]


def find_growth(run: Store, config: RunConfig, listing: Listing, planning: bool = False) -> Growth:
    """Compare the grown set with the images that a run has inverted; a plan reads no image, and takes those that would
    be compared as the same. Raises ValueError if they share none.
    """
    old, entries = inverted_images(run), listing.entries
    place = places(entries["image_id"], old["image_id"])
    there = place >= 0
    labels = new_labels(run.read_table(CLASSES), listing.classes.table())
    same = there & (labels[old["label"].to_numpy()[place]] == entries["label"].to_numpy())
    unsure = same & ~_same_files(run, config, listing)
    if unsure.any():
        what = "a run compares their bytes" if planning else "comparing their bytes"
        LOG.warning(f"{unsure.sum():,} images lie in files that are new to {run.uri}, or were written since; {what}")
        if not planning:
            same &= ~unsure | _same_bytes(run, listing, unsure, old, place)
    if not same.any():
        raise ValueError(_nothing_shared(run, config, old, listing, there.sum()))
    kept = np.sort(place[same])
    counts = {
        "reused": len(kept),
        "inverted": len(entries) - len(kept),
        "changed": int(there.sum()) - len(kept),
        "removed": len(old) - int(there.sum()),
    }
    return Growth(old.select(["image_id", "source"]).take(pa.array(kept)), counts)


def _nothing_shared(run: Store, config: RunConfig, old: pa.Table, listing: Listing, named_alike: int) -> str:
    first, now = old["image_id"][0], listing.entries["image_id"][0]
    what = (
        f"{named_alike:,} are called as images of that run are, but their classes or bytes are others"
        if named_alike
        else f"none of that run's {len(old):,} (first: {first}) is among these {len(listing):,} (first: {now})"
    )
    return (
        f"--data {config.data.uri} shares no image with --extend {run.uri}: {what}. --data must be the whole set as it "
        "is now, the old images and the new ones; leave --extend out for a run of its own"
    )


def inverted_images(run: Store) -> pa.Table:
    """The images in a run's latents/, in its order: image_id, label, source (their shard)."""
    shards = [shard for shard, counts in sorted(finished(run).items()) if counts["accepted"]]
    tables = thread_map(lambda shard: run.read_table(latents_file(shard), ["image_id", "label"]), shards)
    rows = [
        table.append_column("source", pa.array(np.full(len(table), shard), pa.int32()))
        for shard, table in zip(shards, tables, strict=True)
    ]
    return pa.concat_tables(rows).combine_chunks()


def new_labels(old: pa.Table, new: pa.Table) -> np.ndarray:
    """Two classes.parquet => the second's label of each label of the first, or GONE."""
    known = {_identity(row): row["label"] for row in new.to_pylist()}
    return np.array([known.get(_identity(row), GONE) for row in old.sort_by("label").to_pylist()], np.int32)


def _identity(row: dict[str, Any]) -> tuple[str, int]:
    return row["wnid"] or row["name"], row["model_class"]


def _same_files(run: Store, config: RunConfig, listing: Listing) -> np.ndarray:
    """Whether each image's file has the version that the run knows. In another place versions say nothing: archives
    that are unpacked there may give other files of the same name the same size and time.
    """
    versions = listing.entries["version"].to_numpy()
    moved = not is_same_place(data_config(read_run(run)["config"]["data"]).uri, config.data.uri)
    if moved or not run.exists(VERSIONS):
        return np.zeros(len(versions), bool)
    was = run.read_table(VERSIONS).combine_chunks()
    place = places(files_of(listing.entries), was["file"])
    same: np.ndarray = (place >= 0) & (was["version"].to_numpy()[place] == versions)
    return same


def _same_bytes(run: Store, listing: Listing, chosen: np.ndarray, old: pa.Table, place: np.ndarray) -> np.ndarray:
    """Whether each of the chosen images has the bytes that the run has inverted; False for all others.

    Runs of older versions kept one digest per shard: a shard of theirs is the same as a whole, or not at all.
    """
    source, done, kept = old["source"].to_numpy(), finished(run), set(run.list(KEYS))
    rows_of = {int(s): np.flatnonzero(chosen & (source[place] == s)) for s in np.unique(source[place[chosen]])}
    units = [
        (listing.source, shard_unit(s, listing.entries.take(pa.array(rows)))["entries"]) for s, rows in rows_of.items()
    ]
    same = np.zeros(len(chosen), bool)
    for (shard, rows), now in zip(rows_of.items(), ray_map(read_keys, units), strict=True):
        if shard_file(shard) in kept:
            was = run.read_table(keys_file(shard)).combine_chunks()
            before = was["key"].to_numpy()[places(now["image_id"], was["image_id"])]
            same[rows] = before == now["key"].to_numpy()
        else:
            same[rows] = content_of(now) == done[shard].get("content")
    return same
