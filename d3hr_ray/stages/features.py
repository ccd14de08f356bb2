"""features: real images => features/<kind>/, each class's mean features under random networks, for refinement.

An actor, without the diffusion model, sums a shard's images' features under every network; a task per network adds the
parts (class_means.py). What refines reads these means and no image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from d3hr_ray.config import RefineConfig
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.look import Look
from d3hr_ray.layout import shard_file
from d3hr_ray.models.accelerate import exact_float32
from d3hr_ray.models.autoencoder import to_images
from d3hr_ray.models.memory import keep_freed_memory
from d3hr_ray.models.random_features import random_features
from d3hr_ray.numerics.feature_matching import Features
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.runtime.console import LOG
from d3hr_ray.runtime.tasks import bounded
from d3hr_ray.runtime.telemetry import goes_on
from d3hr_ray.stages.class_means import (
    GROUP,
    SUMS,
    SumShard,
    add_sums,
    clear_if_whole,
    first_entries,
    read_class_means,
    sum_shards,
    sums_of,
)
from d3hr_ray.stages.feature_kinds import FeatureKind, feature_kind
from d3hr_ray.store import Store

SHUFFLED = 8  # times the room of the means that sums may take before it is told
BATCH = 64  # images per forward: fixed, for equal bytes
_SUMS = pa.schema([("network", pa.int32()), *SUMS])


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
    if clear_if_whole(store, left, kind.parts):
        return
    shards = replace(listing, entries=first_entries(listing, kind.images)).shards(shard_size)
    if (times := room_of_sums(shards)) > SHUFFLED:
        LOG.warning(
            f"--data is not sorted by class: until its features are added up, their sums take {times:,.0f} times the "
            "room of features/, and an actor's memory a shard's share of it; image folders, which are sorted, take "
            "once or twice"
        )
    parts, there = [shard_file(i) for i in range(len(shards))], set(store.list(kind.parts))
    done = {i for i, part in enumerate(parts) if part in there}
    job = FeatureJob(store, kind, tuple(listing.classes.names), actors.device)
    sum_shards(FeatureShard, job, shards, done, listing, size, look, actors)
    for _ in bounded(write_means, [(k, (store, kind, parts, k, job.class_names)) for k in left], "add features"):
        pass
    store.delete(kind.parts)


def room_of_sums(shards: list[pa.Table]) -> float:
    """How much more room the sums of shards take than those of classes: each shard has one for every class in it."""
    labels = [set(pc.unique(shard["label"]).to_pylist()) for shard in shards]
    return sum(map(len, labels)) / max(1, len(set().union(*labels)))


class FeatureShard(SumShard):
    """Actor: sums the features of one shard per call, under one network after the other."""

    def __init__(self, job: FeatureJob) -> None:
        self.job, self.store = job, job.store
        exact_float32(job.device)
        if job.device == "cpu":
            keep_freed_memory()

    def write(self, shard: int, pixels: np.ndarray, accepted: pa.Table) -> None:
        """Sum and write one shard."""
        kind, device, labels = self.job.kind, self.job.device, accepted["label"].to_numpy()
        rows = list[dict[str, object]]()
        for network in range(kind.networks if len(labels) else 0):
            goes_on()
            features = random_features(network, pixels.shape[1], kind.width, self.job.class_names, device)
            rows += [{"network": network} | row for row in sums_of(features_of(features, pixels, device), labels)]
        table, group = pa.Table.from_pylist(rows, _SUMS), len(rows) // kind.networks
        self.store.write_table(f"{kind.parts}/{shard_file(shard)}", table, max(1, group))  # one network to a group


@torch.inference_mode()
def features_of(features: Features, pixels: np.ndarray, device: str) -> torch.Tensor:
    """Pixels (N, S, S, 3) uint8 => features (N, F) on the CPU, in fixed batches."""
    parts = [
        features(to_images(torch.from_numpy(pixels[at : at + BATCH].copy()).to(device))).cpu()
        for at in range(0, len(pixels), BATCH)
    ]
    return torch.cat(parts)


def write_means(store: Store, kind: FeatureKind, parts: list[str], network: int, classes: Sequence[str]) -> None:
    """Add one network's sums of all parts and write its means. Raises RunError for a class without an image."""
    own = range(network, network + 1)
    tables = (store.read_rows(f"{kind.parts}/{part}", _SUMS.names, "network", own) for part in parts)
    store.write_table(kind.means(network), add_sums(tables, classes, kind.images, "--refine-images"), GROUP)


def read_means(store: Store, kind: FeatureKind, network: int, labels: range) -> torch.Tensor:
    """Mean features (len(labels), F) of real images under one network."""
    return read_class_means(store, kind.means(network), labels)


def require_features(store: Store, refine: RefineConfig) -> None:
    """Raise ValueError unless a run folder has the features that refinement needs."""
    if feature_kind(refine).missing(store):
        raise ValueError(
            f"--refine match needs features of real images, and {store.uri} has none in {feature_kind(refine).folder}; "
            f"jobs/sweep.py --run {store.uri} --variants 'refine=match refine-networks={refine.networks} "
            f"refine-width={refine.width} refine-images={refine.images}' makes them from its data"
        )
