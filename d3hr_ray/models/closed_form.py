"""The exact denoiser of data that is normal per dimension: no weights, every map known in closed form."""

from dataclasses import dataclass
from math import sqrt

import torch

from d3hr_ray.numerics.schedule import Schedule


@dataclass(frozen=True)
class GaussianDenoiser:
    """denoise(x, t) for data N(mean, std^2) per dimension: eps = (x - sqrt(a) m) sqrt(1-a) / (a s^2 + 1 - a)."""

    schedule: Schedule
    mean: torch.Tensor
    std: torch.Tensor

    def __call__(self, x: torch.Tensor, t: int) -> torch.Tensor:
        """x_t => the expected noise in it, same shape."""
        a = self.schedule.alpha(t)
        return (x - sqrt(a) * self.mean) * sqrt(1 - a) / (a * self.std**2 + 1 - a)

    def transport(self, x: torch.Tensor, s: int, t: int) -> torch.Tensor:
        """x_s => x_t exactly along the probability-flow ODE: the z-score within p_s equals that within p_t."""
        a, b = self.schedule.alpha(s), self.schedule.alpha(t)
        z = (x - sqrt(a) * self.mean) / torch.sqrt(a * self.std**2 + 1 - a)
        return sqrt(b) * self.mean + torch.sqrt(b * self.std**2 + 1 - b) * z
