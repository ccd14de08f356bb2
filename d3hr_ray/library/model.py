"""One pretrained latent diffusion model: images <=> latents <=> noised latents.

B images, K classes of the model. images: float (B, 3, S, S) in [-1, 1]; latents and noised latents: float32
(B, C, H, W), the VAE's, scaled to about unit variance. t counts the steps of the model's training, 0 (clean) to about
1000 (noise), and is a point of its grid.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from d3hr_ray.config import Solver
from d3hr_ray.library.errors import naming_arguments
from d3hr_ray.models.autoencoder import Autoencoder
from d3hr_ray.models.card import read_card
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.models.loading import load_networks, load_schedule
from d3hr_ray.numerics.ddim import Denoise
from d3hr_ray.numerics.schedule import Schedule
from d3hr_ray.numerics.solvers import INVERT, SAMPLE

Classes = int | Sequence[int] | torch.Tensor


@dataclass(frozen=True, eq=False)
class Model:
    """A VAE, a class-conditional DiT and their noise schedule, made by `load_model`.

    Every method takes tensors of any device and returns them on the model's, without gradients. A whole batch goes
    through the network at once: cut it to what fits into memory. A class is an id from 0, one for all images or one
    each. For gradients or other samplers use the parts: `autoencoder`, `denoiser`, `schedule`.
    """

    autoencoder: Autoencoder
    denoiser: Denoiser
    schedule: Schedule
    solver: Solver
    image_size: int
    class_names: tuple[str, ...] | None

    @property
    def num_classes(self) -> int:
        """K; class ids are 0 to K - 1."""
        return self.denoiser.null_class

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""
        return self.denoiser.latent_shape

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The grid, ascending from 0: what t may be."""
        return self.schedule.grid

    @property
    def device(self) -> torch.device:
        """Where the networks are, and what the methods return."""
        return self.denoiser.transformer.device

    @torch.no_grad()
    def encode(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """images => latents: the mode of the VAE's posterior, or its sample made with `noise`, as D3HR takes it.

        `noise` is standard normal and of the latents' shape. Raises ValueError for images of another size.
        """
        _require(images, (3, self.image_size, self.image_size), "images")
        if noise is not None:
            _require(noise, self.latent_shape, "noise", len(images))
            noise = noise.to(self.device)
        return self.autoencoder.encode(images.to(self.device), noise)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """latents => images, not clamped; `to_pixels` does that. Raises ValueError for another shape."""
        _require(latents, self.latent_shape, "latents")
        return self.autoencoder.decode(latents.to(self.device))

    def invert(self, latents: torch.Tensor, classes: Classes, t: int, *, guidance: float = 1.0) -> torch.Tensor:
        """latents => noised latents at t, by DDIM inversion: D3HR's domain mapping (arXiv 2505.18399).

        A forward pass per grid point up to t; two, if `guidance` (classifier-free; 1: none) is not 1. Raises ValueError
        for a wrong shape, a class that the model has not, or a t that is not on the grid.
        """
        return self.trajectory(latents, classes, [t], guidance=guidance)[t]

    @torch.no_grad()
    def trajectory(
        self, latents: torch.Tensor, classes: Classes, timesteps: Iterable[int], *, guidance: float = 1.0
    ) -> dict[int, torch.Tensor]:
        """latents => {t: noised latents} for several t at the cost of the largest; else as `invert`."""
        x, denoise = self._start(latents, classes, guidance)
        with naming_arguments():
            return INVERT[self.solver](denoise, x, self.schedule, timesteps)

    @torch.no_grad()
    def sample(self, noised: torch.Tensor, classes: Classes, t: int, *, guidance: float = 1.0) -> torch.Tensor:
        """Noised latents at t => latents: the way back of `invert`, which it undoes best at the same guidance.

        Pure noise belongs at `timesteps[-1]`. Raises ValueError as `invert` does.
        """
        x, denoise = self._start(noised, classes, guidance)
        with naming_arguments():
            return SAMPLE[self.solver](denoise, x, self.schedule, t)

    def _start(self, latents: torch.Tensor, classes: Classes, guidance: float) -> tuple[torch.Tensor, Denoise]:
        _require(latents, self.latent_shape, "latents")
        ids = torch.as_tensor(classes)
        ids = ids.expand(len(latents)) if ids.ndim == 0 else ids
        if ids.shape != (len(latents),) or ids.is_floating_point():
            raise ValueError(f"classes {tuple(ids.shape)} for {len(latents)} latents: give one id for all, or one each")
        if wrong := [k for k in ids.tolist() if not 0 <= k < self.num_classes]:
            raise ValueError(f"class {wrong[0]} is none of the model's: ids are 0 to {self.num_classes - 1}")
        return latents.to(self.device), self.denoiser.guided(ids.long().to(self.device), guidance)


def load_model(
    name: str,
    *,
    steps: int = 50,
    solver: Solver = "ddim",
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Model:
    """An embedded model (`digits`, `digits-affine`), a diffusers DiTPipeline folder or a hub id => the model, frozen.

    `steps` points of the noise schedule are the grid; `solver` "adams" (second order) comes as near with a third of
    them. The DiT is float32 on a CPU and bfloat16 on a GPU if `dtype` is None, the VAE always float32; the device is a
    GPU if there is one. Nothing global is touched: torch's threads, its random numbers and its precision settings stay
    the caller's. Raises ValueError for a model that is not there or not whole, and a grid that it cannot have.
    """
    place = str(device) if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype or (torch.float32 if place == "cpu" else torch.bfloat16)
    with naming_arguments(), torch.random.fork_rng(devices=[]):  # diffusers may draw weights before it reads them
        card = read_card(name)
        schedule = load_schedule(name, steps, solver)
        autoencoder, denoiser = load_networks(name, dtype, place)
    return Model(autoencoder, denoiser, schedule, solver, card.image_size, card.class_names)


def _require(x: torch.Tensor, shape: tuple[int, ...], what: str, rows: int | None = None) -> None:
    """Raise ValueError unless x is floating point and (rows, *shape); any number of rows if that is None."""
    if not x.is_floating_point():
        raise ValueError(f"{what} are {x.dtype}; give floating point (to_images makes images of uint8 pixels)")
    if x.shape[1:] != shape or (rows is not None and len(x) != rows):
        wanted = ", ".join(map(str, ("B" if rows is None else rows, *shape)))
        raise ValueError(f"{what} have the shape {tuple(x.shape)}; this model takes ({wanted})")
