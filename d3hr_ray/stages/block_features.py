"""block features: real images => features/dit-<block>/, what a block of the DiT sees in each class, to guide sets by.

There is a file per t of the sampler's grid that is guided. Each image is encoded and noised to all of them, its noise
keyed by its bytes and t, and run through the DiT as far as the block, once per t, as one of its class. The parts are
added as class_means.py does. What is guided reads these means and no image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import pyarrow as pa
import torch

from d3hr_ray.config import RunConfig
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.look import look_of
from d3hr_ray.layout import shard_file
from d3hr_ray.models.accelerate import to_device
from d3hr_ray.models.autoencoder import to_images
from d3hr_ray.models.card import ModelCard, portable
from d3hr_ray.numerics.seeds import normal
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.runtime.batching import run_batches
from d3hr_ray.runtime.tasks import bounded
from d3hr_ray.stages.class_means import (
    GROUP,
    SUMS,
    SumShard,
    add_sums,
    clear_if_whole,
    first_entries,
    sum_shards,
    sums_of,
)
from d3hr_ray.stages.feature_kinds import BlockKind
from d3hr_ray.stages.networks import OpenNetworks, open_model, open_networks
from d3hr_ray.store import Store


def guided_at(config: RunConfig, grid: Sequence[int]) -> tuple[int, ...]:
    """The points of a sampler's grid where sets of a config are guided."""
    return tuple(t for t in grid if config.guide.until <= t <= max(config.inversion.timesteps))


@dataclass(frozen=True)
class BlockFeatureJob:
    """What an actor must know to sum features at some timesteps."""

    store: Store
    config: RunConfig
    kind: BlockKind
    timesteps: tuple[int, ...]
    model_classes: tuple[int, ...]
    device: str


def run_block_features(
    store: Store,
    kind: BlockKind,
    timesteps: Sequence[int],
    config: RunConfig,
    card: ModelCard,
    listing: Listing,
    actors: Actors,
) -> None:
    """Make the means that are not there yet, by the networks of a run. Raises RunError for a class without any."""
    left = kind.missing(store, timesteps)
    if clear_if_whole(store, left, kind.parts()):
        return
    shards = replace(listing, entries=first_entries(listing, kind.images)).shards(config.data.shard_size)
    parts, there = [shard_file(i) for i in range(len(shards))], [set(store.list(kind.parts(t))) for t in left]
    done = {i for i, part in enumerate(parts) if all(part in names for names in there)}
    config = replace(config, model=replace(config.model, name=portable(config.model.name)))
    job = BlockFeatureJob(store, config, kind, tuple(left), listing.classes.model_classes, actors.device)
    look, classes = look_of(config.fidelity), tuple(listing.classes.names)
    sum_shards(BlockFeatureShard, job, shards, done, listing, card.image_size, look, actors)
    for _ in bounded(write_block_means, [(t, (store, kind, parts, t, classes)) for t in left], "add features"):
        pass
    store.delete(kind.parts())


class BlockFeatureShard(SumShard):
    """Actor: holds the networks, sums the features of one shard per call at every timestep."""

    def __init__(self, job: BlockFeatureJob, networks: OpenNetworks = open_networks) -> None:
        self.job, self.store = job, job.store
        self.schedule, self.autoencoder, self.denoiser = open_model(job.config, job.device, networks)
        self.model_classes = torch.tensor(job.model_classes)

    def write(self, shard: int, pixels: np.ndarray, accepted: pa.Table) -> None:
        """Sum and write one shard: a part for each timestep."""
        labels = accepted["label"].to_numpy()
        found = self.features(pixels, labels, accepted["key"].to_pylist()) if len(labels) else {}
        for t in self.job.timesteps:
            table = pa.Table.from_pylist(sums_of(found[t], labels) if found else [], SUMS)
            self.store.write_table(f"{self.job.kind.parts(t)}/{shard_file(shard)}", table)

    def features(self, pixels: np.ndarray, labels: np.ndarray, keys: Sequence[int]) -> dict[int, torch.Tensor]:
        """Pixels (N, S, S, 3) uint8, labels and keys of images => {t: features (N, F)}, in fixed batches."""
        classes, device = self.model_classes[torch.from_numpy(labels.astype(np.int64))], self.job.device
        shape = self.denoiser.latent_shape

        def work(rows: slice) -> list[torch.Tensor]:
            clean = self.autoencoder.encode(to_images(to_device(torch.from_numpy(pixels[rows].copy()), device)), None)
            own, found = classes[rows].to(device), list[torch.Tensor]()
            for t in self.job.timesteps:
                alpha = self.schedule.alpha(t)
                noise = torch.stack([normal(shape, "block features", key, t) for key in keys[rows]])
                noised = sqrt(alpha) * clean + sqrt(1 - alpha) * to_device(noise, device)
                found.append(self.denoiser.features(noised, t, own, self.job.kind.block).cpu())
            return found

        with torch.inference_mode():
            batches = run_batches(work, len(pixels), self.job.config.inversion.batch_size)
        return {t: torch.cat(parts) for t, parts in zip(self.job.timesteps, zip(*batches, strict=True), strict=True)}


def write_block_means(store: Store, kind: BlockKind, parts: list[str], t: int, classes: Sequence[str]) -> None:
    """Add the sums of all parts at t and write their means. Raises RunError for a class without an image."""
    tables = (store.read_table(f"{kind.parts(t)}/{part}") for part in parts)
    store.write_table(kind.means(t), add_sums(tables, classes, kind.images, "--feature-images"), GROUP)


def require_block_features(store: Store, kind: BlockKind, timesteps: Sequence[int], until: int) -> None:
    """Raise ValueError unless a run folder has the features that a guide needs."""
    if left := kind.missing(store, timesteps):
        raise ValueError(
            f"--guide features needs mean features of real images in block {kind.block} at every t from "
            f"--guide-until {until} on, and {store.uri} has none at t={left[0]} in {kind.folder}; jobs/sweep.py --run "
            f"{store.uri} --variants 'guide=features guide-until={until} feature-block={kind.block} "
            f"feature-images={kind.images}' makes them from its data"
        )
