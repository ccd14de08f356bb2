"""bench guides: what each guide adds to the sampling of a set of digits, in evaluations, seconds and memory."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch

from d3hr_ray.benchmarks.measure import Result, in_turns, median_ratio
from d3hr_ray.config import GuideConfig
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.models.loading import load_networks, load_schedule
from d3hr_ray.numerics.guide_features import descended
from d3hr_ray.numerics.guide_modes import towards
from d3hr_ray.numerics.guide_set import to_moments
from d3hr_ray.numerics.guide_transport import to_support
from d3hr_ray.numerics.guides import Guide, steer
from d3hr_ray.numerics.schedule import Schedule
from d3hr_ray.numerics.seeds import normal
from d3hr_ray.numerics.solvers import SAMPLE

MODEL, T, GUIDANCE, CLASSES = "digits", 600, 2.0, 10
STRENGTH, REPULSION, UNTIL = 0.1, 0.03, 0  # guided to the end: the most that it can cost
XL, XL_WIDTH = 4 * 32 * 32, 1152  # of DiT-XL/2 at 256 pixels: dims of a latent, and of a token
NAMES = ("modes", "transport", "set", "set-repulsion", "features")


def run(quick: bool) -> Result:
    """Measure; `quick` is for tests: few images, a coarse grid."""
    torch.set_num_threads(1)
    _, denoiser = load_networks(MODEL, torch.float32, "cpu")
    schedule = load_schedule(MODEL, 5 if quick else 25, "ddim")
    points = sum(t <= T for t in schedule.grid)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for ipc in (2,) if quick else (10, 50):
        labels = torch.arange(CLASSES).repeat_interleave(ipc)
        calls: dict[str, list[int]] = {name: [] for name in ("none", *NAMES)}
        sides = _sides(denoiser, schedule, labels, ipc, calls)
        seconds = in_turns(sides, 1 if quick else 3)
        for name, taken in seconds.items():
            ratio = median_ratio(taken, seconds["none"])
            share = calls[name][-1] / calls["none"][-1]
            memory = {} if name == "none" else {"MB a class, 4x32x32": _floats(name, ipc, points) * 4 / 2**20}
            rows.append({"guide": name, "IPC": ipc, "seconds, ratio": ratio, "evaluations, ratio": share} | memory)
            if name != "none":
                ratios[f"seconds_{name}_ipc{ipc}"] = ratio
    return Result("guides", ratios, rows, NOTES)


NOTES = [
    f"digits model, t = {T}, guidance {GUIDANCE:g}; as many components as images; guided at every point of the grid",
    "memory: what a guide holds for one class beside its images, in float32 (transport and set compute in float64)",
    "features takes two passes of its own up to its block, the middle one, which are not among the evaluations",
]


@torch.inference_mode()
def _sides(
    denoiser: Denoiser, schedule: Schedule, labels: torch.Tensor, ipc: int, calls: dict[str, list[int]]
) -> dict[str, Callable[[], torch.Tensor]]:
    """Sampling of one set without a guide and with each, which notes how often the network was evaluated."""
    starts = normal((len(labels), *denoiser.latent_shape), "bench guides")

    @torch.inference_mode()
    def sample(name: str, guide: Guide | None) -> torch.Tensor:
        count = 0

        def denoise(x: torch.Tensor, t: int) -> torch.Tensor:
            nonlocal count
            count += 1
            return guided(x, t)

        guided = denoiser.guided(labels, GUIDANCE)
        walk = denoise if guide is None else steer(denoise, guide, schedule, UNTIL)
        found = SAMPLE["ddim"](walk, starts, schedule, T)
        calls[name].append(count)
        return found

    guides = dict(zip(NAMES, _guides(denoiser, schedule, labels, ipc), strict=True))
    return {name: partial(sample, name, guide) for name, guide in {"none": None, **guides}.items()}


def _guides(denoiser: Denoiser, schedule: Schedule, labels: torch.Tensor, ipc: int) -> tuple[Guide, ...]:
    """Each guide, of made-up centres, moments and features: what they cost depends on their numbers alone."""
    shape, blocks = denoiser.latent_shape, denoiser.transformer.transformer_blocks
    dims = prod(shape)
    modes = normal((len(labels), dims), "modes")
    points = list(normal((CLASSES, ipc, dims), "points"))
    mean, std = normal((CLASSES, dims), "mean"), normal((CLASSES, dims), "std").abs() + 0.5
    middle = GuideConfig().block_of(len(blocks))

    def to_features(clean: torch.Tensor, noised: torch.Tensor, t: int) -> torch.Tensor:
        seen = partial(denoiser.features, t=t, classes=labels, block=middle)
        return descended(seen, clean, noised, goals, schedule.alpha(t), STRENGTH)

    goals = normal(tuple(denoiser.features(modes[:1].reshape(-1, *shape), 0, labels[:1], middle).shape), "goals")
    return (
        towards(modes.reshape(-1, *shape), STRENGTH),
        to_support(points, [torch.ones(ipc)] * CLASSES, labels, STRENGTH),
        to_moments(mean, std, labels, STRENGTH),
        to_moments(mean, std, labels, STRENGTH, REPULSION),
        to_features,
    )


def _floats(name: str, ipc: int, points: int) -> int:
    """Numbers that a guide of DiT-XL/2 holds for one class of `ipc` images, with as many components."""
    moments, pairs = 2 * XL, ipc * ipc
    return {
        "modes": ipc * XL,
        "transport": ipc * XL + 2 * pairs,
        "set": moments,
        "set-repulsion": moments + pairs,
        "features": ipc * points * XL_WIDTH,
    }[name]
