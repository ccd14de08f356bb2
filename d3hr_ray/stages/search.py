"""search: gaussians/ => subsets/<variant>/, the n latents per class that will become images, and their score.

Ray tasks, one per block of classes (`moments`) or per class and range of candidates (`random`). Every draw is keyed by
(seed, label), so neither the number of tasks nor their order changes a winner.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import ray
import torch

from d3hr_ray.config import OFFICIAL_BLOCK, RunConfig
from d3hr_ray.numerics import groups, random_search
from d3hr_ray.numerics.mixture import Mixture, match_mixture
from d3hr_ray.numerics.random_search import RandomSearch
from d3hr_ray.numerics.seeds import normal
from d3hr_ray.stages.fit import read_gaussians
from d3hr_ray.stages.mixture import mixture_kind, read_mixtures
from d3hr_ray.stages.pool import bounded
from d3hr_ray.store import Store

IMAGES_PER_BLOCK = 256  # of one subsets/ file: a few batches of synthesis, 4 MB at D = 4096
# Candidates of one task: seconds of work, up to a minute's with skewness.
OFFICIAL_PER_TASK, SKEWED_PER_TASK, PLAIN_PER_TASK = 10_000, 50_000, 2_000_000


@dataclass(frozen=True)
class Variant:
    """One distilled set: what made it and how many images per class it has."""

    method: str
    search: str | None
    timestep: int | None
    ipc: int
    seed: int
    words: tuple[str, ...] = ()  # what else tells it apart, such as k5 for five components
    per_image: int = 1  # candidates per image of the final set, in a pool
    clean: bool = False  # its subsets/ hold latents that are sampled already

    @property
    def name(self) -> str:
        """Folder name, such as d3hr-moments-t600-ipc10-seed0."""
        words = [self.method, self.search, *self.words, None if self.timestep is None else f"t{self.timestep}"]
        return "-".join([*filter(None, words), f"ipc{self.ipc}", f"seed{self.seed}"])

    def blocks(self, classes: int) -> list[range]:
        """Labels 0..K-1 in runs that make about IMAGES_PER_BLOCK images: the unit of search and synthesis."""
        size = max(1, IMAGES_PER_BLOCK // self.ipc)
        return [range(at, min(at + size, classes)) for at in range(0, classes, size)]


def subset_file(variant: Variant, block: int) -> str:
    """Name of a block's file within the run folder."""
    return f"subsets/{variant.name}/part-{block:06d}.parquet"


def run_search(store: Store, config: RunConfig, variant: Variant, classes: int) -> None:
    """Find the subsets of a variant, block by block; blocks that are there are kept."""
    blocks = enumerate(variant.blocks(classes))
    missing = [(i, labels) for i, labels in blocks if not store.exists(subset_file(variant, i))]
    if not missing:
        return
    assert variant.timestep is not None, "noise needs no search"
    gaussians = ray.put(read_gaussians(store, variant.timestep))
    if config.search.method == "moments" and variant.method != "gaussian":
        jobs = [(i, (store, config, variant, i, labels, gaussians, None)) for i, labels in missing]
        for _ in bounded(write_block, jobs, f"search {variant.name}"):
            pass
        return
    _search_blocks(store, config, variant, missing, gaussians)


Gaussians = tuple[torch.Tensor, torch.Tensor]
Winners = dict[int, tuple[float, int, int]]  # label => (score, block, index) of its best candidate


def _search_blocks(
    store: Store, config: RunConfig, variant: Variant, missing: list[tuple[int, range]], gaussians: ray.ObjectRef
) -> None:
    """Search all blocks' labels in one stream of tasks; write each block as soon as its winners are known."""
    count = 1 if variant.method == "gaussian" else config.search.candidates
    ranges = _candidate_ranges(config, variant.ipc, count)
    jobs = [
        ((i, label), (config, variant.ipc, label, blocks, count, gaussians))
        for i, labels in missing
        for label in labels
        for blocks in ranges
    ]
    winners: dict[int, Winners] = {i: {} for i, _ in missing}
    labels_of, left = dict(missing), {i: len(labels) * len(ranges) for i, labels in missing}
    write, writes = ray.remote(num_cpus=1, max_retries=3)(write_block), []
    for (i, label), winner in bounded(search_range, jobs, f"candidates {variant.name}"):
        winners[i][label] = min(winners[i].get(label, winner), winner)
        left[i] -= 1
        if not left[i]:
            writes.append(write.remote(store, config, variant, i, labels_of[i], gaussians, winners.pop(i)))
    try:
        ray.get(writes)
    except OSError as error:
        raise getattr(error, "cause", error) from error


