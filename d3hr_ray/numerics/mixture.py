"""A class in the noise domain as several Gaussians, each diagonal plus low rank; D3HR's is one diagonal Gaussian.

N images of the class, D latent dims, C components, R directions, n images wanted. Two reasons: a class may
have several modes, and a diagonal fit throws the correlation between dims away.
"""

from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from d3hr_ray.numerics import groups
from d3hr_ray.numerics.seeds import digest

PRIOR = 10.0  # images' worth of the class's pooled variance that each component's own is shrunk towards
LEAST_SHARE = 0.05  # of a dim's variance that low rank leaves to the dim alone
STARTS = 4  # of k-means; the best one is kept


@dataclass(frozen=True)
class Mixture:
    """One class: images per component, their means, the variance of each dim alone, and directions of the rest.

    `centre_CD` are the components' means where they were clustered, if they were asked for.

    The covariance of component c is diag(variance_CD[c]) + factors_RD^T factors_RD. The medoid is the latent of the
    image that is nearest to its cluster's centre.
    """

    count_C: torch.Tensor
    mean_CD: torch.Tensor
    medoid_CD: torch.Tensor
    variance_CD: torch.Tensor
    factors_RD: torch.Tensor
    centre_CD: torch.Tensor | None = None


def fit_mixture(
    cluster_by_ND: torch.Tensor,
    latents_ND: torch.Tensor,
    components: int,
    rank: int,
    seed: int,
    near_ND: torch.Tensor | None = None,
) -> Mixture:
    """Latents of one class => its mixture. Images are clustered where `cluster_by_ND` puts them, by k-means.

    Clusters found at a low t, near the images, are better ones than those found at the t that is fitted, where
    inversion has spread every class over one Gaussian. Each component's variance is shrunk towards the pooled
    one, and the directions are pooled too: a component of few images has no covariance of its own. `near_ND` are
    latents whose means per component are wanted too, `centre_CD`.
    A class with fewer distinct images than components has fewer components. Raises ValueError below 2 images.
    """
    total, dims = latents_ND.shape
    if total < 2:
        raise ValueError(f"{total} image has no variance; a mixture needs 2")
    x_ND = latents_ND.double()
    by_ND = cluster_by_ND.double()
    labels_N = _clusters(by_ND, min(components, total), seed)
    components = int(labels_N.max()) + 1
    count_C = torch.bincount(labels_N, minlength=components)
    zeros_CD = torch.zeros(components, dims, dtype=x_ND.dtype)
    mean_CD = zeros_CD.index_add(0, labels_N, x_ND) / count_C[:, None]
    medoid_C = _nearest(by_ND, labels_N, components)
    within_ND = x_ND - mean_CD[labels_N]
    square_CD = zeros_CD.index_add(0, labels_N, within_ND.square())
    pooled_D = square_CD.sum(0) / max(1, total - components)
    variance_CD = (square_CD + PRIOR * pooled_D) / (count_C[:, None] - 1 + PRIOR)
    if components == 1:
        variance_CD = pooled_D[None]
    factors_RD = _directions(within_ND, rank, total - components)
    alone_CD = torch.maximum(variance_CD - factors_RD.square().sum(0), LEAST_SHARE * variance_CD)
    order = torch.argsort(count_C, descending=True, stable=True)
    return Mixture(
        count_C[order],
        mean_CD[order].float(),
        x_ND[medoid_C[order]].float(),
        alone_CD[order].float(),
        factors_RD.float(),
        None
        if near_ND is None
        else (zeros_CD.index_add(0, labels_N, near_ND.double()) / count_C[:, None])[order].float(),
    )


def pooled(latents_ND: torch.Tensor, shape: tuple[int, int, int], cells: int) -> torch.Tensor:
    """Latents of a shape (C, H, W) averaged over `cells` x `cells` squares, (N, D / cells ** 2).

    k-means of what is left compares what a class's images show, and less where they show it.
    """
    if cells == 1:
        return latents_ND
    return torch.nn.functional.avg_pool2d(latents_ND.reshape(-1, *shape), cells).flatten(1)


