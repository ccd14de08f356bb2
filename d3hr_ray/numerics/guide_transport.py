"""Optimal-transport guidance: the images of a class share its support points out among them, by the points' masses.

After distribution-matching guidance with optimal transport (DMGD). The plan is Sinkhorn's (Cuturi, 2013), in logs.
"""

from collections import defaultdict
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
    rows = {label: torch.nonzero(labels == label).flatten() for label in labels.unique().tolist()}
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)  # classes of one shape are planned at once
    for label, own in rows.items():
        alike[len(own), len(points[label])].append(label)

    stacked = [[torch.stack([of[c] for c in group]) for of in (rows, points, masses)] for group in alike.values()]

    def guide(clean: torch.Tensor, noised: torch.Tensor, t: int) -> torch.Tensor:
        moved = clean.clone()
        for own_CN, points_CKD, mass_CK in stacked:
            images_CND = clean[own_CN].flatten(2)
            points_CKD, mass_CK = points_CKD.to(images_CND), mass_CK.to(images_CND)
            aim_CND = plan(images_CND, points_CKD, mass_CK) @ points_CKD * own_CN.shape[1]
            moved[own_CN] = (images_CND + strength * (aim_CND - images_CND)).reshape(clean[own_CN].shape)
        return moved

    return guide


def plan(images_ND: torch.Tensor, points_KD: torch.Tensor, mass_K: torch.Tensor) -> torch.Tensor:
    """How much of each image goes to each point, (N, K): rows sum to 1 / N, columns to the points' shares of mass.

    Any leading dims are of problems side by side.
    """
    cost_NK = torch.cdist(images_ND.double(), points_KD.double()).square()
    log_NK = -cost_NK / (SHARPNESS * cost_NK.mean((-2, -1), keepdim=True).clamp(min=1e-12))
    row = -log(images_ND.shape[-2])
    columns_1K = (mass_K.double() / mass_K.double().sum(-1, keepdim=True)).log()[..., None, :]
    for _ in range(ROUNDS):
        log_NK = log_NK + (columns_1K - log_NK.logsumexp(-2, keepdim=True))
        log_NK = log_NK + (row - log_NK.logsumexp(-1, keepdim=True))
    return log_NK.exp().to(images_ND)
