"""Which images of a pool stay: CaO2's first stage (arXiv 2506.22637).

P candidates of one class.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from d3hr_ray.numerics.groups import Spread, spread_scale

Order = Literal["easy", "hard"]


@dataclass(frozen=True)
class Choice:
    """Places in the pool, best first, and how many of these images the classifier got right."""

    places: tuple[int, ...]
    correct: int


def select(right_P: torch.Tensor, own_P: torch.Tensor, fill_P: torch.Tensor, n: int, order: Order) -> Choice:
    """The n candidates to keep of a pool.

    Those that the classifier gets right (`right_P`) come first, by the probability of their class (`own_P`): the most
    confident first (`easy`) or the least (`hard`). If too few are right, wrong ones fill up by `fill_P`, largest first:
    the authors take the most confident wrong ones, their own class's probability is the better choice. Ties keep the
    pool's order. Raises ValueError if the pool is smaller than n.
    """
    if len(right_P) < n:
        raise ValueError(f"a pool of {len(right_P)} images cannot give {n}; use a larger --pool")
    by_own = torch.argsort(own_P, descending=order == "easy", stable=True)
    by_fill = torch.argsort(fill_P, descending=True, stable=True)
    places = torch.cat([by_own[right_P[by_own]], by_fill[~right_P[by_fill]]])[:n]
    return Choice(tuple(places.tolist()), int(right_P[places].sum()))


def rematch(
    latents_ND: torch.Tensor, mean_D: torch.Tensor, std_D: torch.Tensor, spread: Spread = "std"
) -> torch.Tensor:
    """Chosen latents (n, D) => moved and scaled per dim to the class's mean and `spread`: what choosing undid.

    A single latent is left as it is: its class mean would be the same whatever was chosen.
    """
    if len(latents_ND) == 1:
        return latents_ND
    x_ND = latents_ND.double()
    own_D = x_ND.std(0)
    z_ND = (x_ND - x_ND.mean(0)) / torch.where(own_D > 0, own_D, torch.ones_like(own_D))
    return (mean_D + spread_scale(len(x_ND), spread) * std_D * z_ND).float()
