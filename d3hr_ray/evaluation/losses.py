"""What a student's batch costs, under hard labels and soft ones: the mean over images, or their mean by weights.

Weights w give sum(w l) / sum(w): what a batch would cost in which each image stood w times.
"""

import torch
from torch.nn import functional


def hard_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Cross entropy of logits (N, K) against class probabilities (N, K); `weights` (N,) above 0."""
    if weights is None:
        return functional.cross_entropy(logits, targets)
    return _weighted(functional.cross_entropy(logits, targets, reduction="none"), weights)


def soft_loss(
    logits: torch.Tensor, taught: torch.Tensor, temperature: float, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Divergence of a student's softmax at a temperature from a teacher's logits (N, K) at the same one.

    D3HR's and RDED's: batch mean, without the factor t^2 of Hinton et al. (2015).
    """
    own, soft = functional.log_softmax(logits / temperature, 1), functional.softmax(taught / temperature, 1)
    if weights is None:
        return functional.kl_div(own, soft, reduction="batchmean")
    return _weighted(functional.kl_div(own, soft, reduction="none").sum(1), weights)


def _weighted(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (weights * losses).sum() / weights.sum()