def _candidate_ranges(config: RunConfig, n: int, count: int) -> list[range]:
    """Blocks of candidates, a task's worth each."""
    if config.fidelity == "official":
        block, per_task = OFFICIAL_BLOCK, OFFICIAL_PER_TASK
    elif n > 2 and config.search.skew_weight:
        block, per_task = random_search.BLOCK, SKEWED_PER_TASK
    else:
        block, per_task = random_search.BLOCK, PLAIN_PER_TASK
    step, blocks = max(1, per_task // block), -(-count // block)
    return [range(at, min(at + step, blocks)) for at in range(0, blocks, step)]


def search_range(
    config: RunConfig, n: int, label: int, blocks: range, count: int, gaussians: Gaussians
) -> tuple[float, int, int]:
    """Best (score, block, index) of one label over some blocks of its first `count` candidates."""
    mean_D, std_D = (g[label] for g in gaussians)
    weight = config.search.skew_weight
    if config.fidelity != "official":
        return _search(config, n, label, gaussians).over(blocks, count)
    found = []
    for block in blocks:
        here = min(OFFICIAL_BLOCK, count - block * OFFICIAL_BLOCK)
        chunks = groups.official_candidates(mean_D, std_D, n, block, here)
        score_M = torch.cat([groups.scores(c, mean_D, std_D, weight, "features") for c in chunks])
        found.append((float(score_M.min()), block, int(score_M.argmin())))
    return min(found)


def _search(config: RunConfig, n: int, label: int, gaussians: Gaussians) -> RandomSearch:
    return RandomSearch(gaussians[0][label], gaussians[1][label], n, config.seed, label, config.search.skew_weight)


def write_block(
    store: Store,
    config: RunConfig,
    variant: Variant,
    block: int,
    labels: range,
    gaussians: Gaussians,
    winners: Winners | None,
) -> None:
    """Make the subsets of a block of labels and write its file."""
    make: Callable[[int], torch.Tensor]
    if config.has_mixture:
        assert variant.timestep is not None
        kind = mixture_kind(config, variant.timestep, variant.ipc // variant.per_image)
        make = partial(_of_mixture, config, variant.ipc, read_mixtures(store, kind, labels))
    elif winners is None:
        make = partial(_matched, config, variant.ipc, gaussians)
    else:
        make = partial(_winner, config, variant.ipc, gaussians, winners)
    subsets = [(label, make(label)) for label in labels]
    axis: groups.SkewAxis = "features" if config.fidelity == "official" else "dims"
    weight = config.search.skew_weight
    scored = [
        (label, subset, float(groups.scores(subset[None], gaussians[0][label], gaussians[1][label], weight, axis)))
        for label, subset in subsets
    ]
    store.write_table(subset_file(variant, block), subset_table(scored, config.seed))


def _matched(config: RunConfig, n: int, gaussians: Gaussians, label: int) -> torch.Tensor:
    mean_D, std_D = (g[label] for g in gaussians)
    return groups.match_moments(mean_D, std_D, n, config.search.candidates, config.seed, label)


def _of_mixture(config: RunConfig, n: int, mixtures: dict[int, Mixture], label: int) -> torch.Tensor:
    medoids = config.search.single == "medoid"
    return match_mixture(mixtures[label], n, config.search.candidates, config.seed, label, medoids)


def _winner(config: RunConfig, n: int, gaussians: Gaussians, winners: Winners, label: int) -> torch.Tensor:
    (mean_D, std_D), (_, block, index) = (g[label] for g in gaussians), winners[label]
    if config.fidelity == "official":
        (last_MND,) = deque(groups.official_candidates(mean_D, std_D, n, block, index + 1), maxlen=1)
        return last_MND[-1]
    return _search(config, n, label, gaussians).subset(block, index)


def write_noise(store: Store, variant: Variant, classes: int, dims: int) -> None:
    """Subsets of pure noise, keyed by (seed, label, index), with no score: the `dit` baseline's, and CaO2's pool."""
    for i, labels in enumerate(variant.blocks(classes)):
        if not store.exists(subset_file(variant, i)):
            noise = [
                (label, torch.stack([normal((dims,), "dit", variant.seed, label, k) for k in range(variant.ipc)]))
                for label in labels
            ]
            table = subset_table([(label, subset, float("nan")) for label, subset in noise], variant.seed)
            store.write_table(subset_file(variant, i), table)


def subset_table(subsets: Iterable[tuple[int, torch.Tensor, float | torch.Tensor]], seed: int) -> pa.Table:
    """(label, latents (n, D), the subset's score or one per image) => the contract's rows, one per image."""
    rows = [
        (label, k, seed, float(score), z.numpy())
        for label, zs, all_scores in subsets
        for k, (z, score) in enumerate(zip(zs.float(), torch.as_tensor(all_scores).expand(len(zs)), strict=True))
    ]
    labels, indices, seeds, scores, latents = (list(c) for c in zip(*rows, strict=True))
    return pa.table(
        {
            "label": pa.array(labels, pa.int32()),
            "index": pa.array(indices, pa.int32()),
            "seed": pa.array(seeds, pa.int64()),
            "score": pa.array(scores, pa.float32()),
            "latent": pa.array(latents, pa.list_(pa.float32())),
        }
    )
