"""What a pass through a model's networks costs."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from d3hr_ray.models.card import ModelCard


@dataclass(frozen=True)
class Cost:
    """FLOP of one pass: denoiser forward, VAE encode, VAE decode, per image."""

    forward: float
    encode: float
    decode: float


def count_flop(card: ModelCard) -> Cost:
    """Count the networks' FLOP (2 per multiply-add) on meta tensors: no weights and no memory are needed."""
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    with torch.device("meta"):
        dit = DiTTransformer2DModel.from_config(card.transformer).eval()
        vae = AutoencoderKL.from_config(card.vae).eval()
        x = torch.zeros(1, *card.latent_shape)
        images = torch.zeros(1, 3, card.image_size, card.image_size)
        one = torch.zeros(1, dtype=torch.long)

        def count(work: object) -> float:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                work()  # type: ignore[operator]
            return float(counter.get_total_flops())

        return Cost(
            forward=count(lambda: dit(x, timestep=one, class_labels=one)),
            encode=count(lambda: vae.encode(images)),
            decode=count(lambda: vae.decode(x)),
        )
