"""search: gaussians/ => subsets/<set>/, the n latents per class that will become images, and their score.

Ray tasks, one per block of classes (`moments`) or per class and range of candidates (`random`). Every draw is keyed by
(seed, label), so neither the number of tasks nor their order changes a winner.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from d3hr_ray.config import OFFICIAL_BLOCK, RunConfig
from d3hr_ray.layout import subset_file, subset_folder
from d3hr_ray.numerics import groups, random_search
from d3hr_ray.numerics.mixture import Mixture, match_mixture
from d3hr_ray.numerics.random_search import RandomSearch
from d3hr_ray.numerics.seeds import digest, normal
from d3hr_ray.runtime.tasks import Reference, bounded, deferred, unfinished
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.fit import Gaussians, list_column, share_gaussians
from d3hr_ray.stages.mixture import mixture_kind, read_mixtures
from d3hr_ray.store import Store

# Candidates of one task: seconds of work, up to a minute's with skewness.
OFFICIAL_PER_TASK, SKEWED_PER_TASK, PLAIN_PER_TASK = 10_000, 50_000, 2_000_000


def run_search(store: Store, specs: Sequence[SetSpec], classes: int) -> None:
    """Find the subsets of every set, block by block, in one stream; blocks that are there are kept."""
    missing = [Block(spec, i, labels) for spec in specs for i, labels in _missing(store, spec, classes)]
    gaussians = share_gaussians(store, (block.timestep for block in missing))
    matched, searched = [b for b in missing if b.is_matched], [b for b in missing if not b.is_matched]
    jobs = [(block, (store, block, gaussians[block.timestep], None)) for block in matched]
    for _ in bounded(write_block, jobs, several("search", [block.spec for block in matched])):
        pass
    _search_blocks(store, searched, gaussians)


def _missing(store: Store, spec: SetSpec, classes: int) -> list[tuple[int, range]]:
    """Blocks of a set, by number, whose subsets are not there."""
    there = store.files(subset_folder(spec))
    return [(i, labels) for i, labels in enumerate(spec.blocks(classes)) if subset_file(spec, i) not in there]


def several(what: str, specs: Iterable[SetSpec]) -> str:
    """What a progress bar says: of one set its name, of several their number."""
    names = {spec.name for spec in specs}
    return f"{what} {names.pop()}" if len(names) == 1 else f"{what} {len(names)} sets"


@dataclass(frozen=True)
class Block:
    """Some labels of a set, whose subsets are one file."""

    spec: SetSpec
    number: int
    labels: range

    @property
    def config(self) -> RunConfig:
        """Of its set."""
        return self.spec.config

    @property
    def timestep(self) -> int:
        """Of its Gaussians."""
        assert self.spec.timestep is not None, "noise needs no search"
        return self.spec.timestep

    @property
    def is_matched(self) -> bool:
        """Whether its subsets are computed at once, without a search over candidates."""
        return self.config.search.method == "moments" and self.config.method != "gaussian"

    @property
    def candidates(self) -> int:
        """How many subsets are drawn for each label."""
        return 1 if self.config.method == "gaussian" else self.config.search.candidates


Winners = dict[int, tuple[float, int, int]]  # label => (score, block of candidates, index) of its best candidate


def _search_blocks(store: Store, missing: list[Block], gaussians: dict[int, Reference]) -> None:
    """Search all blocks' labels in one stream of tasks; write each block as soon as its winners are known."""
    ranges = {block: _candidate_ranges(block) for block in missing}
    jobs = [
        ((block, label), (block, label, part, gaussians[block.timestep]))
        for block in missing
        for label in block.labels
        for part in ranges[block]
    ]
    winners: dict[Block, Winners] = {block: {} for block in missing}
    left = {block: len(block.labels) * len(ranges[block]) for block in missing}
    write, writes = deferred(write_block), list[Reference]()
    title = several("candidates", [block.spec for block in missing])
    for (block, label), winner in bounded(search_range, jobs, title):
        winners[block][label] = min(winners[block].get(label, winner), winner)
        left[block] -= 1
        if not left[block]:
            writes.append(write(store, block, gaussians[block.timestep], winners.pop(block)))
        writes = unfinished(writes, "search", timeout=0)
    unfinished(writes, "search", timeout=None)


