"""CaO2's second stage: move a latent so that the network predicts the noise in it better (arXiv 2506.22637).

B images, I iterations. Each image's loss has its own maximum and the losses are summed, so every image's gradient, and
with Adam, which works per element, its whole path, is what it would be alone.
"""

from collections.abc import Callable

import torch

# (x_t (B, ...), the timestep that each image's network is told (B,)) => predicted noise
PredictEach = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def noise_loss(predicted: torch.Tensor, noise: torch.Tensor, linf: float) -> torch.Tensor:
    """Loss of each image (B,): the mean squared error of its noise, plus `linf` times the largest error."""
    error = (predicted - noise).flatten(1)
    loss: torch.Tensor = error.square().mean(1) + linf * error.abs().amax(1)
    return loss


def optimise_latents(
    predict: PredictEach,
    latents: torch.Tensor,
    noise: torch.Tensor,
    alphas_IB: torch.Tensor,
    told_IB: torch.Tensor,
    lr: float,
    linf: float,
) -> torch.Tensor:
    """Latents (B, ...) => latents after I Adam steps on `noise_loss`, each image against its own fixed noise.

    `alphas_IB` are the cumulative alphas that the noise is mixed in with, `told_IB` the timesteps that the network is
    told. In the authors' code the two disagree: it mixes for t = 20..224 and says 1..11.
    """
    x = latents.float().clone().requires_grad_()
    adam = torch.optim.Adam([x], lr)
    for alphas_B, told_B in zip(alphas_IB, told_IB, strict=True):
        a = alphas_B.reshape(-1, *[1] * (x.ndim - 1)).to(x)
        loss = noise_loss(predict(a.sqrt() * x + (1 - a).sqrt() * noise, told_B), noise, linf).sum()
        (x.grad,) = torch.autograd.grad(loss, x)
        adam.step()
    return x.detach()
