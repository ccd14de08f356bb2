"""DDIM (Song et al., 2021) in both directions over one contract, `denoise(x, t) -> eps`.

B images, x of any shape (B, ...), float32. One step formula does all the arithmetic: inversion walks the grid up,
sampling walks it down.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from math import sqrt

import torch

from d3hr_ray.numerics.schedule import Schedule

Denoise = Callable[[torch.Tensor, int], torch.Tensor]  # (x_t, t) => predicted noise


def ddim_step(x: torch.Tensor, eps: torch.Tensor, alpha_from: float, alpha_to: float) -> torch.Tensor:
    """x at noise level alpha_from => x at alpha_to along the deterministic path (Song et al., eq. 12, sigma 0)."""
    x0 = (x - sqrt(1 - alpha_from) * eps) / sqrt(alpha_from)
    return sqrt(alpha_to) * x0 + sqrt(1 - alpha_to) * eps


def invert(
    denoise: Denoise, latents: torch.Tensor, schedule: Schedule, timesteps: Iterable[int]
) -> dict[int, torch.Tensor]:
    """latents => {t: noised latents} for each t asked for, stopping at the largest.

    The noise is evaluated at (x_s, t) for the step s -> t, as the authors do; this is first order in the step size.
    The latents stand for x at training step 0, where the authors' grid begins. A grid that begins above it (diffusers'
    `trailing` spacing, or an offset) is stepped onto from where sampling lands.
    """
    wanted = {t: schedule.position(t) for t in timesteps}
    top = max(wanted.values())
    x, states, first = latents.float(), {}, schedule.grid[0]
    if first > 0:
        x = ddim_step(x, denoise(x, first).float(), schedule.final_alpha, schedule.alpha(first))
    if first in wanted:
        states[first] = x
    for s, t in pairwise(schedule.grid[: top + 1]):
        x = ddim_step(x, denoise(x, t).float(), schedule.alpha(s), schedule.alpha(t))
        if t in wanted:
            states[t] = x
    return states


def sample(
    denoise: Denoise, noised: torch.Tensor, schedule: Schedule, start: int, floor: int | None = None
) -> torch.Tensor:
    """Noised latents at grid point `start` => latents. The last step goes from the grid's 0 to the final alpha.

    The authors never land below training step 1 (prev_t = max(1, t - 20)): that is `floor` 1. Their last two steps
    land there, though the network is then told t = 0, and the image keeps the noise of step 1.
    """
    down = schedule.grid[: schedule.position(start) + 1][::-1]
    if floor is None:
        landings = [schedule.alpha(s) for s in down[1:]] + [schedule.final_alpha]
    else:
        landings = [schedule.alpha(max(s, floor)) for s in (*down[1:], floor)]
    x = noised.float()
    for t, alpha_to in zip(down, landings, strict=True):
        x = ddim_step(x, denoise(x, t).float(), schedule.alpha(t), alpha_to)
    return x
