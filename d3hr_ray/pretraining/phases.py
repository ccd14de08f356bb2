"""The two phases in order, for one worker: images -> VAE -> scaled latents -> DiT. Knows files but not Ray."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from d3hr_ray.models.autoencoder import Autoencoder, to_images
from d3hr_ray.numerics.seeds import generator, normal
from d3hr_ray.pretraining.networks import Networks
from d3hr_ray.pretraining.objectives import DitObjective, VaeObjective
from d3hr_ray.pretraining.optimise import Inputs, Loop, Row
from d3hr_ray.pretraining.settings import SCRATCH, Phase, PretrainConfig
from d3hr_ray.pretraining.state import State, Tell, silent
from d3hr_ray.pretraining.stream import Batch, ImageStream
from d3hr_ray.store import Store

SCALE = f"{SCRATCH}/scale.json"
SCALE_IMAGES = 8192  # enough for the latents' std to 1 part in 1,000
ENCODE_BATCH = 64


@dataclass(frozen=True)
class World:
    """Who this worker is, where it computes, and how it reaches the others."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    report: Callable[[Row], None] = lambda row: None
    tell: Tell = silent


@dataclass
class Worker:
    """One worker's share of a training run."""

    config: PretrainConfig
    networks: Networks
    stream: ImageStream
    store: Store
    world: World

    def run(self) -> list[Row]:
        """Train the VAE, set its scaling factor, train the DiT; the networks end with their averaged weights."""
        curve = self._train_vae() if self.config.vae.steps else []
        vae = self.networks.vae.to(self.world.device).eval().requires_grad_(False)
        if self.config.init is None:
            vae.register_to_config(scaling_factor=1 / self._kept_std())
        return curve + self._train_dit()

    def _loop(self, name: str, phase: Phase) -> Loop:
        c, w = self.config, self.world
        every = c.log_every, c.checkpoint_every
        return Loop(name, phase, self.store, *every, w.device, w.rank, w.wrap, w.report, w.tell)

    def _train_vae(self) -> list[Row]:
        objective = VaeObjective(self.networks.vae, self.config.kl_weight)
        return self._loop("vae", self.config.vae).run(objective, self._vae_inputs)

    def _train_dit(self) -> list[Row]:
        alphas = self.networks.scheduler.alphas_cumprod
        objective = DitObjective(self.networks.transformer, alphas)
        return self._loop("dit", self.config.dit).run(objective, self._dit_inputs)

    def _vae_inputs(self, start: int) -> Iterator[Inputs]:
        size = self.config.vae.batch_size // self.world.size
        for step, batch in enumerate(self.stream.batches(size, start), start):
            yield to_images(torch.from_numpy(batch.pixels)), self._noise("vae", step, size)

    def _dit_inputs(self, start: int) -> Iterator[Inputs]:
        """Latents of the stream's images, with fresh posterior noise, timesteps and dropped labels at each step."""
        size, steps = self.config.dit.batch_size // self.world.size, len(self.networks.scheduler.alphas_cumprod)
        null = self.networks.transformer.config.num_embeds_ada_norm
        encoder = self._encoder()
        for step, batch in enumerate(self.stream.batches(size, start), start):
            draw = generator("dit", self.config.seed, step, self.world.rank)
            # One uniform draw shifted per image covers all t in every batch (Kingma et al., 2021, appendix I.1).
            timesteps = ((draw.random() + np.arange(size) / size) % 1 * steps).astype(np.int64)
            classes = np.where(draw.random(size) < self.config.class_dropout, null, batch.labels)
            latents = encoder(batch, self._noise("posterior", step, size))
            yield latents, self._noise("dit", step, size), torch.from_numpy(timesteps), torch.from_numpy(classes)

    def _noise(self, what: str, step: int, size: int) -> torch.Tensor:
        config = self.networks.transformer.config
        shape = (size, config.in_channels, config.sample_size, config.sample_size)
        return normal(shape, "noise", what, self.config.seed, step, self.world.rank)

    @torch.no_grad()
    def _posterior(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Images => mean and std of their latents, unscaled, (B, C, H, W) each."""
        images = to_images(torch.from_numpy(batch.pixels)).to(self.world.device)
        posterior = self.networks.vae.encode(images).latent_dist
        return posterior.mean, posterior.std

    def _posteriors(self, phase: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        """Rows of the listing => those that can be read, and the means and stds of their latents, batch by batch."""
        for batch in self.stream.fixed(ENCODE_BATCH, rows):
            yield batch.indices, *self._posterior(batch)
            self.world.tell(State(phase, int(np.searchsorted(rows, batch.indices[-1])) + 1, len(rows), "image"))

    def _kept_std(self) -> float:
        """The latents' std as it was when the DiT's training began: its second half must not see another scale."""
        if self.store.exists(SCALE):
            return float(self.store.read_json(SCALE)["latent_std"])
        begun = self.store.exists(f"{SCRATCH}/dit.pt")  # by an older version, which took the first images
        rows = np.arange(min(SCALE_IMAGES, len(self.stream))) if begun else self.stream.spread(SCALE_IMAGES)
        std = self._latent_std(rows)
        if self.world.rank == 0:
            self.store.write_json(SCALE, {"latent_std": std})
        return std

    def _latent_std(self, rows: np.ndarray) -> float:
        """Std of the sampled latents over all dims: that of the means plus the posterior's own, in float64."""
        total, squares, count = 0.0, 0.0, 0
        for _, *posterior in self._posteriors("scale of the latents", rows):
            mean, std = (x.double() for x in posterior)
            total += float(mean.sum())
            squares += float((mean.square() + std.square()).sum())
            count += mean.numel()
        return (squares / count - (total / count) ** 2) ** 0.5

    def _encoder(self) -> Callable[[Batch, torch.Tensor], torch.Tensor]:
        """(batch, noise) => scaled latents; a small set is encoded once, a large one batch by batch."""
        scale = Autoencoder(self.networks.vae).scale
        if not self.stream.small:

            def encode(batch: Batch, noise: torch.Tensor) -> torch.Tensor:
                mean, std = self._posterior(batch)
                return (mean + std * noise.to(mean.device)) * scale

            return encode
        rows, *parts = zip(*self._posteriors("latents", np.arange(len(self.stream))), strict=True)
        means, stds = (torch.cat(part) * scale for part in parts)
        place = np.zeros(len(self.stream), int)  # of a row's latents; rows that cannot be read are never asked for
        place[np.concatenate(rows)] = np.arange(len(means))

        def look_up(batch: Batch, noise: torch.Tensor) -> torch.Tensor:
            rows = torch.from_numpy(place[batch.indices]).to(means.device)
            return means[rows] + stds[rows] * noise.to(means.device)

        return look_up
