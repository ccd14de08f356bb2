"""The denoiser contract, `denoise(x, t) -> eps`, over a diffusers DiT with classifier-free guidance.

Guidance, the learned-sigma split, dtype and the null class live here and nowhere else.
"""

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from d3hr_ray.numerics.ddim import Denoise


class Denoiser(nn.Module):
    """A class-conditional DiT. The null class is the model's own last embedding, `num_embeds_ada_norm`."""

    def __init__(self, transformer: DiTTransformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer

    @property
    def null_class(self) -> int:
        """Class id of the unconditional embedding; also the number of classes."""
        return int(self.transformer.config.num_embeds_ada_norm)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        config = self.transformer.config
        return config.in_channels, config.sample_size, config.sample_size

    def eps(self, x: torch.Tensor, t: int, classes: torch.Tensor) -> torch.Tensor:
        """x_t (B, C, H, W) and class ids (B,) => predicted noise, float32; a learned sigma is split off."""
        steps = torch.full((len(x),), t, device=x.device)
        out = self.transformer(x.to(self.transformer.dtype), timestep=steps, class_labels=classes, return_dict=False)[0]
        return out[:, : x.shape[1]].float()

    def guided(self, classes: torch.Tensor, scale: float) -> Denoise:
        """Class ids (B,) => denoise(x, t) with guidance `scale` on all channels; scale 1 costs one pass, not two."""
        if scale == 1:
            return lambda x, t: self.eps(x, t, classes)
        both = torch.cat([classes, torch.full_like(classes, self.null_class)])

        def denoise(x: torch.Tensor, t: int) -> torch.Tensor:
            given, null = self.eps(torch.cat([x, x]), t, both).chunk(2)
            return null + scale * (given - null)

        return denoise
