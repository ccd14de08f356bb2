"""From a model's name to its networks: an embedded model, a diffusers DiTPipeline folder, or a hub id.

Weights are read as safetensors where the folder has them; a hub's older .bin is read with weights_only, so that
nothing is ever unpickled from a model. diffusers takes 10 s to import: a driver, which loads nothing, does without.
"""

import logging
from typing import Any

import torch

from d3hr_ray.config import Solver
from d3hr_ray.models.autoencoder import Autoencoder
from d3hr_ray.models.card import locate, missing, sampling_grid
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.numerics.schedule import Schedule

LOG = logging.getLogger("d3hr_ray")


def load_networks(name: str, dtype: torch.dtype, device: str) -> tuple[Autoencoder, Denoiser]:
    """Load the VAE and the DiT, frozen, in eval mode. Raises ValueError naming what is missing.

    The VAE stays in float32 whatever `dtype` is: half precision costs image quality, and it is 1 % of the work.
    """
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    where = locate(name)
    vae = load_part(AutoencoderKL, where, "vae", torch.float32)
    transformer = load_part(DiTTransformer2DModel, where, "transformer", dtype)
    networks = Autoencoder(vae), Denoiser(transformer)
    for network in networks:
        network.eval().requires_grad_(False).to(device)
    return networks


def load_schedule(name: str, steps: int, solver: Solver = "ddim") -> Schedule:
    """The model's own noise schedule, with diffusers' DDIM grid of `steps` points, or an even one for `adams`."""
    grid = sampling_grid(name, steps, solver)
    scheduler = _load_scheduler(locate(name))
    if grid is None:
        scheduler.set_timesteps(steps)
        grid = tuple(sorted(int(t) for t in scheduler.timesteps))
    final = float(scheduler.final_alpha_cumprod)
    return Schedule(scheduler.alphas_cumprod.double(), grid, final)


def _load_scheduler(where: str) -> Any:
    from diffusers import DDIMScheduler

    try:
        return DDIMScheduler.from_pretrained(where, subfolder="scheduler")
    except OSError as error:
        raise ValueError(missing(where, "scheduler")) from error


def load_part(kind: Any, where: str, part: str, dtype: torch.dtype) -> Any:
    """A network of diffusers' from a part of a model. Raises ValueError if its weights are not there, or not all."""
    from diffusers.utils import is_accelerate_available

    try:
        frugal = is_accelerate_available()  # without it the loading that saves memory is not there, and diffusers nags
        made, told = kind.from_pretrained(
            where, subfolder=part, torch_dtype=dtype, low_cpu_mem_usage=frugal, output_loading_info=True
        )
    except OSError as error:
        raise ValueError(missing(where, part)) from error
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"--model {where}: the weights of {part} do not fit its config.json ({str(error)[:300]})"
        ) from error
    lacking, unused = sorted(told["missing_keys"]), sorted(told["unexpected_keys"])
    if lacking:
        more = f", and has {len(unused)} that it has no place for, such as {unused[0]}" if unused else ""
        raise ValueError(
            f"--model {where}: {part} lacks {len(lacking)} of the tensors that its config.json asks for, such as "
            f"{lacking[0]}{more}; save it by diffusers' save_pretrained"
        )
    if unused:
        LOG.warning(f"--model {where}: {len(unused)} tensors of {part} have no place in it, such as {unused[0]}")
    return made
