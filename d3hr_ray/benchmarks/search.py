"""bench search: time and matching loss per method, against a plain batched torch loop of the paper's search.

CPU seconds of one thread, so that "per core" is what is measured. D = 4096, stds from 0.8 to 1.2.
"""

import multiprocessing
import resource
import statistics
from typing import Any

import torch
from scipy import stats

from d3hr_ray.benchmarks.measure import Result, in_turns, median_ratio
from d3hr_ray.numerics import groups
from d3hr_ray.numerics.random_search import BLOCK, RandomSearch

SKEW_WEIGHT = 0.5  # the paper's
LOOP_NUMBERS = 1 << 21  # normal numbers per batch of the plain loop: 8 MB
MILLION, SKEWED = 1_000_000, 200_000  # candidates of a search; with skewness divided by n


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
    for weight in (0.0, SKEW_WEIGHT):
        for n in (10,) if quick else (10, 50):
            repeats, count = (30, 10) if quick else (200, 50)
            ratios[f"score_p_value_ipc{n}{'_skew' if weight else ''}"] = _p_value(
                mean_D, std_D, n, weight, repeats, count
            )
    for method in () if quick else ("moments", "random"):
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
            "loop+skew": (few, lambda: plain_loop(mean_D, std_D, n, few, SKEW_WEIGHT, draw)),
            "random+skew": (skewed, lambda: _whole_search(mean_D, std_D, n, skewed, SKEW_WEIGHT)),
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


def _memory(method: str, dims: int) -> float:
    """Peak memory in MB that a task of IPC 100 adds to a fresh process that has imported all it needs."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_task, (method, dims))


def _peak_of_task(method: str, dims: int) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mean_D, std_D = torch.zeros(dims), torch.linspace(0.8, 1.2, dims)
    if method == "moments":
        groups.match_moments(mean_D, std_D, 100, 16, 0, 0)
    else:
        _whole_search(mean_D, std_D, 100, 100, SKEW_WEIGHT)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
