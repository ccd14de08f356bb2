"""The noise schedule: cumulative alphas of the DDPM training steps, and the grid that DDIM walks."""

from dataclasses import dataclass

import torch

from d3hr_ray.numerics import grids


@dataclass(frozen=True)
class Schedule:
    """`alphas_cumprod` (T,) float64 over training steps; `grid`, ascending, is the DDIM subsequence of them.

    `final_alpha` is where the last sampling step lands: 1 is a clean image (diffusers' set_alpha_to_one).
    """

    alphas_cumprod: torch.Tensor
    grid: tuple[int, ...]
    final_alpha: float = 1.0

    def alpha(self, t: int) -> float:
        """Cumulative alpha at training step t."""
        return float(self.alphas_cumprod[t])

    def position(self, t: int) -> int:
        """Index of t on the grid. Raises ValueError naming the nearest grid points if it is not on it."""
        return grids.position(self.grid, t)

    def above(self, t: int) -> int:
        """The next grid point up from t: where the authors' sampler starts (docs/design.md, Fidelity)."""
        return grids.above(self.grid, t)


def linear_alphas(train_steps: int = 1000, start: float = 1e-4, end: float = 2e-2) -> torch.Tensor:
    """Cumulative alphas (T,) float64 of the linear beta schedule that DiT was trained with (Ho et al., 2020)."""
    return torch.cumprod(1 - torch.linspace(start, end, train_steps, dtype=torch.float64), 0)
