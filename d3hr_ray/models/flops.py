"""What a pass through a model's networks costs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from d3hr_ray.models.card import ModelCard
from d3hr_ray.models.classifiers import ConvNet

STEP = 3  # forwards' worth of one forward and backward pass


@dataclass(frozen=True)
class Cost:
    """FLOP of one pass: denoiser forward, VAE encode, VAE decode, per image."""

    forward: float
    encode: float
    decode: float


def count_flop(card: ModelCard) -> Cost:
    """Count the networks' FLOP (2 per multiply-add) on meta tensors: no weights and no memory are needed."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(card.vae).eval()
        x = torch.zeros(1, *card.latent_shape)
        images = torch.zeros(1, 3, card.image_size, card.image_size)
        return Cost(
            forward=forward_flop(card),
            encode=_count(lambda: vae.encode(images)),
            decode=_count(lambda: vae.decode(x)),
        )


def forward_flop(card: ModelCard) -> float:
    """FLOP of a forward of a model's DiT, per image."""
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        return denoiser_flop(DiTTransformer2DModel.from_config(card.transformer).eval(), card.latent_shape)


def denoiser_flop(dit: nn.Module, latent_shape: tuple[int, int, int]) -> float:
    """FLOP of a forward of a DiT on the meta device, per image."""
    with torch.device("meta"):
        x, one = torch.zeros(1, *latent_shape), torch.zeros(1, dtype=torch.long)
        return _count(lambda: dit(x, timestep=one, class_labels=one))


def convnet_flop(width: int, side: int) -> float:
    """FLOP of a forward of a ConvNet-3, per image."""
    with torch.device("meta"):
        net, images = ConvNet(1, side, width), torch.zeros(1, 3, side, side)
        return _count(lambda: net(images))


def _count(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return float(counter.get_total_flops())
