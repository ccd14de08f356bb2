"""Distribution matching (Zhao and Bilen, WACV 2023, eq. 5), moving latents instead of pixels as GLaD does (CVPR 2023).

N images of K classes, F features. Classes share nothing, so that any part of them can be refined alone.
"""

from collections.abc import Callable, Sequence
from math import cos, pi

import torch

Features = Callable[[torch.Tensor], torch.Tensor]  # images (N, ...) => (N, F)


def match_features(
    latents: torch.Tensor,
    labels_N: torch.Tensor,
    decode: Callable[[torch.Tensor], torch.Tensor],
    network: Callable[[int], tuple[Features, torch.Tensor]],
    order: Sequence[int],
    steps: int,
    lr: float,
) -> torch.Tensor:
    """Latents (N, ...) => latents after `steps` Adam steps under each network of `order`, one after the other.

    `network(k)` gives the k-th features, and their means (K, F) over the real images of each label 0..K-1. The loss is
    the squared distance of the classes' mean features from these, summed. The rate falls from `lr` to 0 by a cosine.
    """
    x = latents.float().clone().requires_grad_()
    member_KN = torch.nn.functional.one_hot(labels_N).T.to(x)
    member_KN /= member_KN.sum(1, keepdim=True)
    adam, total = torch.optim.Adam([x], lr), len(order) * steps
    for place, number in enumerate(order):
        features, real_KF = network(number)
        for step in range(steps):
            adam.param_groups[0]["lr"] = lr * (1 + cos(pi * (place * steps + step) / total)) / 2
            loss = (member_KN @ features(decode(x)) - real_KF).square().sum()
            (x.grad,) = torch.autograd.grad(loss, x)
            adam.step()
    return x.detach()
