"""One contract for guides: better clean latents than the network predicts, at every point of the walk.

A guide takes the clean latents (N, ...) that are predicted from the noised ones at t, and these, and gives the clean
latents to go on with. It is laid over the denoiser, so that every solver and ancestral sampling can be guided.
"""

from collections.abc import Callable
from math import sqrt

import torch

from d3hr_ray.numerics.ancestral import Predict
from d3hr_ray.numerics.ddim import Denoise
from d3hr_ray.numerics.schedule import Schedule

Guide = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]  # (x_0, x_t, t) => x_0


def steer(denoise: Denoise, guide: Guide, schedule: Schedule, until: int) -> Denoise:
    """denoise(x, t) whose noise is that of the guided clean latents, for t of at least `until`."""

    def steered(x: torch.Tensor, t: int) -> torch.Tensor:
        return _noise(x, denoise(x, t).float(), t, guide, schedule, until)

    return steered


def steer_ancestral(predict: Predict, guide: Guide, schedule: Schedule, until: int) -> Predict:
    """The same for ancestral sampling, whose learnt variance stays."""

    def steered(x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        eps, place = predict(x, t)
        return _noise(x, eps.float(), t, guide, schedule, until), place

    return steered


def _noise(x: torch.Tensor, eps: torch.Tensor, t: int, guide: Guide, schedule: Schedule, until: int) -> torch.Tensor:
    if t < until:
        return eps
    alpha = schedule.alpha(t)
    clean = guide((x - sqrt(1 - alpha) * eps) / sqrt(alpha), x, t)
    return (x - sqrt(alpha) * clean) / sqrt(1 - alpha)
