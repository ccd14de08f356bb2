"""What an actor does with its networks: noised latents => clean latents => optimised latents => images.

Every draw is keyed by (seed, label, index) of the image it is for.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from d3hr_ray.config import RunConfig
from d3hr_ray.numerics import ddim
from d3hr_ray.numerics.ancestral import ancestral
from d3hr_ray.numerics.grids import ancestral_grid
from d3hr_ray.numerics.guide_features import descended
from d3hr_ray.numerics.guides import Guide, steer
from d3hr_ray.numerics.latent_optimisation import optimise_latents
from d3hr_ray.numerics.schedule import Schedule
from d3hr_ray.numerics.seeds import generator, normal
from d3hr_ray.numerics.solvers import SAMPLE, Sample
from d3hr_ray.runtime.batching import run_batches
from d3hr_ray.stages.networks import OpenNetworks, open_model, open_networks

OFFICIAL_GUIDED = 3  # channels of 4 that CaO2's authors guide, as DiT's code does
OFFICIAL_BANK, OFFICIAL_BANK_SEED = 1024, 42  # their noises of stage 2


class Sampler:
    """Holds the networks of one actor. Rows are those of subsets/: label, index, seed, latent."""

    def __init__(
        self, config: RunConfig, classes: pa.Table, device: str, networks: OpenNetworks = open_networks
    ) -> None:
        self.config, self.device = config, device
        self.schedule, self.autoencoder, self.denoiser = open_model(config, device, networks)
        self.model_classes = torch.tensor(classes["model_class"].to_pylist())

    def starts(self, rows: pa.Table) -> torch.Tensor:
        """The latents of rows, (N, C, H, W) float32."""
        latents = torch.tensor(np.stack(rows["latent"].to_pylist()), dtype=torch.float32)
        return latents.reshape(-1, *self.denoiser.latent_shape)

    def steered(self, rows: pa.Table, timestep: int, guide: Guide, until: int) -> torch.Tensor:
        """Like `sample`, with a guide of all rows at once down to t = `until`; the network sees the same batches."""
        starts, classes = self.starts(rows), self._classes(rows)
        scale = self.config.synthesis.guidance

        def denoise(x: torch.Tensor, t: int) -> torch.Tensor:
            def work(part: slice) -> torch.Tensor:
                return self.denoiser.guided(classes[part], scale)(x[part].to(self.device), t).cpu()

            return torch.cat(run_batches(work, len(x), self._batch))

        with torch.inference_mode():
            pulled = steer(denoise, guide, self.schedule, until)
            return SAMPLE[self.config.inversion.solver](pulled, starts, self.schedule, timestep)

    def drawn_to(self, labels: Sequence[int], block: int, means: Mapping[int, torch.Tensor], strength: float) -> Guide:
        """The guide of images of labels (N,) to the mean features {t: (N, F)} of a block, in the network's batches."""
        classes = self.model_classes[torch.tensor(labels)].long().to(self.device)

        def guide(clean: torch.Tensor, noised: torch.Tensor, t: int) -> torch.Tensor:
            def work(part: slice) -> torch.Tensor:
                own, goals = classes[part], means[t][part].to(self.device)
                x_0, x_t = clean[part].to(self.device), noised[part].to(self.device)
                features = partial(self.denoiser.features, t=t, classes=own, block=block)
                return descended(features, x_0, x_t, goals, self.schedule.alpha(t), strength).cpu()

            return torch.cat(run_batches(work, len(clean), self._batch))

        return guide

    def sample(self, rows: pa.Table, timestep: int | None) -> torch.Tensor:
        """Rows noised to `timestep` (None: pure noise) => clean latents (N, C, H, W) on the CPU, in fixed batches."""
        starts, classes = self.starts(rows), self._classes(rows)
        scale = self.config.synthesis.guidance

        def by_grid(part: slice) -> torch.Tensor:
            walk, start = sampling_walk(self.config, self.schedule, timestep)
            denoise = self.denoiser.guided(classes[part], scale)
            return walk(denoise, starts[part].to(self.device), self.schedule, start).cpu()

        def by_ancestry(part: slice) -> torch.Tensor:
            keys, shape = self._keys(rows.slice(part.start, part.stop - part.start)), starts.shape[1:]
            channels = OFFICIAL_GUIDED if self.config.has_quirk("channels") else None
            predict = self.denoiser.predictor(classes[part], scale, channels)

            def draw(t: int) -> torch.Tensor:
                return torch.stack([normal(tuple(shape), "ancestral", *key, t) for key in keys]).to(self.device)

            return ancestral(predict, starts[part].to(self.device), self._ancestral_schedule(), draw).cpu()

        ddpm = self.config.method == "cao2" and self.config.cao2.sampler == "ddpm"
        with torch.inference_mode():
            return torch.cat(run_batches(by_ancestry if ddpm else by_grid, len(starts), self._batch))

    def optimise(self, rows: pa.Table, latents: torch.Tensor) -> torch.Tensor:
        """CaO2's second stage on clean latents (N, C, H, W), in fixed batches; nothing happens with 0 iterations."""
        cao2 = self.config.cao2
        if not (self.config.has_pool and cao2.iterations):
            return latents
        schedule, keys = self._ancestral_schedule(), self._keys(rows)
        grid = torch.tensor(schedule.grid)
        low, high = cao2.levels
        draws = [generator("levels", *k).integers(low, high + 1, cao2.iterations) for k in keys]
        places_IN = torch.from_numpy(np.stack(draws, 1))
        alphas_IN = schedule.alphas_cumprod[grid[places_IN]].float()
        told_IN = places_IN if self.config.has_quirk("levels") else grid[places_IN]
        noise = _official_noise(latents, keys) if self.config.has_quirk("bank") else _noise(latents, keys)
        given = self._classes(rows)
        classes = given if cao2.condition == "class" else torch.full_like(given, self.denoiser.null_class)

        def work(part: slice) -> torch.Tensor:
            moved = optimise_latents(
                lambda x, t: self.denoiser.eps(x, t.to(self.device), classes[part]),
                latents[part].to(self.device),
                noise[part].to(self.device),
                alphas_IN[:, part].to(self.device),
                told_IN[:, part],
                cao2.lr,
                cao2.linf,
            )
            return moved.cpu()

        return torch.cat(run_batches(work, len(latents), self._batch))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Clean latents => images (N, 3, H, W) on the CPU. Raises ValueError if they are not finite."""
        with torch.inference_mode():
            parts = run_batches(
                lambda part: self.autoencoder.decode(latents[part].to(self.device)).cpu(), len(latents), self._batch
            )
        images = torch.cat(parts)
        if not torch.isfinite(images).all():
            raise ValueError("NaN or inf in the images; check the model, lower --guidance, or use --dtype float32")
        return images

    def decode_with_gradient(self, latents: torch.Tensor) -> torch.Tensor:
        """Clean latents => images in [-1, 1] as they will be saved, on the device they are on, in one batch."""
        return self.autoencoder.decode(latents).clamp(-1, 1)

    @property
    def _batch(self) -> int | str:
        return self.config.inversion.batch_size

    def _classes(self, rows: pa.Table) -> torch.Tensor:
        return self.model_classes[torch.tensor(rows["label"].to_pylist())].long().to(self.device)

    def _keys(self, rows: pa.Table) -> list[tuple[int, int, int]]:
        """(seed, label, index) of each row: of its own set, whose seed is not always that of the actor's config."""
        return list(zip(*(rows[name].to_pylist() for name in ("seed", "label", "index")), strict=True))

    def _ancestral_schedule(self) -> Schedule:
        schedule = self.schedule
        grid = ancestral_grid(len(schedule.alphas_cumprod), self.config.inversion.steps)
        return Schedule(schedule.alphas_cumprod, grid, schedule.final_alpha)


