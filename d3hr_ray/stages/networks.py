"""What an actor loads once: the run's networks and schedule, as fast as its device allows."""

from collections.abc import Callable

import torch

from d3hr_ray.config import RunConfig
from d3hr_ray.models.accelerate import accelerate, exact_float32
from d3hr_ray.models.autoencoder import Autoencoder
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.models.loading import load_networks, load_schedule
from d3hr_ray.numerics.schedule import Schedule
from d3hr_ray.runtime import telemetry

Networks = tuple[Autoencoder, Denoiser]
OpenNetworks = Callable[[str, str, bool, str], Networks]  # model, dtype, fast, device


def open_networks(name: str, dtype: str, fast: bool, device: str) -> Networks:
    """A model's networks, loaded and, on a GPU and if `fast`, compiled: that takes up to minutes."""
    autoencoder, denoiser = load_networks(name, getattr(torch, dtype), device)
    if device != "cpu" and fast:
        accelerate(autoencoder, denoiser)
    denoiser.transformer.register_forward_hook(telemetry.count_forwards)
    return autoencoder, denoiser


def open_model(
    config: RunConfig, device: str, networks: OpenNetworks = open_networks
) -> tuple[Schedule, Autoencoder, Denoiser]:
    """The run's schedule, and its networks in the run's dtype on a device.

    Who opens the models of several runs gives a cached `open_networks` as `networks`.
    """
    if device == "cpu":  # on a GPU the authors' code has TF32, and `accelerate` sees to ours
        exact_float32(device)
    schedule = load_schedule(config.model.name, config.inversion.steps, config.inversion.solver)
    return schedule, *networks(config.model.name, config.model.dtype, config.fidelity != "official", device)
