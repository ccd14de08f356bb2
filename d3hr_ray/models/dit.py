"""The denoiser contract, `denoise(x, t) -> eps`, over a diffusers DiT with classifier-free guidance.

Guidance, the learned-sigma split, dtype and the null class live here and nowhere else.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from d3hr_ray.numerics.ancestral import Predict
from d3hr_ray.numerics.ddim import Denoise

if TYPE_CHECKING:  # loading.py imports it where it is needed
    from diffusers import DiTTransformer2DModel


class Denoiser(nn.Module):
    """A class-conditional DiT. The null class is the model's own last embedding, `num_embeds_ada_norm`."""

    def __init__(self, transformer: "DiTTransformer2DModel") -> None:
        super().__init__()
        self.transformer = transformer
        self.compiled_sizes: set[int] | None = None  # None: not compiled, any batch runs as it is

    @property
    def null_class(self) -> int:
        """Class id of the unconditional embedding; also the number of classes."""
        return int(self.transformer.config.num_embeds_ada_norm)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        config = self.transformer.config
        return config.in_channels, config.sample_size, config.sample_size

    def eps(self, x: torch.Tensor, t: int | torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """x_t (B, C, H, W), t for all or one each (B,), class ids (B,) => predicted noise, float32, without sigma."""
        return self._outputs(x, t, classes)[:, : x.shape[1]]

    def _outputs(self, x: torch.Tensor, t: int | torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        x, steps, classes = self._inputs(x, t, classes)
        out = self.transformer(x, timestep=steps, class_labels=classes, return_dict=False)
        both: torch.Tensor = out[0][:rows].float()
        return both

    def features(self, x: torch.Tensor, t: int, classes: torch.Tensor, block: int) -> torch.Tensor:
        """x_t (B, C, H, W), t, class ids (B,) => what a block, counted from 0, gives, (B, F) float32: the mean of its
        tokens. The blocks above it are not run.
        """
        rows = len(x)
        hidden, steps, classes = self._inputs(x, t, classes)
        hidden = self.transformer.pos_embed(hidden)
        for layer in self.transformer.transformer_blocks[: block + 1]:
            hidden = layer(hidden, timestep=steps, class_labels=classes)
        return hidden[:rows].float().mean(1)

    def _inputs(
        self, x: torch.Tensor, t: int | torch.Tensor, classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the transformer takes, in its dtype; if it is compiled, in a batch of a size that is."""
        # A number copied to a GPU would wait for all work queued there; filling does not.
        steps = t.expand(len(x)) if isinstance(t, torch.Tensor) else torch.full((len(x),), t, device=x.device)
        x = x.to(self.transformer.dtype)
        if self.compiled_sizes is None:
            return x, steps, classes
        size = self._compiled_size(len(x))
        return _padded(x, size), _padded(steps, size), _padded(classes, size)

    def _compiled_size(self, rows: int) -> int:
        """A batch size that is compiled already and wastes less than half, else this one, which then is."""
        assert self.compiled_sizes is not None
        size = min((s for s in self.compiled_sizes if rows <= s < 2 * rows), default=rows)
        self.compiled_sizes.add(size)
        return size

    def guided(self, classes: torch.Tensor, scale: float, channels: int | None = None) -> Denoise:
        """Class ids (B,) => denoise(x, t) with guidance `scale`; scale 1 costs one pass, not two.

        `channels`: guide only the first so many; DiT's and CaO2's code guides 3 of 4 (facebookresearch/DiT issue 41).
        """
        predict = self.predictor(classes, scale, channels)
        return lambda x, t: predict(x, t)[0]

    def predictor(self, classes: torch.Tensor, scale: float, channels: int | None = None) -> Predict:
        """Like `guided`, for ancestral sampling: (noise, the class's own learnt variance or None)."""
        both = torch.cat([classes, torch.full_like(classes, self.null_class)])

        def predict(x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor | None]:
            n = x.shape[1]
            if scale == 1:
                out = self._outputs(x, t, classes)
                eps = out[:, :n]
            else:
                out, null = self._outputs(torch.cat([x, x]), t, both).chunk(2)
                eps = _guide(out[:, :n], null[:, :n], scale, channels)
            return eps, out[:, n:] if out.shape[1] > n else None

        return predict


def _guide(given: torch.Tensor, null: torch.Tensor, scale: float, channels: int | None) -> torch.Tensor:
    guided = null + scale * (given - null)
    return guided if channels is None else torch.cat([guided[:, :channels], given[:, channels:]], 1)


def _padded(rows: torch.Tensor, size: int) -> torch.Tensor:
    """The rows, the last one repeated up to `size`."""
    return rows if len(rows) == size else torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])