def _noise(latents: torch.Tensor, keys: list[tuple[int, int, int]]) -> torch.Tensor:
    """One noise per image, kept through all iterations."""
    return torch.stack([normal(tuple(latents.shape[1:]), "optimise", *key) for key in keys])


def _official_noise(latents: torch.Tensor, keys: list[tuple[int, int, int]]) -> torch.Tensor:
    """One noise per image of the authors' bank. Theirs is picked by an unseeded generator; ours is keyed."""
    draw = torch.Generator().manual_seed(OFFICIAL_BANK_SEED)
    bank = torch.randn(OFFICIAL_BANK, *latents.shape[1:], generator=draw)
    return bank[[int(generator("bank", *key).integers(OFFICIAL_BANK)) for key in keys]]


def sampling_walk(config: RunConfig, schedule: Schedule, timestep: int | None) -> tuple[Sample, int]:
    """The walk from latents at `timestep` down to clean ones, and where it starts: at t, or one grid step above it with
    floor 1, as the authors' code does. Without a timestep they are pure noise, which belongs at the top of the grid.
    """
    walk = SAMPLE[config.inversion.solver]
    if timestep is None:
        return walk, schedule.grid[-1]
    if config.has_quirk("start"):
        return partial(ddim.sample, floor=1), schedule.above(timestep)
    return walk, timestep
