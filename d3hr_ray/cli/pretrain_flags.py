"""The flags of jobs/pretrain.py."""

from dataclasses import dataclass
from typing import Literal

from d3hr_ray.cli.flags import with_own
from d3hr_ray.config import DataConfig, setting
from d3hr_ray.config.fields import CLUSTER, DATA, MODEL, OUTPUT, TRAINING


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
    image_size: int | None = setting(
        None, "Side of the training images in pixels (with --init, the model's).", MODEL, shown="the preset's"
    )
    vae_steps: int | None = setting(None, "Training steps of the VAE.", TRAINING, shown="the preset's")
    dit_steps: int | None = setting(None, "Training steps of the DiT.", TRAINING, shown="the preset's")
    batch_size: int | None = setting(
        None, "Images per step over all workers, for both phases.", TRAINING, shown="the preset's"
    )
    vae_lr: float | None = setting(None, "Peak learning rate of the VAE.", TRAINING, shown="the preset's")
    dit_lr: float | None = setting(None, "Peak learning rate of the DiT.", TRAINING, shown="the preset's")
    kl_weight: float | None = setting(
        None,
        "Weight of the VAE's mean KL per latent element against its mean squared error.",
        TRAINING,
        shown="the preset's",
    )
    class_dropout: float | None = setting(
        None, "Share of labels replaced by the null class, which guidance needs.", TRAINING, shown="the preset's"
    )
    ema: float | None = setting(
        None, "Decay of the averaged weights, which are the ones kept.", TRAINING, shown="the preset's"
    )
    latent_channels: int | None = setting(None, "Channels of the latents.", MODEL, shown="the preset's")
    vae_channels: tuple[int, ...] = setting(
        (), "The VAE's widths at each resolution; every one but the first halves the side.", MODEL, shown="the preset's"
    )
    patch_size: int | None = setting(None, "Side of the DiT's patches in latent cells.", MODEL, shown="the preset's")
    dit_layers: int | None = setting(None, "Blocks of the DiT.", MODEL, shown="the preset's")
    dit_heads: int | None = setting(None, "Attention heads of the DiT.", MODEL, shown="the preset's")
    dit_width: int | None = setting(None, "Hidden width of the DiT.", MODEL, shown="the preset's")
    seed: int | None = setting(None, "Decides weights, order and noise.", TRAINING, shown="the preset's")
    checkpoint_every: int | None = setting(
        None, "Steps between checkpoints, a multiple of 50.", OUTPUT, shown="the preset's"
    )
    workers: int = setting(0, "Ray Train workers that train together; 0 trains in this process.", CLUSTER)
    gpus_per_worker: float | None = setting(
        None, "GPUs per worker, whole ones; 0 for CPUs.", CLUSTER, shown="1, or 0 on a cluster without GPUs"
    )
    threads: int = setting(1, "CPU threads per worker; another number gives weights that differ by rounding.", CLUSTER)
    address: str | None = setting(
        None, "Ray cluster for --workers.", CLUSTER, metavar="ADDRESS", shown="RAY_ADDRESS, else a local Ray"
    )
    overwrite: bool = setting(False, "Delete the model and checkpoints in --out and start anew.", OUTPUT)
    check: str | None = setting(
        None,
        "Train nothing: measure this trained model on held-out images (--data, or the digits' test split), print JSON.",
        OUTPUT,
        metavar="FOLDER",
    )
    check_samples: int | None = setting(
        None, "Samples that --check draws, spread over the classes.", OUTPUT, shown="500"
    )


def check_flags(flags: PretrainFlags) -> None:
    """Raise ValueError for samples that cannot be drawn."""
    if flags.check is None and flags.check_samples is not None:
        raise ValueError("--check-samples needs --check: the trained model to measure")
    if flags.check_samples is not None and flags.check_samples < 1:
        raise ValueError(f"--check-samples {flags.check_samples} must be at least 1")
