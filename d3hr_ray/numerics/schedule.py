"""The noise schedule: cumulative alphas of the DDPM training steps, and the grid that DDIM walks."""

from bisect import bisect_left
from dataclasses import dataclass

import torch


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
        if t in self.grid:
            return self.grid.index(t)
        last = self.grid[-1]
        if not 0 <= t <= last:
            raise ValueError(
                f"--timesteps {t} is outside the schedule; the {len(self.grid)}-step grid runs from "
                f"{self.grid[0]} to {last}"
            )
        i = bisect_left(self.grid, t)
        raise ValueError(
            f"--timesteps {t} is not on the {len(self.grid)}-step grid; its neighbours are "
            f"{self.grid[i - 1]} and {self.grid[i]}"
        )

    def above(self, t: int) -> int:
        """The next grid point up from t: where the authors' sampler starts (FIELD.md 1.1)."""
        i = self.position(t)
        if i + 1 == len(self.grid):
            raise ValueError(f"--timesteps {t} is the last grid point; --fidelity official starts one above it")
        return self.grid[i + 1]


def leading_grid(train_steps: int, steps: int) -> tuple[int, ...]:
    """(0, k, 2k, ...) with k = train_steps // steps: diffusers' 'leading' spacing, ascending."""
    return tuple(range(0, train_steps // steps * steps, train_steps // steps))


def even_grid(train_steps: int, steps: int) -> tuple[int, ...]:
    """`steps` points from 0, evenly spaced to rounding; the leading grid where `steps` divides `train_steps`.

    Leading spacing rounds the step down, so that 15 of 1000 steps would miss t = 600 (66 * 9 = 594).
    """
    return tuple(round(i * train_steps / steps) for i in range(steps))


def ancestral_grid(train_steps: int, steps: int) -> tuple[int, ...]:
    """`steps` points from 0 to the last training step, evenly spaced to rounding: DiT's and CaO2's respacing.

    50 of 1000 are 0, 20, 41, ..., 979, 999.
    """
    stride = (train_steps - 1) / max(1, steps - 1)
    return tuple(round(i * stride) for i in range(steps))


def linear_alphas(train_steps: int = 1000, start: float = 1e-4, end: float = 2e-2) -> torch.Tensor:
    """Cumulative alphas (T,) float64 of the linear beta schedule that DiT was trained with (Ho et al., 2020)."""
    return torch.cumprod(1 - torch.linspace(start, end, train_steps, dtype=torch.float64), 0)