def _candidate_ranges(block: Block) -> list[range]:
    """Blocks of candidates, a task's worth each."""
    if block.config.draws_all:
        size, per_task = OFFICIAL_BLOCK, OFFICIAL_PER_TASK
    elif block.spec.ipc > 2 and block.config.search.skew_weight:
        size, per_task = random_search.BLOCK, SKEWED_PER_TASK
    else:
        size, per_task = random_search.BLOCK, PLAIN_PER_TASK
    step, count = max(1, per_task // size), -(-block.candidates // size)
    return [range(at, min(at + step, count)) for at in range(0, count, step)]


def search_range(block: Block, label: int, part: range, gaussians: Gaussians) -> tuple[float, int, int]:
    """Best (score, block, index) of one label over some blocks of its candidates."""
    config, n, count = block.config, block.spec.ipc, block.candidates
    if not config.draws_all:
        return _search(config, n, label, gaussians).over(part, count)
    mean_D, std_D = (g[label] for g in gaussians)
    found = []
    for place in part:
        here = min(OFFICIAL_BLOCK, count - place * OFFICIAL_BLOCK)
        chunks = groups.official_candidates(mean_D, std_D, n, _loop(config, place, label), here)
        score_M = torch.cat([groups.scores(c, mean_D, std_D, config.search.skew_weight, _axis(config)) for c in chunks])
        found.append((float(score_M.min()), place, int(score_M.argmin())))
    return min(found)


def _loop(config: RunConfig, place: int, label: int) -> int:
    """Which of the authors' loops a label's candidates come from: every label's, or one of its own."""
    if config.has_quirk("seeds"):
        return place
    return digest(f"loop {place} of {label}, {config.seed}".encode()) % 2**32


def _axis(config: RunConfig) -> groups.SkewAxis:
    return "features" if config.has_quirk("skewness") else "dims"


def _search(config: RunConfig, n: int, label: int, gaussians: Gaussians) -> RandomSearch:
    return RandomSearch(gaussians[0][label], gaussians[1][label], n, config.seed, label, config.search.skew_weight)


def write_block(store: Store, block: Block, gaussians: Gaussians, winners: Winners | None) -> None:
    """Make the subsets of a block of labels and write its file."""
    config, spec = block.config, block.spec
    make: Callable[[int], torch.Tensor]
    if config.has_mixture:
        kind = mixture_kind(config, block.timestep, spec.images_per_class)
        make = partial(_of_mixture, config, spec.ipc, read_mixtures(store, kind, block.labels))
    elif winners is None:
        make = partial(_matched, config, spec.ipc, gaussians)
    else:
        make = partial(_winner, config, spec.ipc, gaussians, winners)
    subsets = [(label, make(label)) for label in block.labels]
    weight, axis = config.search.skew_weight, _axis(config)
    scored = [
        (label, subset, float(groups.scores(subset[None], gaussians[0][label], gaussians[1][label], weight, axis)))
        for label, subset in subsets
    ]
    store.write_table(subset_file(spec, block.number), subset_table(scored, config.seed))


def _matched(config: RunConfig, n: int, gaussians: Gaussians, label: int) -> torch.Tensor:
    mean_D, std_D = (g[label] for g in gaussians)
    search = config.search
    return groups.match_moments(mean_D, std_D, n, search.candidates, config.seed, label, search.spread)


def _of_mixture(config: RunConfig, n: int, mixtures: dict[int, Mixture], label: int) -> torch.Tensor:
    search = config.search
    medoids = search.single == "medoid"
    return match_mixture(mixtures[label], n, search.candidates, config.seed, label, medoids, search.spread)


def _winner(config: RunConfig, n: int, gaussians: Gaussians, winners: Winners, label: int) -> torch.Tensor:
    (mean_D, std_D), (_, block, index) = (g[label] for g in gaussians), winners[label]
    if config.draws_all:
        loop = _loop(config, block, label)
        (last_MND,) = deque(groups.official_candidates(mean_D, std_D, n, loop, index + 1), maxlen=1)
        return last_MND[-1]
    return _search(config, n, label, gaussians).subset(block, index)


def run_noise(store: Store, specs: Sequence[SetSpec], classes: int, dims: int) -> None:
    """Draw the noise that plain samples and CaO2's pools start from, block by block; blocks that are there are kept."""
    jobs = [
        ((spec, i), (store, spec, i, labels, dims)) for spec in specs for i, labels in _missing(store, spec, classes)
    ]
    for _ in bounded(write_noise, jobs, several("noise", [spec for (spec, _), _ in jobs])):
        pass


def write_noise(store: Store, spec: SetSpec, number: int, labels: range, dims: int) -> None:
    """One block's subsets of pure noise, keyed by (seed, label, index), with no score."""
    drawn = ([normal((dims,), "dit", spec.seed, label, k) for k in range(spec.ipc)] for label in labels)
    subsets = [(label, torch.stack(noise), float("nan")) for label, noise in zip(labels, drawn, strict=True)]
    store.write_table(subset_file(spec, number), subset_table(subsets, spec.seed))


def subset_table(subsets: Iterable[tuple[int, torch.Tensor, float | torch.Tensor]], seed: int) -> pa.Table:
    """(label, latents (n, D), the subset's score or one per image) => the contract's rows, one per image."""
    subsets = list(subsets)
    counts = [len(zs) for _, zs, _ in subsets]
    scores = [torch.as_tensor(score, dtype=torch.float32).expand(len(zs)) for _, zs, score in subsets]
    return pa.table(
        {
            "label": pa.array(np.repeat([label for label, _, _ in subsets], counts), pa.int32()),
            "index": pa.array(np.concatenate([np.arange(count) for count in counts]), pa.int32()),
            "seed": pa.array([seed] * sum(counts), pa.int64()),
            "score": pa.array(torch.cat(scores).numpy(), pa.float32()),
            "latent": list_column(torch.cat([zs for _, zs, _ in subsets])),
        }
    )
