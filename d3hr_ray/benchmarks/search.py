"""bench search: time and matching loss per method, against a plain batched torch loop of the paper's search.

CPU seconds of one thread, so that "per core" is what is measured. D = 4096, stds from 0.8 to 1.2.
"""

import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from scipy import stats

from d3hr_ray.benchmarks.measure import Result, in_turns, median_ratio, peak_mb
from d3hr_ray.config import PAPER_SKEW_WEIGHT, DataConfig, ModelConfig, RunConfig, Search, SearchConfig
from d3hr_ray.numerics import groups
from d3hr_ray.numerics.random_search import BLOCK, RandomSearch
from d3hr_ray.sets import sets_of
from d3hr_ray.stages.search import Block, search_range, write_block
from d3hr_ray.store import Store

LOOP_NUMBERS = 1 << 21  # normal numbers per batch of the plain loop: 8 MB
MILLION, SKEWED = 1_000_000, 200_000  # candidates of a search; with skewness divided by n
MEMORY_OF: tuple[Search, ...] = ("moments", "random")


def run(quick: bool) -> Result:
    """Measure; `quick` is for tests: D = 64 and few candidates."""
    torch.set_num_threads(1)
    dims, repeats = (64, 2) if quick else (4096, 5)
    mean_D, std_D = torch.linspace(-1, 1, dims), torch.linspace(0.8, 1.2, dims)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for n in (1, 10) if quick else (1, 10, 50, 100):
        speeds = _speeds(mean_D, std_D, n, quick, repeats)
        losses = _losses(mean_D, std_D, n, MILLION if not quick else BLOCK)
        rows += [{"ipc": n, "method": k, **v, **losses.get(k, {})} for k, v in speeds.items()]
        ratios |= _ratios(n, speeds, losses)
    rows += _further_counts(mean_D, std_D, quick, repeats)
    for weight in (0.0, PAPER_SKEW_WEIGHT):
        for n in (10,) if quick else (10, 50):
            repeats, count = (30, 10) if quick else (200, 50)
            ratios[f"score_p_value_ipc{n}{'_skew' if weight else ''}"] = _p_value(
                mean_D, std_D, n, weight, repeats, count
            )
    for method in () if quick else MEMORY_OF:
        ratios[f"memory_mb_{method}_ipc100"] = _memory(method, dims)
    notes = [
        f"loop: torch.randn(m, n, D) in batches of 8 MB, score, keep the best; ours counts a whole search of "
        f"{MILLION:,} candidates (with skewness {SKEWED:,} / n), the winner's latents included",
        "score_p_value: two-sample Kolmogorov-Smirnov test, 200 winning scores (best of 50) a side; alike above 0.01",
    ]
    worst = {k: max(v for name, v in ratios.items() if name.startswith(k + "_ipc")) for k in WORST}
    kept = {k: v for k, v in ratios.items() if not k.startswith(tuple(WORST))}
    return Result("search", worst | kept, rows, notes)


WORST = ("moments_loss_ratio", "moments_skew_ratio", "moments_cost_ratio")  # reported as the largest over IPCs


