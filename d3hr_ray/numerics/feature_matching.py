"""Distribution matching (Zhao and Bilen, WACV 2023, eq. 5), moving latents instead of pixels as GLaD does (CVPR 2023).

N images of K classes, F features. Classes share nothing, so that any part of them can be refined alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    at_once: int,
) -> torch.Tensor:
    """Latents (N, ...) => latents after `steps` Adam steps under each network of `order`, one after the other.

    `network(k)` gives the k-th features, and their means (K, F) over the real images of each label 0..K-1. The loss is
    the squared distance of the classes' mean features from these, summed. The rate falls from `lr` to 0 by a cosine.
    At most `at_once` images go through decoder and network together; of more, each goes forward twice.
    """
    x = latents.float().clone().requires_grad_()
    member_KN = torch.nn.functional.one_hot(labels_N).T.to(x)
    member_KN /= member_KN.sum(1, keepdim=True)
    adam, total = torch.optim.Adam([x], lr), len(order) * steps
    for place, number in enumerate(order):
        features, real_KF = network(number)
        for step in range(steps):
            adam.param_groups[0]["lr"] = lr * (1 + cos(pi * (place * steps + step) / total)) / 2
            x.grad = _gradient(x, member_KN, real_KF, _Seen(decode, features), at_once)
            adam.step()
    return x.detach()


@dataclass(frozen=True)
class _Seen:
    """Latents => the features of their images."""

    decode: Callable[[torch.Tensor], torch.Tensor]
    features: Features

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        return self.features(self.decode(latents))


def _gradient(
    x: torch.Tensor, member_KN: torch.Tensor, real_KF: torch.Tensor, features: Features, at_once: int
) -> torch.Tensor:
    """The loss's gradient. It needs all images at once only for the classes' means M, where it is 2 (M - real)."""
    if len(x) <= at_once:
        return torch.autograd.grad((member_KN @ features(x) - real_KF).square().sum(), x)[0]
    parts = x.detach().split(at_once)
    with torch.no_grad():
        mean_KF = member_KN @ torch.cat([features(part) for part in parts])
    pull_NF = member_KN.T @ (2 * (mean_KF - real_KF))
    return torch.cat([_pulled(part, pull, features) for part, pull in zip(parts, pull_NF.split(at_once), strict=True)])


def _pulled(part: torch.Tensor, pull: torch.Tensor, features: Features) -> torch.Tensor:
    part = part.requires_grad_()
    return torch.autograd.grad(features(part), part, pull)[0]
