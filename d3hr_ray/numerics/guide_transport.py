"""Optimal-transport guidance: the images of a class share its support points out among them, by the points' masses.

After distribution-matching guidance with optimal transport (DMGD). The plan is Sinkhorn's (Cuturi, 2013), in logs.
"""

from math import log

import torch

from d3hr_ray.numerics.guides import Guide

SHARPNESS = 0.05  # of the plan: its entropy's weight, in mean costs; near 0 each image has one point
ROUNDS = 200


def to_support(points: list[torch.Tensor], masses: list[torch.Tensor], labels: torch.Tensor, strength: float) -> Guide:
    """Clean latents go a share `strength` of the way to the mean of the points that the plan gives them.

    A class has points (K, D) with masses (K,), at the place of its label; `labels` (N,) are the images'. Images of a
    class must be sampled together.
    """

    def guide(clean: torch.Tensor, t: int) -> torch.Tensor:
        moved = clean.clone()
        for label in labels.unique().tolist():
            own = labels == label
            flat = clean[own].flatten(1)
            points_KD = points[label].to(flat)
            aim = plan(flat, points_KD, masses[label].to(flat)) @ points_KD * len(flat)
            moved[own] = (flat + strength * (aim - flat)).reshape(clean[own].shape)
        return moved

    return guide


def plan(images_ND: torch.Tensor, points_KD: torch.Tensor, mass_K: torch.Tensor) -> torch.Tensor:
    """How much of each image goes to each point, (N, K): rows sum to 1 / N, columns to the points' shares of mass."""
    cost_NK = torch.cdist(images_ND.double(), points_KD.double()).square()
    log_NK = -cost_NK / (SHARPNESS * cost_NK.mean().clamp(min=1e-12))
    row = -log(len(images_ND))
    columns_K = (mass_K.double() / mass_K.double().sum()).log()
    for _ in range(ROUNDS):
        log_NK = log_NK + (columns_K - log_NK.logsumexp(0))
        log_NK = log_NK + (row - log_NK.logsumexp(1, keepdim=True))
    return log_NK.exp().to(images_ND)
