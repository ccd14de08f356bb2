"""features: real images => features/<kind>/, each class's mean features under random networks, for refinement.

A shard is read by a CPU task; an actor, without the diffusion model, sums its images' features under every network and
writes a part. Then a task per network adds the parts in their order, so that no number of actors changes a byte. What
refines reads these means and no image.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from d3hr_ray.config import RefineConfig, RunError
from d3hr_ray.datasets.listing import Listing, first_of_each
from d3hr_ray.datasets.look import Look
from d3hr_ray.layout import FEATURES, shard_file
from d3hr_ray.models.autoencoder import to_images
from d3hr_ray.models.memory import keep_freed_memory
from d3hr_ray.models.random_features import random_features
from d3hr_ray.numerics.feature_matching import Features
from d3hr_ray.runtime.actors import Actors, run_units, unit_result
from d3hr_ray.runtime.tasks import bounded
from d3hr_ray.runtime.telemetry import describe
from d3hr_ray.stages.read import ReadShard, open_message, shard_unit
from d3hr_ray.store import Store

BATCH = 64  # images per forward: fixed, for equal bytes
_SUMS = pa.schema(
    [("network", pa.int32()), ("label", pa.int32()), ("count", pa.int64()), ("sum", pa.list_(pa.float32()))]
)
_MEANS = pa.schema([("label", pa.int32()), ("count", pa.int64()), ("mean", pa.list_(pa.float32()))])


@dataclass(frozen=True)
class FeatureKind:
    """Which features of a run's images: under how many networks, of what width, of how many images per class."""

    networks: int
    width: int
    images: int

    @property
    def folder(self) -> str:
        """Its folder within the run's."""
        return f"{FEATURES}/n{self.networks}-w{self.width}-i{self.images or 'all'}"

    @property
    def parts(self) -> str:
        """Folder of the sums of shards, until they are added."""
        return f"{self.folder}/parts"

    def means(self, network: int) -> str:
        """File of a network's means."""
        return f"{self.folder}/network-{network:06d}.parquet"

    def missing(self, store: Store) -> list[int]:
        """The networks whose means are not there."""
        there = {f"{self.folder}/{name}" for name in store.list(self.folder)}
        return [k for k in range(self.networks) if self.means(k) not in there]


def feature_kind(refine: RefineConfig) -> FeatureKind:
    """The features that a config's refinement needs."""
    return FeatureKind(refine.networks, refine.width, refine.images)


@dataclass(frozen=True)
class FeatureJob:
    """What an actor must know to sum features."""

    store: Store
    kind: FeatureKind
    class_names: tuple[str, ...]
    device: str


def run_features(
    store: Store, kind: FeatureKind, listing: Listing, size: int, look: Look, shard_size: int, actors: Actors
) -> None:
    """Make the means that are not there yet, of images of `size` pixels. Raises RunError for a class without any."""
    left = kind.missing(store)
    if not left:
        return
    entries = _first(listing.entries, kind.images)
    shards = replace(listing, entries=entries).shards(shard_size)
    done = set(store.list(kind.parts))
    units = [shard_unit(i, rows) for i, rows in enumerate(shards) if shard_file(i) not in done]
    if units:
        names = tuple(listing.classes.names)
        job = FeatureJob(store, kind, names, actors.device)
        steps: list[tuple[Any, dict[str, Any]]] = [
            (ReadShard(listing.source, size, look), {"num_cpus": 1}),
            (FeatureShard, {"fn_constructor_args": (job,), **actors.options(len(units))}),
        ]
        before = sum(len(rows) for i, rows in enumerate(shards) if shard_file(i) in done)
        for _ in run_units(units, steps, "features", "image", len(entries), before):
            pass
    parts, classes = [shard_file(i) for i in range(len(shards))], len(listing.classes)
    for _ in bounded(write_means, [(k, (store, kind, parts, k, classes)) for k in left], "add features"):
        pass
    store.delete(kind.parts)


def _first(entries: pa.Table, images: int) -> pa.Table:
    """The first `images` of each label, or all for 0, as ReadShard takes them."""
    entries = entries.append_column("probe", pa.array(np.zeros(len(entries), bool)))
    return entries.filter(pa.array(first_of_each(entries["label"].to_pylist(), images))) if images else entries


