"""Group sampling: how well a subset of n latents matches its class Gaussian, and how to find one that does.

M candidate subsets, N images per class, D latent dims. Sources: D3HR paper, section on group sampling; the authors'
code as described in FIELD.md 1.1; the fitted Gaussian is diagonal, so its dims are independent (DESIGN.md, Decisions).
"""

from collections.abc import Iterator
from typing import Literal

import torch

from d3hr_ray.numerics.seeds import generator, normal

SkewAxis = Literal["dims", "features"]
BLOCK = 500  # candidates whose statistics come from one generator: fixed, so that chunking never changes a winner
CHUNK = 50  # candidates drawn in full at once: 8 MB at n = 10, D = 4096
ORDERS = 64  # orders tried per dim to make prefixes good; 16 is visibly worse, 256 gains under 10 %


def skewness(groups_MND: torch.Tensor) -> torch.Tensor:
    """Sample skewness per dim across each subset, (M, D); zeros below 3 images, where it is undefined."""
    n = groups_MND.shape[1]
    if n < 3:
        return torch.zeros_like(groups_MND[:, 0])
    c_MND = groups_MND - groups_MND.mean(1, keepdim=True)
    square_MND = c_MND * c_MND
    variance_MD = square_MND.sum(1) / (n - 1)
    return (square_MND * c_MND).sum(1) / variance_MD.pow(1.5) * (n / ((n - 1) * (n - 2)))


def feature_skewness(groups_MND: torch.Tensor) -> torch.Tensor:
    """The authors' term, (M, N): z along the samples, but cubes and factors along the D features (FIELD.md 1.1)."""
    dims = groups_MND.shape[2]
    z_MND = (groups_MND - groups_MND.mean(1, keepdim=True)) / groups_MND.std(1, keepdim=True)
    return z_MND.pow(3).sum(2) * (dims / ((dims - 1) * (dims - 2)))


def scores(
    groups_MND: torch.Tensor, mean_D: torch.Tensor, std_D: torch.Tensor, skew_weight: float, axis: SkewAxis = "dims"
) -> torch.Tensor:
    """Matching loss of each candidate, (M,): norms over dims of the mean and std errors, plus weighted skewness.

    With one image the std is undefined and only the mean counts; `axis` features is the authors' skewness.
    """
    score_M = (groups_MND.mean(1) - mean_D).norm(dim=1)
    if groups_MND.shape[1] > 1:
        score_M = score_M + (groups_MND.std(1) - std_D).norm(dim=1)
        if skew_weight:
            skew = skewness(groups_MND) if axis == "dims" else feature_skewness(groups_MND)
            score_M = score_M + skew_weight * skew.norm(dim=1)
    return score_M


def match_moments(
    mean_D: torch.Tensor, std_D: torch.Tensor, n: int, candidates: int, seed: int, label: int
) -> torch.Tensor:
    """n latents (n, D) whose mean and unbiased std are the Gaussian's to rounding, and whose skewness is near 0.

    Per dim, of `candidates` columns of n normal values the least skewed wins (skewness does not change when a column
    is centred and scaled), is put into the best of ORDERS orders, and is standardised. So the set is exact, and its
    first k images are closer to the Gaussian than k random ones. With n = 1 the latent is the mean. A price: columns
    without skewness have lighter tails (excess kurtosis -0.63 against -0.29 of any standardised sample at n = 20).
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
    z_ND = _standardised(_ordered(_standardised(best_ND.double()), key))
    return (mean_D + std_D * z_ND).float()


def _standardised(x_ND: torch.Tensor) -> torch.Tensor:
    return (x_ND - x_ND.mean(0)) / x_ND.std(0)


def _ordered(z_ND: torch.Tensor, key: tuple[int | str, ...]) -> torch.Tensor:
    """Each dim's values in the order, of ORDERS random ones, whose prefixes best match mean 0 and std 1."""
    n, dims = z_ND.shape
    draw = generator(*key, "order")
    best_ND, least_D = z_ND, _prefix_error(z_ND)
    for _ in range(ORDERS):
        order_ND = torch.from_numpy(draw.random((n, dims), "float32")).argsort(0)
        tried_ND = z_ND.gather(0, order_ND)
        error_D = _prefix_error(tried_ND)
        better_D = error_D < least_D
        best_ND = torch.where(better_D, tried_ND, best_ND)
        least_D = torch.where(better_D, error_D, least_D)
    return best_ND


