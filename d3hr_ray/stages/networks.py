"""What an actor loads once: the run's networks and schedule, as fast as its device allows."""

import torch

from d3hr_ray.config import RunConfig
from d3hr_ray.models.accelerate import accelerate
from d3hr_ray.models.autoencoder import Autoencoder
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.models.loading import load_networks, load_schedule
from d3hr_ray.numerics.schedule import Schedule
from d3hr_ray.runtime import telemetry


def open_model(config: RunConfig, device: str) -> tuple[Schedule, Autoencoder, Denoiser]:
    """What an actor loads once: the run's schedule, and its networks in the run's dtype on a device."""
    if device == "cpu":
        torch.set_num_threads(1)  # sums round differently with other thread counts
    schedule = load_schedule(config.model.name, config.inversion.steps, config.inversion.solver)
    autoencoder, denoiser = load_networks(config.model.name, getattr(torch, config.model.dtype), device)
    if device != "cpu" and config.fidelity != "official":
        accelerate(autoencoder, denoiser)
    denoiser.transformer.register_forward_hook(telemetry.count_forwards)
    return schedule, autoencoder, denoiser
