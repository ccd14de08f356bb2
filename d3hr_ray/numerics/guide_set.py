"""Set guidance: the images of a class come together to its mean and std, and away from each other.

After class-guided sampling of RSM+CGS (CVPR 2026), which descends on the distance of the noised set's mean and on
-log det of its cosine kernel. Here it is the predicted clean latents that move: a share of the way to both moments,
which needs no step size, and so to those of one timestep near the images.
"""

# N images of a class, D latent dims, K classes

import torch

from d3hr_ray.numerics.guides import Guide

RIDGE = 0.01  # on the cosine kernel: equal images, or more images than dims, make it singular
CONSTANT = 1e-6  # std of a dim below which there is nothing to scale


def to_moments(
    mean_KD: torch.Tensor, std_KD: torch.Tensor, labels: torch.Tensor, strength: float, repulsion: float = 0.0
) -> Guide:
    """Clean latents of a class are repelled, then go a share `strength` of the way to its mean and unbiased std.

    Moments are at the places of labels; `labels` (N,) are the images', and those of a class must be sampled together.
    """

    def guide(clean: torch.Tensor, noised: torch.Tensor, t: int) -> torch.Tensor:
        moved = clean.clone()
        for label in labels.unique().tolist():
            own = labels == label
            spread_ND = repelled(clean[own].flatten(1).double(), repulsion)
            met_ND = matched(spread_ND, mean_KD[label], std_KD[label], strength)
            moved[own] = met_ND.reshape(clean[own].shape).to(clean)
        return moved

    return guide


def matched(images_ND: torch.Tensor, mean_D: torch.Tensor, std_D: torch.Tensor, strength: float) -> torch.Tensor:
    """Images whose mean and unbiased std are a share `strength` nearer to those given; of one image only the mean."""
    own_D = images_ND.mean(0)
    goal_D = own_D + strength * (mean_D.to(images_ND) - own_D)
    if len(images_ND) == 1:
        return goal_D[None]
    spread_D = images_ND.std(0)
    scale_D = 1 + strength * (std_D.to(images_ND) / spread_D.clamp(min=CONSTANT) - 1)
    return goal_D + torch.where(spread_D > CONSTANT, scale_D, 1.0) * (images_ND - own_D)


def clean_std(std: torch.Tensor, alpha: float) -> torch.Tensor:
    """Std of latents that are noised to a cumulative `alpha` => that of the clean ones.

    Exact for data N(m, s^2), whose variance there is alpha s^2 + 1 - alpha. On the digits of the package 3 % off at
    t = 100; std / sqrt(alpha) alone is 9 % off.
    """
    return ((std.square() - (1 - alpha)).clamp(min=0) / alpha).sqrt()


def repelled(images_ND: torch.Tensor, repulsion: float) -> torch.Tensor:
    """Images after a step down `log_det_gradient`, in units of their own lengths.

    An image goes at most 10 x `repulsion` of its length: the gradient by directions is at most 1 / sqrt(RIDGE). Two
    equal images stay so, as they are where the energy is highest and the gradient 0; the least difference grows.
    """
    if not repulsion:
        return images_ND
    return images_ND - repulsion * images_ND.square().sum(1, keepdim=True) * log_det_gradient(images_ND)


def log_det_gradient(images_ND: torch.Tensor) -> torch.Tensor:
    """Gradient (N, D) of the determinantal energy -log det(C + RIDGE I), C the cosines between images (N, N)."""
    length_N1 = images_ND.norm(dim=1, keepdim=True).clamp(min=1e-12)
    unit_ND = images_ND / length_N1
    kernel_NN = unit_ND @ unit_ND.T + RIDGE * torch.eye(len(unit_ND)).to(unit_ND)
    slope_ND = -2 * torch.linalg.solve(kernel_NN, unit_ND)  # by directions; of it counts what is across them
    return (slope_ND - (slope_ND * unit_ND).sum(1, keepdim=True) * unit_ND) / length_N1
