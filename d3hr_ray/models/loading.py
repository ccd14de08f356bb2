"""From a model's name to its networks: an embedded model, a diffusers DiTPipeline folder, or a hub id.

Weights are read as safetensors where the folder has them; a hub's older .bin is read with weights_only, so that
nothing is ever unpickled from a model.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel
from diffusers.utils import is_accelerate_available
from safetensors import SafetensorError, safe_open

from d3hr_ray.config import Solver
from d3hr_ray.models.autoencoder import Autoencoder
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.numerics.schedule import Schedule, even_grid

ASSETS = Path(__file__).parent.parent / "assets"
PARTS = {
    "vae": ("config.json", "diffusion_pytorch_model.safetensors"),
    "transformer": ("config.json", "diffusion_pytorch_model.safetensors"),
    "scheduler": ("scheduler_config.json",),
}


def locate(name: str) -> str:
    """Model name => the local folder or hub id to load. Raises ValueError if it looks like a path that is not there."""
    if (ASSETS / name / "model_index.json").is_file():
        return str(ASSETS / name)
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        embedded = sorted(p.parent.name for p in ASSETS.glob("*/model_index.json"))
        raise ValueError(
            f"--model {name}: no such folder; give a diffusers DiTPipeline folder, a hub id such as "
            f"facebook/DiT-XL-2-256, or an embedded model ({', '.join(embedded)})"
        )
    return name


def portable(name: str) -> str:
    """A model's name for workers, whose working folder is another: a local folder becomes an absolute path."""
    where = Path(locate(name))
    return str(where.absolute()) if where.is_dir() and not where.is_relative_to(ASSETS) else name


@dataclass(frozen=True)
class ModelCard:
    """What a run must know of a model before loading its weights."""

    latent_shape: tuple[int, int, int]
    image_size: int
    num_classes: int
    class_names: tuple[str, ...] | None
    digest: str
    transformer: dict[str, Any]
    vae: dict[str, Any]


def read_card(name: str) -> ModelCard:
    """Read a model's configs. Raises ValueError naming the missing file and the flag if it cannot."""
    where = locate(name)
    transformer = dict(_config(DiTTransformer2DModel, where, "transformer"))
    vae = dict(_config(AutoencoderKL, where, "vae"))
    _config(DDIMScheduler, where, "scheduler")
    if Path(where).is_dir():
        for part in ("vae", "transformer"):
            _check_weights(Path(where) / part, where, part)
    channels, side = transformer["in_channels"], transformer["sample_size"]
    if vae["latent_channels"] != channels:
        raise ValueError(
            f"--model {name}: the VAE has {vae['latent_channels']} latent channels, the transformer {channels}"
        )
    names = Path(where) / "classes.json"
    return ModelCard(
        latent_shape=(channels, side, side),
        image_size=side * 2 ** (len(vae["block_out_channels"]) - 1),
        num_classes=transformer["num_embeds_ada_norm"],
        class_names=tuple(json.loads(names.read_text())) if names.is_file() else None,
        digest=_digest(where, transformer, vae),
        transformer=transformer,
        vae=vae,
    )


def load_networks(name: str, dtype: torch.dtype, device: str) -> tuple[Autoencoder, Denoiser]:
    """Load the VAE and the DiT, frozen, in eval mode. Raises ValueError naming what is missing.

    The VAE stays in float32 whatever `dtype` is: half precision costs image quality, and it is 1 % of the work.
    """
    where = locate(name)
    vae = _load(AutoencoderKL, where, "vae", torch.float32)
    transformer = _load(DiTTransformer2DModel, where, "transformer", dtype)
    networks = Autoencoder(vae), Denoiser(transformer)
    for network in networks:
        network.eval().requires_grad_(False).to(device)
    return networks


def load_schedule(name: str, steps: int, solver: Solver = "ddim") -> Schedule:
    """The model's own noise schedule, with diffusers' DDIM grid of `steps` points, or an even one for `adams`."""
    scheduler = DDIMScheduler.from_config(_config(DDIMScheduler, locate(name), "scheduler"))
    train_steps = scheduler.config.num_train_timesteps
    if steps > train_steps:
        raise ValueError(f"--ddim-steps {steps} is more than the model's {train_steps} training steps")
    if scheduler.config.prediction_type != "epsilon":
        raise ValueError(
            f"--model {name} predicts {scheduler.config.prediction_type!r}; only 'epsilon' models are supported"
        )
    scheduler.set_timesteps(steps)
    grid = tuple(sorted(int(t) for t in scheduler.timesteps))
    if solver == "adams":
        grid = even_grid(train_steps, steps)
    final = float(scheduler.final_alpha_cumprod)
    return Schedule(scheduler.alphas_cumprod.double(), grid, final)


def _config(kind: Any, where: str, part: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] = kind.load_config(where, subfolder=part)
    except OSError as error:
        raise ValueError(_missing(where, part)) from error
    return config


def _load(kind: Any, where: str, part: str, dtype: torch.dtype) -> Any:
    try:
        frugal = is_accelerate_available()  # without it the loading that saves memory is not there, and diffusers nags
        return kind.from_pretrained(where, subfolder=part, torch_dtype=dtype, low_cpu_mem_usage=frugal)
    except OSError as error:
        raise ValueError(_missing(where, part)) from error


def _check_weights(folder: Path, where: str, part: str) -> None:
    """Weights must be there and whole before a cluster is started for them; headers tell."""
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("*.bin")):
        raise ValueError(_missing(where, part))
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"--model {where}: {file} is not a whole safetensors file ({error}); copy it again"
            ) from error


def _missing(where: str, part: str) -> str:
    files = ", ".join(f"{part}/{f}" for f in PARTS[part])
    if Path(where).is_dir():
        return (
            f"--model {where}: the folder has no usable {part}; it needs {files} as diffusers' DiTPipeline saves them"
        )
    every = ", ".join(["model_index.json", *(f"{p}/{f}" for p, fs in PARTS.items() for f in fs)])
    return (
        f"--model {where}: {part} could not be read from the model hub; where the hub is reachable, download {every} "
        f"of {where} into a folder (hf download {where} --local-dir FOLDER) and give --model FOLDER"
    )


def _digest(where: str, *configs: dict[str, Any]) -> str:
    """Names the weights: their bytes for a folder, the id and the configs for a hub model."""
    hasher = hashlib.sha256(json.dumps(configs, sort_keys=True, default=str).encode())
    if not Path(where).is_dir():
        hasher.update(where.encode())
        return hasher.hexdigest()[:16]
    files = [p for part in PARTS for p in Path(where).glob(f"{part}/*")]
    for file in sorted(p for p in files if p.suffix in (".safetensors", ".bin")):
        hasher.update(file.parent.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                hasher.update(block)
    return hasher.hexdigest()[:16]
