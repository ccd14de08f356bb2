"""What the two phases minimise, as modules, so that DistributedDataParallel can wrap them.

B images; D latent dims in any shape (C, H, W).
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:  # networks.py imports it where it is needed
    from diffusers import AutoencoderKL, DiTTransformer2DModel

Losses = dict[str, torch.Tensor]  # "loss" is minimised; the others are for the curves


class VaeObjective(nn.Module):
    """Squared error of the reconstruction plus the weighted KL to N(0, 1) (Kingma and Welling, 2014, eq. 10)."""

    def __init__(self, vae: "AutoencoderKL", kl_weight: float) -> None:
        super().__init__()
        self.vae, self.kl_weight = vae, kl_weight

    @property
    def trained(self) -> nn.Module:
        """The network whose weights are averaged and kept."""
        return self.vae

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> Losses:
        """Images (B, 3, S, S) in [-1, 1], standard normal noise like the latents => mean losses."""
        posterior = self.vae.encode(images).latent_dist
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        error = (decoded - images).square().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return {"loss": error + self.kl_weight * kl, "mse": error, "kl": kl}


class DitObjective(nn.Module):
    """Squared error of the predicted noise (Ho et al., 2020, eq. 14). A learned sigma, if any, is left alone.

    The network stays in eval mode: in train mode diffusers' DiT drops labels in every block on its own, so that the
    null class is never learnt. Whoever calls drops the labels instead.
    """

    def __init__(self, transformer: "DiTTransformer2DModel", alphas_cumprod: torch.Tensor) -> None:
        super().__init__()
        self.transformer = transformer.eval()
        self.alphas: torch.Tensor
        self.register_buffer("alphas", alphas_cumprod.float())

    @property
    def trained(self) -> nn.Module:
        """The network whose weights are averaged and kept."""
        return self.transformer

    def forward(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, classes: torch.Tensor
    ) -> Losses:
        """Scaled latents and noise (B, C, H, W), timesteps and class ids (B,) => mean loss."""
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        out = self.transformer(noised, timestep=timesteps, class_labels=classes, return_dict=False)[0]
        return {"loss": (out[:, : latents.shape[1]] - noise).square().mean()}
