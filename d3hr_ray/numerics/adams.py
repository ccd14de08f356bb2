"""A second-order pair of ddim.py's contract: Adams predictor, trapezoid corrector, one evaluation per grid point.

In y = x / sqrt(alpha) and sigma = sqrt(1 / alpha - 1) the probability-flow ODE is dy / d sigma = eps (Song et al.,
2021, eq. 14); DDIM is Euler's rule for it. Here each step is predicted by the two-step Adams-Bashforth rule, the noise
is evaluated there, and the step is made again by the trapezoid rule (Hairer, Norsett and Wanner, 1993, III.1: PEC).
The trapezoid rule is symmetric, so that sampling nearly retraces the inversion: on digits the round trip of 50-step
DDIM is reached with a third of its evaluations (docs/results.md).
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import sqrt

import torch

from d3hr_ray.numerics.ddim import Denoise, ddim_step
from d3hr_ray.numerics.schedule import Schedule


def invert(
    denoise: Denoise, latents: torch.Tensor, schedule: Schedule, timesteps: Iterable[int]
) -> dict[int, torch.Tensor]:
    """latents => {t: noised latents} for each t asked for; one evaluation per grid point from 0 to the largest."""
    wanted = {t: schedule.position(t) for t in timesteps}
    path = schedule.grid[: max(wanted.values()) + 1]
    return {t: x for t, x, _ in _walk(denoise, latents.float(), schedule, path) if t in wanted}


def sample(denoise: Denoise, noised: torch.Tensor, schedule: Schedule, start: int) -> torch.Tensor:
    """Noised latents at grid point `start` => latents; the last step, from the grid's 0, is DDIM's."""
    path = schedule.grid[: schedule.position(start) + 1][::-1]
    *_, (t, x, eps) = _walk(denoise, noised.float(), schedule, path)
    return ddim_step(x, eps, schedule.alpha(t), schedule.final_alpha)


def _walk(
    denoise: Denoise, x: torch.Tensor, schedule: Schedule, path: tuple[int, ...]
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(t, x_t, noise predicted there) for each point of a path, up or down the grid."""
    eps = denoise(x, path[0]).float()
    yield path[0], x, eps
    y, before, step_before = x / sqrt(schedule.alpha(path[0])), eps, 0.0
    for s, t in pairwise(path):
        scale = sqrt(schedule.alpha(t))
        step = _sigma(schedule, t) - _sigma(schedule, s)
        slope = eps + (eps - before) * (step / (2 * step_before)) if step_before else eps
        ahead = denoise((y + step * slope) * scale, t).float()
        y = y + (eps + ahead) * (step / 2)
        before, eps, step_before = eps, ahead, step
        yield t, y * scale, eps


def _sigma(schedule: Schedule, t: int) -> float:
    return sqrt(1 / schedule.alpha(t) - 1)
