"""Mode guidance (MGD3, Chan-Santiago et al., ICML 2025): each image is pulled towards the mean of one cluster."""

import torch

from d3hr_ray.numerics.guides import Guide


def towards(modes: torch.Tensor, strength: float) -> Guide:
    """Clean latents (N, ...) go a share `strength` of the way to their modes, of the same shape; 1 is all of it."""
    return lambda clean, noised, t: clean + strength * (modes.to(clean) - clean)
