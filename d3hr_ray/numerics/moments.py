"""Mergeable per-dimension mean and variance in float64 (Chan, Golub and LeVeque, 1979).

N samples, K labels, D latent dims.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Moments:
    """Count, mean (D,) and sum of squared deviations (D,) of a set of samples, float64."""

    count: int
    mean_D: torch.Tensor
    m2_D: torch.Tensor

    @staticmethod
    def of(samples_ND: torch.Tensor) -> "Moments":
        """Moments of the rows of a matrix; zero rows give the merge's identity."""
        x_ND = samples_ND.double()
        if len(x_ND) == 0:
            zero_D = torch.zeros(x_ND.shape[1], dtype=torch.float64)
            return Moments(0, zero_D, zero_D)
        mean_D = x_ND.mean(0)
        return Moments(len(x_ND), mean_D, (x_ND - mean_D).square().sum(0))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the union of two disjoint sets; associative and order-free to rounding."""
        count = self.count + other.count
        if count == 0:
            return self
        delta_D = other.mean_D - self.mean_D
        mean_D = self.mean_D + delta_D * (other.count / count)
        m2_D = self.m2_D + other.m2_D + delta_D.square() * (self.count * other.count / count)
        return Moments(count, mean_D, m2_D)

    def variance(self) -> torch.Tensor:
        """Unbiased variance (D,). Raises ValueError below 2 samples, where it is undefined."""
        if self.count < 2:
            raise ValueError(f"variance of {self.count} sample is undefined; at least 2 are needed")
        return self.m2_D / (self.count - 1)


ROWS = 32  # summed at once: at D = 4096 a megabyte of doubles, which stays in the cache


class PowerSums:
    """Sums of x and x^2 per label, float64, of half-precision samples: one pass, without a loop over labels.

    A square of a float16 is exact in float64, so the moments of a million samples are as exact as those of two passes
    unless a mean is thousands of standard deviations from 0, where float16 has no digits left.
    """

    def __init__(self, dims: int) -> None:
        self.count_K = torch.zeros(0, dtype=torch.int64)
        self.sum_KD, self.square_KD = _zeros(0, dims), _zeros(0, dims)

    def add(self, samples_ND: torch.Tensor, labels_N: torch.Tensor) -> None:
        """Count more samples, float16 (N, D), with labels (N,) from 0."""
        labels_N = labels_N.long()
        self._grow(int(labels_N.max()) + 1)
        self.count_K += labels_N.bincount(minlength=len(self.count_K))
        for x_RD, labels_R in zip(samples_ND.split(ROWS), labels_N.split(ROWS), strict=True):
            x_RD = x_RD.double()
            self.sum_KD.index_add_(0, labels_R, x_RD)
            self.square_KD.index_add_(0, labels_R, x_RD.mul_(x_RD))

    def moments(self) -> dict[int, Moments]:
        """Moments of every label that has samples."""
        return {k: self._moments(k) for k in self.count_K.nonzero().flatten().tolist()}

    def _moments(self, label: int) -> Moments:
        count, mean_D = int(self.count_K[label]), self.sum_KD[label] / self.count_K[label]
        return Moments(count, mean_D, (self.square_KD[label] - mean_D * self.sum_KD[label]).clamp(min=0))

    def _grow(self, labels: int) -> None:
        """Room for so many labels, at least twice what there was; rows that no sample touches take no memory."""
        have, dims = self.sum_KD.shape
        if labels > have:
            room = max(labels, 2 * have)
            self.count_K, old_K = torch.zeros(room, dtype=torch.int64), self.count_K
            self.count_K[:have] = old_K
            for name in ("sum_KD", "square_KD"):
                grown = _zeros(room, dims)
                grown[:have] = getattr(self, name)
                setattr(self, name, grown)


def _zeros(*shape: int) -> torch.Tensor:
    """Of numpy, which asks for huge pages: touching 1000 x 4096 of them first took 6 ms instead of 26."""
    return torch.from_numpy(np.zeros(shape))
