"""Mean features of each class over its real images, kept in a run's features/: what the two kinds of them share.

A shard is read by a CPU task; an actor sums its images' features and writes a part. Then tasks add the parts in their
order, so that no number of actors changes a byte.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from d3hr_ray.config import RunError
from d3hr_ray.datasets.listing import Listing, first_of_each
from d3hr_ray.datasets.look import Look
from d3hr_ray.runtime.actors import Actors, run_units, unit_result
from d3hr_ray.runtime.telemetry import describe
from d3hr_ray.stages.read import ReadShard, open_message, shard_unit
from d3hr_ray.store import Store

SUMS = pa.schema([("label", pa.int32()), ("count", pa.int64()), ("sum", pa.list_(pa.float32()))])
GROUP = 8  # classes whose means are read together: at 256 pixels and width 64 one is 256 KB
_MEANS = pa.schema([("label", pa.int32()), ("count", pa.int64()), ("mean", pa.list_(pa.float32()))])


class SumShard(ABC):
    """Actor: sums the features of one shard per call."""

    store: Store

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row of ReadShard => `unit_result`, after the shard's sums are written."""
        shard, error, count, lost = batch["shard"][0].as_py(), batch["error"][0].as_py(), 0, 0
        if error is None:
            pixels, accepted, rejected = open_message(batch)
            describe(run=self.store.uri, shard=shard)
            count, lost = len(accepted) + len(rejected), len(rejected)
            try:
                self.write(shard, pixels, accepted)
            except (ValueError, OSError) as problem:
                error = str(problem)
        return unit_result(count, f"shard {shard}: {error}" if error else None, lost)

    @abstractmethod
    def write(self, shard: int, pixels: np.ndarray, accepted: pa.Table) -> None:
        """Sum and write one shard: pixels (N, S, S, 3) uint8, and what ReadShard says of them."""


def first_entries(listing: Listing, images: int) -> pa.Table:
    """A listing's first `images` entries of each label, or all for 0, as ReadShard takes them."""
    entries = listing.entries.append_column("probe", pa.array(np.zeros(len(listing), bool)))
    return entries.filter(pa.array(first_of_each(entries["label"].to_pylist(), images))) if images else entries


def sum_shards(
    actor: type[SumShard],
    job: object,
    shards: list[pa.Table],
    done: Collection[int],
    listing: Listing,
    size: int,
    look: Look,
    actors: Actors,
) -> None:
    """Sum every shard of a listing's entries that is not done, of images of `size` pixels, on actors made of a job."""
    units = [shard_unit(i, rows) for i, rows in enumerate(shards) if i not in done]
    if not units:
        return
    steps: list[tuple[Any, dict[str, Any]]] = [
        (ReadShard(listing.source, size, look), {"num_cpus": 1}),
        (actor, {"fn_constructor_args": (job,), **actors.options(len(units))}),
    ]
    before = sum(len(rows) for i, rows in enumerate(shards) if i in done)
    for _ in run_units(units, steps, "features", "image", sum(map(len, shards)), before):
        pass


def add_sums(tables: Iterable[pa.Table], classes: Sequence[str], images: int, flag: str) -> pa.Table:
    """SUMS of shards => label, count, mean, by label.

    Raises RunError for a class without an image, naming the flag that asked for `images` of each (0: for all).
    """
    counts, sums = np.zeros(len(classes), np.int64), None
    for table in tables:
        if not len(table):
            continue
        rows = np.stack(table["sum"].to_numpy()).astype(np.float64)
        sums = np.zeros((len(classes), rows.shape[1])) if sums is None else sums
        labels = table["label"].to_numpy()
        np.add.at(sums, labels, rows)
        np.add.at(counts, labels, table["count"].to_numpy())
    if sums is None or not counts.all():
        raise RunError(
            f"features: class {classes[int(np.argmin(counts))]!r} has no usable image"
            + (f" among its first {images}; raise {flag}" if images else "; mend those in rejected/")
        )
    columns = [list(range(len(classes))), counts.tolist(), list((sums / counts[:, None]).astype(np.float32))]
    return pa.table(columns, schema=_MEANS)


def clear_if_whole(store: Store, missing: Collection[int], parts: str) -> bool:
    """Delete the parts if no mean is missing, whose maker may have been killed before; and say whether none is."""
    if not missing:
        store.delete(parts)
    return not missing


def sums_of(features: torch.Tensor, labels: np.ndarray) -> list[dict[str, object]]:
    """Features (N, F) of images and their labels => rows of SUMS, by label, added in float64."""
    present, places = np.unique(labels, return_inverse=True)
    added = torch.zeros(len(present), features.shape[1], dtype=torch.float64)
    added = added.index_add(0, torch.from_numpy(places), features.double()).float()
    counts = np.bincount(places)
    return [
        {"label": int(label), "count": int(count), "sum": row.numpy()}
        for label, count, row in zip(present, counts, added, strict=True)
    ]


def read_class_means(store: Store, file: str, labels: range) -> torch.Tensor:
    """Mean features (len(labels), F) of real images, in the order of their labels."""
    table = store.read_rows(file, _MEANS.names, "label", labels).sort_by("label")
    return torch.from_numpy(np.stack(table["mean"].to_numpy()))
