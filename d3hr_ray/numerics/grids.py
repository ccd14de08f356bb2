"""Grids: which of the DDPM training steps a sampler visits. Plain integers: a wrong timestep is told without torch."""

from bisect import bisect_left


def position(grid: tuple[int, ...], t: int, flag: str = "--timesteps") -> int:
    """Index of t on an ascending grid. Raises ValueError naming its flag and the nearest points if it is not on it."""
    if t in grid:
        return grid.index(t)
    last = grid[-1]
    if not 0 <= t <= last:
        raise ValueError(f"{flag} {t} is outside the schedule; the {len(grid)}-step grid runs from {grid[0]} to {last}")
    i = bisect_left(grid, t)
    raise ValueError(f"{flag} {t} is not on the {len(grid)}-step grid; its neighbours are {grid[i - 1]} and {grid[i]}")


def above(grid: tuple[int, ...], t: int) -> int:
    """The next grid point up from t: where the authors' sampler starts (docs/design.md, Fidelity)."""
    i = position(grid, t)
    if i + 1 == len(grid):
        raise ValueError(f"--timesteps {t} is the last grid point; --fidelity official starts one above it")
    return grid[i + 1]


def leading_grid(train_steps: int, steps: int) -> tuple[int, ...]:
    """(0, k, 2k, ...) with k = train_steps // steps: diffusers' 'leading' spacing, ascending."""
    return tuple(range(0, train_steps // steps * steps, train_steps // steps))


def even_grid(train_steps: int, steps: int) -> tuple[int, ...]:
    """`steps` points from 0, evenly spaced to rounding; the leading grid where `steps` divides `train_steps`.

    Leading spacing rounds the step down, so that 15 of 1000 steps would miss t = 600 (66 * 9 = 594).
    """
    return tuple(round(i * train_steps / steps) for i in range(steps))


def power_grid(top: int, points: int, power: float) -> tuple[int, ...]:
    """`points` steps top (i / (points - 1)) ** power, rounded, from 0 to `top`; above 1 they lie denser near 0."""
    return tuple(round(top * (i / (points - 1)) ** power) for i in range(points))


def ancestral_grid(train_steps: int, steps: int) -> tuple[int, ...]:
    """`steps` points from 0 to the last training step, evenly spaced to rounding: DiT's and CaO2's respacing.

    50 of 1000 are 0, 20, 41, ..., 979, 999.
    """
    stride = (train_steps - 1) / max(1, steps - 1)
    return tuple(round(i * stride) for i in range(steps))
