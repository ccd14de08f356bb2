"""Group sampling: how well a subset of n latents matches its class Gaussian, and how to make one that does.

M candidate subsets, N images per class, D latent dims. Sources: D3HR (arXiv 2505.18399), group sampling, and its
code's group_sampling.py. The fitted Gaussian is diagonal, so its dims are independent (docs/design.md, Decisions).
"""

from collections.abc import Iterator
from typing import Literal

import torch

from d3hr_ray.numerics.seeds import normal

SkewAxis = Literal["dims", "features"]
Spread = Literal["std", "radius"]
CHUNK = 50  # candidates drawn in full at once: 8 MB at n = 10, D = 4096


def skewness(groups_MND: torch.Tensor) -> torch.Tensor:
    """Sample skewness per dim across each subset, (M, D); 0 where it has none: of fewer than 3, or of equal images."""
    n = groups_MND.shape[1]
    if n < 3:
        return torch.zeros_like(groups_MND[:, 0])
    c_MND = groups_MND - groups_MND.mean(1, keepdim=True)
    square_MND = c_MND * c_MND
    variance_MD = square_MND.sum(1) / (n - 1)
    skew_MD = (square_MND * c_MND).sum(1) / variance_MD.pow(1.5) * (n / ((n - 1) * (n - 2)))
    return torch.where(variance_MD > 0, skew_MD, 0.0)


def feature_skewness(groups_MND: torch.Tensor) -> torch.Tensor:
    """The authors' term, (M, N): z along the samples, but cubes and factors along the D features."""
    dims, std_M1D = groups_MND.shape[2], groups_MND.std(1, keepdim=True)
    z_MND = torch.where(std_M1D > 0, (groups_MND - groups_MND.mean(1, keepdim=True)) / std_M1D, 0.0)
    return z_MND.pow(3).sum(2) * (dims / ((dims - 1) * (dims - 2)))


def varying(groups_MND: torch.Tensor, std_D: torch.Tensor) -> torch.Tensor:
    """The subsets with zeros in dims where the class has no spread: rounding alone would be skewed there."""
    return groups_MND if bool((std_D > 0).all()) else torch.where(std_D > 0, groups_MND, 0.0)


def scores(
    groups_MND: torch.Tensor, mean_D: torch.Tensor, std_D: torch.Tensor, skew_weight: float, axis: SkewAxis = "dims"
) -> torch.Tensor:
    """Matching loss of each candidate, (M,): norms over dims of the mean and std errors, plus weighted skewness.

    With one image the std is undefined and only the mean counts; `axis` features is the authors' skewness. Dims in
    which the class has no spread have no skewness.
    """
    score_M = (groups_MND.mean(1) - mean_D).norm(dim=1)
    if groups_MND.shape[1] > 1:
        score_M = score_M + (groups_MND.std(1) - std_D).norm(dim=1)
        if skew_weight:
            skew = (skewness if axis == "dims" else feature_skewness)(varying(groups_MND, std_D))
            score_M = score_M + skew_weight * skew.norm(dim=1)
    return score_M


def match_moments(
    mean_D: torch.Tensor,
    std_D: torch.Tensor,
    n: int,
    candidates: int,
    seed: int,
    label: int,
    spread: Spread = "std",
) -> torch.Tensor:
    """n latents (n, D) whose mean and `spread` are the Gaussian's to rounding, and whose skewness is near 0.

    Per dim, of `candidates` columns of n normal values the least skewed wins (skewness does not change when a column
    is centred and scaled) and is standardised, so the set is exact. A price: columns without skewness have lighter
    tails (excess kurtosis -0.63 against -0.29 of any standardised sample at n = 20). Latents are ordered so that the
    first k are nearer to the Gaussian than k random ones. With n = 1 the latent is the mean.
    """
    if n == 1:
        return mean_D[None].clone()
    key = ("moments", seed, label, n)
    dims = len(mean_D)
    best_ND, least_D = torch.zeros(n, dims), torch.full((dims,), torch.inf)
    for c in range(candidates):
        column_ND = normal((n, dims), *key, "column", c)
        skew_D = skewness(column_ND[None])[0].abs()
        better_D = skew_D < least_D
        best_ND[:, better_D], least_D[better_D] = column_ND[:, better_D], skew_D[better_D]
        if n < 3:
            break
    z_ND = _nested(_standardised(best_ND.double()))
    return (mean_D + spread_scale(n, spread) * std_D * z_ND).float()


def spread_scale(n: int, spread: Spread) -> float:
    """What n latents of mean 0 and unbiased std 1 are scaled by.

    std: 1, D3HR's statistic. Their mean squared distance from their mean is then (n - 1) / n of the Gaussian's, as that
    mean is their own: 0.71 of its radius at n = 2, 0.95 at n = 10, less noise than a denoiser is told. radius:
    sqrt(n / (n - 1)), which brings them back to the shell that the Gaussian's own draws lie on.
    """
    return (n / (n - 1)) ** 0.5 if spread == "radius" else 1.0


def _standardised(x_ND: torch.Tensor) -> torch.Tensor:
    return (x_ND - x_ND.mean(0)) / x_ND.std(0)


def _nested(z_ND: torch.Tensor) -> torch.Tensor:
    """The same latents in a greedy order: each next one brings the mean and std so far nearest to 0 and 1.

    Whole latents are moved, never single dims: choosing an order per dim makes better prefixes, but its first latents
    leave the shell that the Gaussian lives on (at n = 10 the first one's norm was half the others', and the first two
    were correlated by -0.75), and a denoiser would be told the wrong noise level.
    """
    left, chosen = list(range(len(z_ND))), []
    sum_D = square_D = torch.zeros(z_ND.shape[1], dtype=z_ND.dtype)
    for k in range(1, len(z_ND) + 1):
        sums_LD, squares_LD = sum_D + z_ND[left], square_D + z_ND[left].square()
        error_L = (sums_LD / k).norm(dim=1)
        if k > 1:
            variance_LD = (squares_LD - sums_LD.square() / k).clamp(min=0) / (k - 1)
            error_L = error_L + (variance_LD.sqrt() - 1).norm(dim=1)
        best = int(error_L.argmin())
        sum_D, square_D = sums_LD[best], squares_LD[best]
        chosen.append(left.pop(best))
    return z_ND[chosen]


def official_candidates(
    mean_D: torch.Tensor, std_D: torch.Tensor, n: int, loop: int, count: int
) -> Iterator[torch.Tensor]:
    """The first `count` candidates of one of the authors' loops, in chunks (at most CHUNK, n, D).

    torch's generator is seeded loop * 12345 for every class, as theirs is. They draw 10,000 candidates at once, in
    half precision on CUDA (0.8 GB at n = 10); drawing in chunks gives other numbers of the same distribution.
    """
    draw = torch.Generator().manual_seed(loop * 12345)
    for at in range(0, count, CHUNK):
        noise_MND = torch.randn(CHUNK, n, len(mean_D), generator=draw)
        yield noise_MND[: count - at] * std_D + mean_D