def plain_loop(
    mean_D: torch.Tensor, std_D: torch.Tensor, n: int, count: int, weight: float, draw: torch.Generator
) -> float:
    """The paper's search as one writes it in torch: draw batches of subsets, score them, keep the best."""
    best, batch = float("inf"), max(1, LOOP_NUMBERS // (n * len(mean_D)))
    for at in range(0, count, batch):
        groups_MND = torch.randn(min(batch, count - at), n, len(mean_D), generator=draw) * std_D + mean_D
        best = min(best, float(groups.scores(groups_MND, mean_D, std_D, weight).min()))
    return best


def _speeds(
    mean_D: torch.Tensor, std_D: torch.Tensor, n: int, quick: bool, repeats: int
) -> dict[str, dict[str, float]]:
    """CPU seconds and candidates per second of each way."""
    draw = torch.Generator().manual_seed(0)
    few = 50 if quick else max(50, 2000 // n)
    many, skewed = (BLOCK, 200) if quick else (MILLION, SKEWED // n)
    sides = {
        "loop": (few, lambda: plain_loop(mean_D, std_D, n, few, 0.0, draw)),
        "random": (many, lambda: _whole_search(mean_D, std_D, n, many, 0.0)),
        "moments": (256, lambda: groups.match_moments(mean_D, std_D, n, 256, 0, 0)),
    }
    if n > 2:
        sides |= {
            "loop+skew": (few, lambda: plain_loop(mean_D, std_D, n, few, PAPER_SKEW_WEIGHT, draw)),
            "random+skew": (skewed, lambda: _whole_search(mean_D, std_D, n, skewed, PAPER_SKEW_WEIGHT)),
        }
    seconds = in_turns({name: side for name, (_, side) in sides.items()}, repeats)
    speeds = {
        name: {
            "candidates": count,
            "seconds": statistics.median(seconds[name]),
            "candidates/s": count / statistics.median(seconds[name]),
        }
        for name, (count, _) in sides.items()
    }
    for name in [name for name in ("random", "random+skew") if name in sides]:
        loop = name.replace("random", "loop")
        per_candidate = {k: [s / sides[k][0] for s in seconds[k]] for k in (loop, name)}
        speeds[name]["x loop"] = median_ratio(per_candidate[loop], per_candidate[name])
    return speeds


def _further_counts(mean_D: torch.Tensor, std_D: torch.Tensor, quick: bool, repeats: int) -> list[dict[str, Any]]:
    """Time and losses at IPC 10 of other numbers of candidates than the other rows'."""
    ways: dict[str, tuple[Callable[[int], torch.Tensor], tuple[int, ...]]] = {
        "random": (lambda m: _whole_search(mean_D, std_D, 10, m, 0.0), (100,) if quick else (1_000, 100_000)),
        "moments": (lambda m: groups.match_moments(mean_D, std_D, 10, m, 0, 0), (16,) if quick else (64, 1_024)),
    }
    rows = []
    for method, (way, counts) in ways.items():
        seconds = in_turns({str(m): partial(way, m) for m in counts}, repeats)
        for m in counts:
            median = statistics.median(seconds[str(m)])
            speed = {"candidates": m, "seconds": median, "candidates/s": m / median}
            rows.append({"ipc": 10, "method": method, **speed, **_norms(way(m), mean_D, std_D)})
    return rows


def _whole_search(mean_D: torch.Tensor, std_D: torch.Tensor, n: int, count: int, weight: float) -> torch.Tensor:
    search = RandomSearch(mean_D, std_D, n, 0, 0, weight)
    _, block, index = search.over(range(-(-count // BLOCK)), count)
    return search.subset(block, index)


def _losses(mean_D: torch.Tensor, std_D: torch.Tensor, n: int, count: int) -> dict[str, dict[str, float]]:
    """Norms over D of the mean, std and skewness errors: one draw, best of `count`, exact matching."""
    draw = torch.randn(n, len(mean_D), generator=torch.Generator().manual_seed(1)) * std_D + mean_D
    subsets = {
        "loop": draw,  # shown beside the loop: what one draw of it is worth
        "random": _whole_search(mean_D, std_D, n, count, 0.0),
        "moments": groups.match_moments(mean_D, std_D, n, 256, 0, 0),
    }
    return {name: _norms(subset, mean_D, std_D) for name, subset in subsets.items()}


def _norms(subset_ND: torch.Tensor, mean_D: torch.Tensor, std_D: torch.Tensor) -> dict[str, float]:
    std = (subset_ND.std(0) - std_D).norm() if len(subset_ND) > 1 else torch.zeros(())
    mean = (subset_ND.mean(0) - mean_D).norm()
    skew = groups.skewness(subset_ND[None]).norm()
    return {"mean error": float(mean), "std error": float(std), "skewness": float(skew)}


def _ratios(n: int, speeds: dict[str, Any], losses: dict[str, Any]) -> dict[str, float]:
    draw, ours = losses["loop"], losses["moments"]
    loss = (ours["mean error"] + ours["std error"]) / (draw["mean error"] + draw["std error"])
    cost = speeds["moments"]["seconds"] * speeds["loop"]["candidates/s"] / MILLION
    ratios = {f"moments_loss_ratio_ipc{n}": loss, f"moments_cost_ratio_ipc{n}": cost}
    if n > 2:
        ratios[f"moments_skew_ratio_ipc{n}"] = ours["skewness"] / draw["skewness"]
        ratios[f"random_speedup_ipc{n}"] = speeds["random"]["x loop"]
        ratios["random_skew_speedup" + ("" if n == 10 else f"_ipc{n}")] = speeds["random+skew"]["x loop"]
    return ratios


def _p_value(mean_D: torch.Tensor, std_D: torch.Tensor, n: int, weight: float, repeats: int, count: int) -> float:
    """Of a two-sample test: winning scores of our search against those of the plain loop."""
    draw = torch.Generator().manual_seed(2)
    search = RandomSearch(mean_D, std_D, n, 0, 0, weight)
    ours = [search.best(block, count)[0] for block in range(repeats)]
    plain = [plain_loop(mean_D, std_D, n, count, weight, draw) for _ in range(repeats)]
    return float(stats.ks_2samp(ours, plain).pvalue)


def _memory(method: Search, dims: int) -> float:
    """Peak memory in MB that the tasks of IPC 100 add to a fresh process that has loaded all it needs."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_task, (method, dims))


def _peak_of_task(method: Search, dims: int) -> float:
    _task(method, 64)  # loads what is loaded on first use
    before = peak_mb()
    _task(method, dims)
    return peak_mb() - before


def _task(method: Search, dims: int) -> None:
    """What the stage does: search a block of candidates with skewness (`random`), and write a file of subsets."""
    candidates = SearchConfig().candidates if method == "moments" else BLOCK
    search = SearchConfig((100,), method, candidates, PAPER_SKEW_WEIGHT)
    config = RunConfig(DataConfig(""), ModelConfig(""), search=search)
    (spec,) = sets_of(config)
    block = Block(spec, 0, spec.blocks(1000)[0])
    gaussians = torch.zeros(len(block.labels), dims), torch.linspace(0.8, 1.2, dims).repeat(len(block.labels), 1)
    winners = None
    if not block.is_matched:  # the winner of one label does for the others
        winners = dict.fromkeys(block.labels, search_range(block, 0, range(1), gaussians))
    with tempfile.TemporaryDirectory() as folder:
        write_block(Store(folder), block, gaussians, winners)
