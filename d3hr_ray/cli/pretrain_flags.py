"""The flags of jobs/pretrain.py."""

from dataclasses import dataclass
from typing import Any, Literal

from d3hr_ray.cli import machine_flags
from d3hr_ray.cli.flags import with_own
from d3hr_ray.config import DataConfig, setting
from d3hr_ray.config.fields import CLUSTER, DATA, MODEL, OUTPUT, TRAINING

SAMPLES = 500  # that --check draws


def _preset(help: str, group: str) -> Any:
    """A field that is the preset's where it is not given."""
    return setting(None, help, group, shown="the preset's")


@with_own(DataConfig, "format", "classes", "max_rejected", "class_depth", "image_column", "label_column")
@dataclass(frozen=True)
class PretrainFlags:
    """A flag that is not given takes the preset's value."""

    preset: Literal["digits", "digits-affine", "custom"] = setting(
        "digits",
        "digits and digits-affine are the embedded models' recipes; custom starts from DiT-S/2 at 256 pixels.",
        DATA,
    )
    data: str | None = setting(
        None,
        "Training images: a folder, file or URI, or digits, digits-affine (needed by --preset custom).",
        DATA,
        metavar="URI",
        shown="the preset's",
    )
    out: str | None = setting(
        None,
        "Folder or URI for the model; every worker must reach it.",
        OUTPUT,
        metavar="URI",
        shown="runs/pretrain-<preset>",
    )
    init: str | None = setting(
        None,
        "Fine-tune this DiTPipeline folder or hub id; its VAE is kept unless --vae-steps says how long to train it.",
        MODEL,
        metavar="FOLDER|ID",
    )
    image_size: int | None = _preset("Side of the training images in pixels (with --init, the model's).", MODEL)
    vae_steps: int | None = _preset("Training steps of the VAE.", TRAINING)
    dit_steps: int | None = _preset("Training steps of the DiT.", TRAINING)
    batch_size: int | None = _preset("Images per step over all workers, for both phases.", TRAINING)
    vae_lr: float | None = _preset("Peak learning rate of the VAE.", TRAINING)
    dit_lr: float | None = _preset("Peak learning rate of the DiT.", TRAINING)
    kl_weight: float | None = _preset(
        "Weight of the VAE's mean KL per latent element against its mean squared error.", TRAINING
    )
    class_dropout: float | None = _preset("Share of labels replaced by the null class, which guidance needs.", TRAINING)
    ema: float | None = _preset("Decay of the averaged weights, which are the ones kept.", TRAINING)
    latent_channels: int | None = _preset("Channels of the latents.", MODEL)
    vae_channels: tuple[int, ...] = setting(
        (), "The VAE's widths at each resolution; every one but the first halves the side.", MODEL, shown="the preset's"
    )
    patch_size: int | None = _preset("Side of the DiT's patches in latent cells.", MODEL)
    dit_layers: int | None = _preset("Blocks of the DiT.", MODEL)
    dit_heads: int | None = _preset("Attention heads of the DiT.", MODEL)
    dit_width: int | None = _preset("Hidden width of the DiT.", MODEL)
    seed: int | None = _preset("Decides weights, order and noise.", TRAINING)
    checkpoint_every: int | None = _preset("Steps between checkpoints, a multiple of 50.", OUTPUT)
    workers: int = setting(0, "Ray Train workers that train together; 0 trains in this process.", CLUSTER)
    gpus_per_worker: float | None = setting(
        None, "GPUs per worker, whole ones; 0 for CPUs.", CLUSTER, shown="1, or 0 on a cluster without GPUs"
    )
    threads: int = setting(1, "CPU threads per worker; another number gives weights that differ by rounding.", CLUSTER)
    address: str | None = machine_flags.address("Ray cluster for --workers.")
    overwrite: bool = setting(False, "Delete the model and checkpoints in --out and start anew.", OUTPUT)
    check: str | None = setting(
        None,
        "Train nothing: measure this trained model on held-out images (--data, or the digits' test split), print JSON.",
        OUTPUT,
        metavar="FOLDER",
    )
    check_samples: int | None = setting(
        None, "Samples that --check draws, spread over the classes.", OUTPUT, shown=str(SAMPLES)
    )


def check_flags(flags: PretrainFlags) -> None:
    """Raise ValueError for samples that cannot be drawn."""
    if flags.check is None and flags.check_samples is not None:
        raise ValueError("--check-samples needs --check: the trained model to measure")
    if flags.check_samples is not None and flags.check_samples < 1:
        raise ValueError(f"--check-samples {flags.check_samples} must be at least 1")