def _nearest(points_ND: torch.Tensor, labels_N: torch.Tensor, components: int) -> torch.Tensor:
    """Index (C,) of the point of each cluster that is nearest to the cluster's mean."""
    chosen = []
    for c in range(components):
        (rows,) = torch.nonzero(labels_N == c, as_tuple=True)
        distance = (points_ND[rows] - points_ND[rows].mean(0)).norm(dim=1)
        chosen.append(int(rows[distance.argmin()]))
    return torch.tensor(chosen)


def _clusters(points_ND: torch.Tensor, components: int, seed: int) -> torch.Tensor:
    """k-means labels (N,). One thread: more would add in an order of their own, and round otherwise."""
    if components == 1:
        return torch.zeros(len(points_ND), dtype=torch.long)
    from sklearn.cluster import KMeans  # takes seconds to import; before the limit, which binds what is loaded

    with threadpool_limits(1):
        means = KMeans(components, n_init=STARTS, random_state=seed % 2**32).fit(points_ND.numpy())
    return torch.from_numpy(np.unique(means.labels_, return_inverse=True)[1]).long()  # without empty clusters


def _directions(within_ND: torch.Tensor, rank: int, freedom: int) -> torch.Tensor:
    """The R leading principal directions (R, D), scaled to the variance that they add to that of the noise floor.

    As in probabilistic PCA (Tipping and Bishop, 1999): what the other directions have on average is noise.
    """
    dims = within_ND.shape[1]
    rank = min(rank, freedom, dims - 1)
    if rank < 1:
        return torch.zeros(0, dims, dtype=within_ND.dtype)
    _, singular, rows_RD = torch.linalg.svd(within_ND, full_matrices=False)
    spectrum = singular.square() / freedom
    floor = spectrum[rank:].sum() / (dims - rank)
    return (spectrum[:rank] - floor).clamp(min=0).sqrt()[:, None] * rows_RD[:rank]


def share_out(count_C: torch.Tensor, n: int) -> list[int]:
    """n images over components by weight (Sainte-Lague's highest averages); each gets one if there are enough."""
    weights = count_C.double()
    given = torch.full_like(weights, 1.0 if n >= len(weights) else 0.0)
    for _ in range(n - int(given.sum())):
        given[int((weights / (given + 0.5)).argmax())] += 1
    return [int(g) for g in given]


def components_of(count_C: torch.Tensor, n: int) -> torch.Tensor:
    """The component (n,) of each of the images that `match_mixture` gives."""
    return torch.arange(len(count_C)).repeat_interleave(torch.tensor(share_out(count_C, n)))


def weights_of(count_C: torch.Tensor, component_N: torch.Tensor) -> torch.Tensor:
    """What each image of a class stands for, (N,) float32 of mean 1: its component's share, split among its images.

    After the masses of optimal quantization in DDOQ (Tan and Slade, ICLR 2026, arXiv 2501.07681). The share of a
    component without an image is everyone's.
    """
    images_C = torch.bincount(component_N, minlength=len(count_C))
    weight_N = (count_C.double() / images_C)[component_N]
    return (weight_N / weight_N.mean()).float()


def match_mixture(
    mixture: Mixture,
    n: int,
    candidates: int,
    seed: int,
    label: int,
    medoids: bool = False,
    spread: groups.Spread = "std",
) -> torch.Tensor:
    """n latents (n, D): each component's share is matched to it exactly, in the space where it is white.

    A latent is mean + e_R factors + e_D sqrt(variance); all R + D columns of e have mean 0 and the `spread` of 1. A
    component with one image gives its mean, or with `medoids` its medoid. With one component and no directions this is
    groups.match_moments.
    """
    parts = []
    rank, dims = mixture.factors_RD.shape
    for c, share in enumerate(share_out(mixture.count_C, n)):
        if share == 0:
            continue
        key = seed if c == 0 else digest(f"component {c} of {seed}".encode())
        if share == 1:
            parts.append((mixture.medoid_CD if medoids else mixture.mean_CD)[c : c + 1])
            continue
        zero, one = torch.zeros(rank + dims), torch.ones(rank + dims)
        e_N = groups.match_moments(zero, one, share, candidates, key, label, spread)
        own_ND = e_N[:, rank:] * mixture.variance_CD[c].sqrt() + e_N[:, :rank] @ mixture.factors_RD
        parts.append(mixture.mean_CD[c] + own_ND)
    return torch.cat(parts)