class FeatureShard:
    """Actor: sums the features of one shard per call, under one network after the other."""

    def __init__(self, job: FeatureJob) -> None:
        self.job = job
        if job.device == "cpu":
            keep_freed_memory()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row of ReadShard => `unit_result`, after the shard's sums are written."""
        shard, error, count, lost = batch["shard"][0].as_py(), batch["error"][0].as_py(), 0, 0
        if error is None:
            pixels, accepted, rejected = open_message(batch)
            describe(run=self.job.store.uri, shard=shard)
            count, lost = len(accepted) + len(rejected), len(rejected)
            try:
                self.write(shard, pixels, accepted["label"].to_numpy())
            except (ValueError, OSError) as problem:
                error = str(problem)
        return unit_result(count, f"shard {shard}: {error}" if error else None, lost)

    def write(self, shard: int, pixels: np.ndarray, labels: np.ndarray) -> None:
        """Sum and write one shard."""
        kind, device, rows = self.job.kind, self.job.device, list[dict[str, object]]()
        present, places = np.unique(labels, return_inverse=True)
        counts = np.bincount(places)
        for network in range(kind.networks if len(labels) else 0):
            features = random_features(network, pixels.shape[1], kind.width, self.job.class_names, device)
            sums = feature_sums(features, pixels, torch.from_numpy(places), len(present), device)
            rows += [
                {"network": network, "label": int(label), "count": int(count), "sum": row.numpy()}
                for label, count, row in zip(present, counts, sums, strict=True)
            ]
        self.job.store.write_table(f"{kind.parts}/{shard_file(shard)}", pa.Table.from_pylist(rows, _SUMS))


@torch.inference_mode()
def feature_sums(
    features: Features, pixels: np.ndarray, places: torch.Tensor, classes: int, device: str
) -> torch.Tensor:
    """Pixels (N, S, S, 3) uint8 and their classes' places (N,) => sums of features (classes, F) float32."""
    parts = [
        features(to_images(torch.from_numpy(pixels[at : at + BATCH].copy()).to(device))).cpu().double()
        for at in range(0, len(pixels), BATCH)
    ]
    found = torch.cat(parts)
    return torch.zeros(classes, found.shape[1], dtype=found.dtype).index_add(0, places, found).float()


def write_means(store: Store, kind: FeatureKind, parts: list[str], network: int, classes: int) -> None:
    """Add one network's sums of all parts and write its means. Raises RunError for a class without an image."""
    counts, sums = np.zeros(classes, np.int64), None
    for part in parts:
        table = store.read_rows(f"{kind.parts}/{part}", _SUMS.names, "network", range(network, network + 1))
        if not len(table):
            continue
        rows = np.stack(table["sum"].to_numpy()).astype(np.float64)
        sums = np.zeros((classes, rows.shape[1])) if sums is None else sums
        labels = table["label"].to_numpy()
        np.add.at(sums, labels, rows)
        np.add.at(counts, labels, table["count"].to_numpy())
    if sums is None or not counts.all():
        raise RunError(f"features: label {int(np.argmin(counts))} has no usable image; raise --refine-images")
    columns = [list(range(classes)), counts.tolist(), list((sums / counts[:, None]).astype(np.float32))]
    store.write_table(kind.means(network), pa.table(columns, schema=_MEANS))


def read_means(store: Store, kind: FeatureKind, network: int, labels: range) -> torch.Tensor:
    """Mean features (len(labels), F) of real images under one network."""
    table = store.read_rows(kind.means(network), _MEANS.names, "label", labels).sort_by("label")
    return torch.from_numpy(np.stack(table["mean"].to_numpy()))


def require_features(store: Store, refine: RefineConfig) -> None:
    """Raise ValueError unless a run folder has the features that refinement needs."""
    if feature_kind(refine).missing(store):
        raise ValueError(
            f"--refine match needs features of real images, and {store.uri} has none under {refine.networks} networks "
            f"of width {refine.width}; jobs/sweep.py --run {store.uri} --variants refine=match makes them from its data"
        )
