"""What a run must know of a model before its weights are loaded: read from small files, without torch or diffusers."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from d3hr_ray.config import Solver
from d3hr_ray.numerics.grids import even_grid, leading_grid

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

    @property
    def blocks(self) -> int:
        """How many blocks the DiT has."""
        return int(self.transformer["num_layers"])


def read_card(name: str) -> ModelCard:
    """Read a model's configs. Raises ValueError naming the missing file and the flag if it cannot."""
    where = locate(name)
    transformer = _config(where, "transformer")
    vae = _config(where, "vae")
    _config(where, "scheduler")
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


def sampling_grid(name: str, steps: int, solver: Solver = "ddim") -> tuple[int, ...] | None:
    """The grid of a model's sampler, ascending; None for a spacing that diffusers alone knows (load_schedule).

    Raises ValueError for a grid that the model cannot have, and for a model that predicts anything but epsilon.
    """
    config: dict[str, Any] = {"prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 0}
    config |= {"num_train_timesteps": 1000} | _config(locate(name), "scheduler")
    train_steps = config["num_train_timesteps"]
    if steps > train_steps:
        raise ValueError(f"--ddim-steps {steps} is more than the model's {train_steps} training steps")
    if config["prediction_type"] != "epsilon":
        raise ValueError(f"--model {name} predicts {config['prediction_type']!r}; only 'epsilon' models are supported")
    if solver == "adams":
        return even_grid(train_steps, steps)
    plain = config["timestep_spacing"] == "leading" and config["steps_offset"] == 0
    return leading_grid(train_steps, steps) if plain else None


def _config(where: str, part: str) -> dict[str, Any]:
    """A part's config, from its folder or from the hub."""
    file = PARTS[part][0]
    try:
        path = Path(where) / part / file
        if not Path(where).is_dir():
            from huggingface_hub import hf_hub_download  # a second to import: only for what is not here

            path = Path(hf_hub_download(where, f"{part}/{file}"))
        config: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(missing(where, part)) from error
    return config


def _check_weights(folder: Path, where: str, part: str) -> None:
    """Weights must be there and whole before a cluster is started for them; headers tell."""
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("*.bin")):
        raise ValueError(missing(where, part))
    for file in files:
        try:
            with safe_open(file, "np"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"--model {where}: {file} is not a whole safetensors file ({error}); copy it again"
            ) from error


def missing(where: str, part: str) -> str:
    """What to say where a part of a model is not there or cannot be used."""
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
