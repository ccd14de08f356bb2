"""Feature guidance: what a network sees in an image comes to what it sees, on average, in real images of its class.

After DAP (ICLR 2026), which descends on the mean distance of a block's features of x_t to those of real images
that are noised to the same t. Here their mean stands for them, so that no real image is needed while a set is sampled,
and features are means over an image's tokens: what it shows, not where, and few enough to keep.
"""

# N images, D latent dims, F features

from collections.abc import Callable

import torch

# x_t (N, ...) => features (N, F), each image's of itself alone, with a gradient
Features = Callable[[torch.Tensor], torch.Tensor]

TRIAL = 0.05  # length of the step that is tried, in lengths of the image: half precision still sees it


def descended(
    features: Features,
    clean: torch.Tensor,
    noised: torch.Tensor,
    goal_NF: torch.Tensor,
    alpha: float,
    strength: float,
) -> torch.Tensor:
    """Clean latents (N, ...) after a step down the distance r = |phi(x_t) - goal| of each image's features.

    With x_t = sqrt(alpha) x_0 + sqrt(1 - alpha) eps and eps held, x_0 goes `strength` d k along d = -grad r / |grad r|.
    The length k is where the features, taken as linear between x_0 and a trial step of TRIAL |x_0|, come nearest to
    the goal: k = -<m, g> TRIAL |x_0| / |g|^2 with m = phi - goal and g = phi(trial) - phi. So nothing depends on the
    scale of latents or features; linear features come nearer at every strength up to 1, and where r is least nothing
    moves. No image goes further than its own length, and none back. Two evaluations, one of them with its gradient.
    """
    clean_ND, root = clean.flatten(1), alpha**0.5
    found_NF, slope_ND = _with_slope(features, noised, goal_NF)
    trial_ND = -TRIAL * clean_ND.norm(dim=1, keepdim=True) * _unit(slope_ND)
    with torch.no_grad():
        change_NF = features(noised + root * trial_ND.reshape(noised.shape)) - found_NF
    share_N = -((found_NF - goal_NF) * change_NF).sum(1) / _positive(change_NF.square().sum(1))
    steps_N1 = share_N.clamp(0, 1 / TRIAL).to(trial_ND)[:, None]
    return (clean_ND + strength * steps_N1 * trial_ND).reshape(clean.shape)


def _with_slope(features: Features, noised: torch.Tensor, goal_NF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of noised latents, and the gradient (N, D) of their distances to the goal."""
    with torch.inference_mode(False), torch.enable_grad():
        x = noised.clone().requires_grad_()
        found_NF = features(x)
        (slope,) = torch.autograd.grad(found_NF, x, _unit(found_NF.detach() - goal_NF))
    return found_NF.detach(), slope.flatten(1)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / _positive(rows.norm(dim=1, keepdim=True))


def _positive(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(min=torch.finfo(values.dtype).tiny)