def _prefix_error(z_ND: torch.Tensor) -> torch.Tensor:
    """Per dim, squared mean and std errors of every prefix, each weighted by its length, summed."""
    k_N1 = torch.arange(1, len(z_ND) + 1, dtype=z_ND.dtype)[:, None]
    mean_ND = z_ND.cumsum(0) / k_N1
    square_ND = z_ND.square().cumsum(0) / k_N1 - mean_ND.square()
    std_ND = (square_ND.clamp(min=0) * k_N1 / (k_N1 - 1).clamp(min=1)).sqrt()
    errors_ND = mean_ND.square()
    errors_ND[1:] += (std_ND[1:] - 1).square()
    return (k_N1 * errors_ND).sum(0)


def best_random(
    mean_D: torch.Tensor, std_D: torch.Tensor, n: int, block: int, count: int, seed: int, label: int, skew_weight: float
) -> tuple[float, int]:
    """Best (score, index) among the first `count` candidates of a block of random subsets.

    For normal draws the sample mean, sample variance and standardised residual are independent, so without a skewness
    term a candidate's score needs only D means and D chi-squares. The residual is drawn if skewness counts.
    """
    mean_MD, std_MD = _block_statistics(len(mean_D), n, block, seed, label)
    score_M = (mean_MD[:count] * std_D).norm(dim=1)
    if n > 1:
        score_M = score_M + ((std_MD[:count] - 1) * std_D).norm(dim=1)
    if n > 2 and skew_weight:
        for at in range(0, count, CHUNK):
            skew_MD = skewness(_residuals(len(mean_D), n, block, at // CHUNK, seed, label))
            score_M[at : at + CHUNK] += skew_weight * skew_MD.norm(dim=1)[: count - at]
    index = int(score_M.argmin())
    return float(score_M[index]), index


def random_subset(
    mean_D: torch.Tensor, std_D: torch.Tensor, n: int, block: int, index: int, seed: int, label: int
) -> torch.Tensor:
    """The n latents (n, D) of one candidate, filled in from its statistics and its own residual."""
    mean_MD, std_MD = _block_statistics(len(mean_D), n, block, seed, label)
    z_ND = mean_MD[index].expand(n, -1)
    if n > 1:
        residuals_MND = _residuals(len(mean_D), n, block, index // CHUNK, seed, label)
        z_ND = z_ND + std_MD[index] * _standardised(residuals_MND[index % CHUNK])
    return mean_D + std_D * z_ND


def _block_statistics(dims: int, n: int, block: int, seed: int, label: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample means and unbiased stds, (BLOCK, D) each, of BLOCK subsets of n standard normal vectors."""
    draw = generator("random", seed, label, n, block)
    mean_MD = torch.from_numpy(draw.standard_normal((BLOCK, dims), "float32")) / n**0.5
    if n == 1:
        return mean_MD, torch.ones(())
    gamma_MD = torch.from_numpy(draw.standard_gamma((n - 1) / 2, (BLOCK, dims), "float32"))
    return mean_MD, (gamma_MD * (2 / (n - 1))).sqrt()


def _residuals(dims: int, n: int, block: int, chunk: int, seed: int, label: int) -> torch.Tensor:
    """(CHUNK, n, D) normal vectors; standardised, each is independent of its candidate's mean and std."""
    return normal((CHUNK, n, dims), "residual", seed, label, n, block, chunk)


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
