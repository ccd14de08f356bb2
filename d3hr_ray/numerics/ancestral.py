"""DDPM ancestral sampling (Ho et al., 2020) on a spaced grid: how CaO2 draws its pool.

B images, x of any shape (B, ...), float32. The variance is the posterior's, or between it and beta where the network
has learnt it (Nichol and Dhariwal, 2021, eq. 15), as DiT has.
"""

from collections.abc import Callable
from math import log, sqrt

import torch

from d3hr_ray.numerics.schedule import Schedule

# (x_t, t) => (predicted noise, the learnt variance's place between its bounds in [-1, 1], or None)
Predict = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor | None]]


def ancestral(
    predict: Predict, noise: torch.Tensor, schedule: Schedule, draw: Callable[[int], torch.Tensor]
) -> torch.Tensor:
    """Pure noise at the top of the grid => latents. `draw(t)` is the fresh noise, shaped like x, of the step from t."""
    x = noise.float()
    down = schedule.grid[::-1]
    alphas = [schedule.alpha(t) for t in down] + [schedule.final_alpha]
    for i, t in enumerate(down):
        eps, place = predict(x, t)
        x = posterior_mean(x, eps.float(), alphas[i], alphas[i + 1])
        if i + 1 < len(down):
            x = x + (0.5 * _log_variance(place, alphas[i], alphas[i + 1])).exp() * draw(t)
    return x


def posterior_mean(x: torch.Tensor, eps: torch.Tensor, alpha: float, alpha_to: float) -> torch.Tensor:
    """The mean of q(x_to | x, x0) with x0 as the noise predicts it (Ho et al., eq. 7 on cumulative alphas)."""
    x0 = (x - sqrt(1 - alpha) * eps) / sqrt(alpha)
    beta = 1 - alpha / alpha_to
    return (sqrt(alpha_to) * beta * x0 + sqrt(alpha / alpha_to) * (1 - alpha_to) * x) / (1 - alpha)


def _log_variance(place: torch.Tensor | None, alpha: float, alpha_to: float) -> torch.Tensor:
    """Of the step alpha -> alpha_to."""
    beta = 1 - alpha / alpha_to
    least = log(beta * (1 - alpha_to) / (1 - alpha))
    if place is None:
        return torch.tensor(least)
    share = (place.float() + 1) / 2
    return share * log(beta) + (1 - share) * least
