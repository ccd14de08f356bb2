"""The VAE: images (float [-1, 1] BCHW) <=> latents (x0, scaled, float32)."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:  # loading.py imports it where it is needed
    from diffusers import AutoencoderKL


class Autoencoder(nn.Module):
    """A diffusers AutoencoderKL with its scaling factor applied; in and out are float32 whatever its dtype.

    `tf32`: let a GPU's tensor cores round its products to TF32; what runs beside it is left as it is.
    """

    def __init__(self, vae: "AutoencoderKL") -> None:
        super().__init__()
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)
        self.tf32 = False

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent's cell."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def encode(self, images: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """images => latents: the posterior's sample made with `noise`, or its mode if that is None."""
        with _tf32(self.tf32):
            posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        mean = posterior.mean.float()
        latents = mean if noise is None else mean + posterior.std.float() * noise
        return latents * self.scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """latents => images, not clamped."""
        with _tf32(self.tf32):
            return self.vae.decode((latents / self.scale).to(self.vae.dtype)).sample.float()


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Within this block float32 products of a GPU are TF32 if `allowed`; else as torch is set."""
    if not allowed:
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def to_images(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (uint8 BHWC) => images (float32 [-1, 1] BCHW)."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Images (float BCHW) => pixels (uint8 BHWC), clamped and rounded."""
    return ((images + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)
