"""Mergeable per-dimension mean and variance in float64 (Chan, Golub and LeVeque, 1979).

N samples, D latent dims.
"""

from dataclasses import dataclass

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
