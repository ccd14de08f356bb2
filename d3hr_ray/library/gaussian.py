"""A class as one diagonal Gaussian in the noise domain, and n latents that stand for it.

N samples, n chosen latents; both are float tensors whose rows have the shape of one latent, whatever that is. Results
are float32 on the CPU. Every draw is keyed by (seed, label): the same call gives the same latents on every machine,
and two classes of one set, as two labels, share no noise.
"""

from dataclasses import dataclass
from math import prod

import torch

from d3hr_ray.config import PAPER_SKEW_WEIGHT
from d3hr_ray.numerics import groups
from d3hr_ray.numerics.groups import Spread
from d3hr_ray.numerics.moments import Moments
from d3hr_ray.numerics.random_search import BLOCK, RandomSearch


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean and unbiased std per dimension, each of the shape of one latent, float32; fitted to `count` samples."""

    mean: torch.Tensor
    std: torch.Tensor
    count: int


def fit_gaussian(samples: torch.Tensor) -> Gaussian:
    """Samples (N, ...), such as the noised latents of a class at one t => their Gaussian (D3HR, arXiv 2505.18399).

    Sums are float64. Raises ValueError for fewer than two samples, or one that is not finite.
    """
    shape = samples.shape[1:]
    rows_ND = samples.detach().cpu().reshape(len(samples), prod(shape))
    if not rows_ND.isfinite().all():
        raise ValueError("NaN or inf in the samples; check the model, or load it in float32")
    moments = Moments.of(rows_ND)
    std_D = moments.variance().float().sqrt()
    return Gaussian(moments.mean_D.float().reshape(shape), std_D.reshape(shape), len(samples))


def match_moments(
    gaussian: Gaussian, n: int, *, candidates: int = 256, seed: int = 0, label: int = 0, spread: Spread = "std"
) -> torch.Tensor:
    """n latents (n, ...) whose mean and std are the Gaussian's to rounding and whose skewness is near 0.

    The least skewed of `candidates` columns of n normal values wins, dimension by dimension: they are independent, as
    the Gaussian is diagonal. The first k latents stand for the class better than k random ones; a single one is the
    mean. `spread` "radius" scales to the draws' mean distance from the centre instead. Raises ValueError for no n.
    """
    _at_least_one(n=n, candidates=candidates)
    latents_ND = groups.match_moments(*_vectors(gaussian), n, candidates, seed, label, spread)
    return latents_ND.reshape(n, *gaussian.mean.shape)


def random_search(
    gaussian: Gaussian,
    n: int,
    candidates: int,
    *,
    skew_weight: float = PAPER_SKEW_WEIGHT,
    seed: int = 0,
    label: int = 0,
) -> torch.Tensor:
    """The subset of least `matching_loss` among `candidates` random ones: n latents (n, ...), D3HR's group sampling.

    The paper takes 10^6 candidates, which is seconds to minutes on one core; without skewness (n below 3, or weight 0)
    only the winner is drawn. Raises ValueError for no n or no candidates.
    """
    _at_least_one(n=n, candidates=candidates)
    search = RandomSearch(*_vectors(gaussian), n, seed, label, skew_weight)
    _, block, index = search.over(range(-(-candidates // BLOCK)), candidates)
    return search.subset(block, index).reshape(n, *gaussian.mean.shape)


def matching_loss(latents: torch.Tensor, gaussian: Gaussian, *, skew_weight: float = PAPER_SKEW_WEIGHT) -> float:
    """How far n latents (n, ...) are from the Gaussian: |mean error| + |std error| + skew_weight |skewness|.

    Each norm is over dimensions (D3HR's group sampling). Below two latents the std does not count, below three the
    skewness. Raises ValueError for latents of another shape.
    """
    if latents.shape[1:] != gaussian.mean.shape:
        raise ValueError(f"latents of shape {tuple(latents.shape[1:])}, a Gaussian of {tuple(gaussian.mean.shape)}")
    latents_1ND = latents.detach().cpu().float().reshape(1, len(latents), gaussian.mean.numel())
    return float(groups.scores(latents_1ND, *_vectors(gaussian), skew_weight))


def _vectors(gaussian: Gaussian) -> tuple[torch.Tensor, torch.Tensor]:
    return gaussian.mean.flatten(), gaussian.std.flatten()


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} = {count}; give 1 or more")
