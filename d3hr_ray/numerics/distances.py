"""Distances between two sets of images in a feature space, without training anything.

N real and M made images, F features, float64.
"""

import torch

ROWS = 1024  # of a kernel matrix held at once


def frechet(real_NF: torch.Tensor, made_MF: torch.Tensor) -> float:
    """Frechet distance of the two sets' Gaussians (Heusel et al., 2017): |m - m'|^2 + tr(S + S' - 2 (S S')^1/2).

    NaN for a single image on either side, which has no covariance.
    """
    if min(len(real_NF), len(made_MF)) < 2:
        return float("nan")
    real_NF, made_MF = real_NF.double(), made_MF.double()
    gap = (real_NF.mean(0) - made_MF.mean(0)).square().sum()
    s_FF, t_FF = torch.cov(real_NF.T), torch.cov(made_MF.T)
    # tr (S T)^1/2 is the sum of the singular values of S^1/2 T^1/2: no square root of an unsymmetric matrix.
    cross = torch.linalg.svdvals(_root(s_FF) @ _root(t_FF)).sum()
    return float(gap + s_FF.trace() + t_FF.trace() - 2 * cross)


def _root(s_FF: torch.Tensor) -> torch.Tensor:
    values, vectors_FF = torch.linalg.eigh(s_FF)
    return vectors_FF * values.clamp(min=0).sqrt() @ vectors_FF.T


def kernel_distance(real_NF: torch.Tensor, made_MF: torch.Tensor) -> float:
    """Unbiased squared MMD under the kernel (x.y / F + 1)^3: KID (Binkowski et al., 2018) without its subsets.

    NaN for a single image on either side, of which there is no such estimate.
    """
    real_NF, made_MF = real_NF.double(), made_MF.double()
    n, m, dims = len(real_NF), len(made_MF), real_NF.shape[1]
    if min(n, m) < 2:
        return float("nan")

    def total(a: torch.Tensor, b: torch.Tensor) -> float:
        return sum(float(((part @ b.T / dims + 1) ** 3).sum()) for part in a.split(ROWS))

    def among(a: torch.Tensor) -> float:
        return total(a, a) - float(((a.square().sum(1) / dims + 1) ** 3).sum())

    within = among(real_NF) / (n * (n - 1)) + among(made_MF) / (m * (m - 1))
    return within - 2 * total(real_NF, made_MF) / (n * m)


def coverage(real_NF: torch.Tensor, made_MF: torch.Tensor, k: int = 5) -> float:
    """Share of real images with a made one nearer than their k-th real neighbour (Naeem et al., 2020)."""
    between_NN = torch.cdist(real_NF.double(), real_NF.double())
    radius_N = between_NN.kthvalue(min(k + 1, len(real_NF)), dim=1).values  # the first is the image itself
    return float((torch.cdist(real_NF.double(), made_MF.double()).amin(1) <= radius_N).double().mean())


def diversity(made_MF: torch.Tensor) -> float:
    """Mean distance between two images of a set; NaN for a single one."""
    return float(torch.pdist(made_MF.double()).mean())
