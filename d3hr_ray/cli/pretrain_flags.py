"""The flags of jobs/pretrain.py."""

from dataclasses import dataclass
from typing import Literal

from d3hr_ray.cli.parsing import Ints, Words
from d3hr_ray.config import Format


@dataclass(frozen=True)
class PretrainFlags:
    """A flag that is not given takes the preset's value."""

    preset: Literal["digits", "digits-affine", "custom"] = "digits"
    """digits and digits-affine are the embedded models' recipes; custom starts from DiT-S/2 at 256 pixels."""
    data: str | None = None
    """Training images: a folder, file or URI, or digits, digits-affine (needed by --preset custom)."""
    format: Format = "auto"
    """Layout of --data."""
    class_depth: int | None = None
    """Of an image folder: the level whose folders are the classes, in --data. Default: 1, if clear."""
    image_column: str | None = None
    """Of Parquet, in --data: the column of images. Default: found by its name, such as image."""
    label_column: str | None = None
    """Of Parquet, in --data: the column of labels. Default: found by its name, such as label."""
    classes: Words = ()
    """Class names, one file of names, or a named subset; their order becomes the model's. Default: all."""
    max_rejected: float | None = None
    """Share of unreadable images above which the run fails. Default: 0.01."""
    out: str | None = None
    """Folder or URI for the model; every worker must reach it. Default: runs/pretrain-<preset>."""
    init: str | None = None
    """Fine-tune this DiTPipeline folder or hub id; its VAE is kept unless --vae-steps says how long to train it."""
    image_size: int | None = None
    """Side of the training images in pixels (with --init, the model's)."""
    vae_steps: int | None = None
    """Training steps of the VAE."""
    dit_steps: int | None = None
    """Training steps of the DiT."""
    batch_size: int | None = None
    """Images per step over all workers, for both phases."""
    vae_lr: float | None = None
    """Peak learning rate of the VAE."""
    dit_lr: float | None = None
    """Peak learning rate of the DiT."""
    kl_weight: float | None = None
    """Weight of the VAE's mean KL per latent element against its mean squared error."""
    class_dropout: float | None = None
    """Share of labels replaced by the null class, which guidance needs."""
    ema: float | None = None
    """Decay of the averaged weights, which are the ones kept."""
    latent_channels: int | None = None
    """Channels of the latents."""
    vae_channels: Ints = ()
    """The VAE's widths at each resolution; every one but the first halves the side."""
    patch_size: int | None = None
    """Side of the DiT's patches in latent cells."""
    dit_layers: int | None = None
    """Blocks of the DiT."""
    dit_heads: int | None = None
    """Attention heads of the DiT."""
    dit_width: int | None = None
    """Hidden width of the DiT."""
    seed: int | None = None
    """Decides weights, order and noise."""
    checkpoint_every: int | None = None
    """Steps between checkpoints, a multiple of 50."""
    workers: int = 0
    """Ray Train workers that train together; 0 trains in this process."""
    gpus_per_worker: float | None = None
    """GPUs per worker, whole ones; 0 for CPUs. Default 1, or 0 on a cluster without GPUs."""
    threads: int = 1
    """CPU threads per worker; another number gives weights that differ by rounding."""
    address: str | None = None
    """Ray cluster for --workers. Default: RAY_ADDRESS, else a local Ray."""
    overwrite: bool = False
    """Delete the model and checkpoints in --out and start anew."""
    check: str | None = None
    """Train nothing: measure this trained model on held-out images (--data, or the digits' test split), print JSON."""
    check_samples: int | None = None
    """Samples that --check draws, spread over the classes. Default: 500."""


def check_flags(flags: PretrainFlags) -> None:
    """Raise ValueError for samples that cannot be drawn."""
    if flags.check is None and flags.check_samples is not None:
        raise ValueError("--check-samples needs --check: the trained model to measure")
    if flags.check_samples is not None and flags.check_samples < 1:
        raise ValueError(f"--check-samples {flags.check_samples} must be at least 1")
