"""The flags of jobs/pretrain.py."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

from d3hr_ray.cli import machine_flags
from d3hr_ray.cli.flags import text_of, with_own
from d3hr_ray.config import DataConfig, flag_of, setting
from d3hr_ray.config.fields import CLUSTER, DATA, MODEL, OUTPUT, TRAINING
from d3hr_ray.datasets.named import set_of
from d3hr_ray.pretraining import settings
from d3hr_ray.pretraining.sizes import SIZES

SAMPLES = 500  # that --check draws
FINE_TUNING_STEPS = 20_000  # of 256 images: three hours of an H100 for DiT-XL/2, if it is kept busy; not measured
RECIPES = {  # --preset, and --size of the custom one
    "digits": settings.digits(),
    "digits-affine": settings.digits_affine(),
    "fashion-mnist": settings.fashion_mnist(),
    **{size: make("") for size, make in SIZES.items()},
}


def _preset(help: str, group: str, *paths: str) -> Any:
    """A field that is the preset's where it is not given: these ones, such as vae.steps, of its config."""
    return setting(None, help, group, shown=_defaults(paths))


def _defaults(paths: Sequence[str]) -> str:
    """What a preset's field is by default: 'digits 1000; tiny 800', or one value where all have it."""
    presets: dict[str, list[str]] = {}
    for name, config in RECIPES.items():
        values = dict.fromkeys(text_of(reduce(getattr, path.split("."), config)) for path in paths)
        presets.setdefault(" and ".join(values), []).append(name)
    if len(presets) == 1:
        return next(iter(presets))
    return "; ".join(f"{', '.join(names)} {value}" for value, names in presets.items())


@with_own(DataConfig, "format", "classes", "max_rejected", "class_depth", "image_column", "label_column")
@dataclass(frozen=True)
class PretrainFlags:
    """A flag that is not given takes the preset's value."""

    preset: Literal["digits", "digits-affine", "fashion-mnist", "custom"] = setting(
        "digits",
        "digits, digits-affine and fashion-mnist are the embedded models' recipes; custom is for images of your own: "
        "see --size and --init.",
        DATA,
    )
    data: str | None = setting(
        None,
        "Training images: a folder, file or URI, or digits, digits-affine, fashion-mnist (needed by --preset custom).",
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
    size: Literal["tiny", "small", "base", "xl"] | None = setting(
        None,
        "Of --preset custom, networks from scratch. tiny: for a CPU and images of up to about 64 pixels; small, base "
        "and xl: DiT-S/2, DiT-B/2 and DiT-XL/2 at 256 pixels, for GPUs.",
        MODEL,
        shown="small",
    )
    image_size: int | None = _preset(
        "Side of the training images in pixels (with --init, the model's).", MODEL, "architecture.image_size"
    )
    vae_steps: int | None = _preset("Training steps of the VAE.", TRAINING, "vae.steps")
    dit_steps: int | None = _preset(
        f"Training steps of the DiT; of --preset custom with --init {FINE_TUNING_STEPS}.", TRAINING, "dit.steps"
    )
    batch_size: int | None = _preset(
        "Images per step over all workers, for both phases.", TRAINING, "vae.batch_size", "dit.batch_size"
    )
    vae_lr: float | None = _preset("Peak learning rate of the VAE.", TRAINING, "vae.lr")
    dit_lr: float | None = _preset("Peak learning rate of the DiT.", TRAINING, "dit.lr")
    kl_weight: float | None = _preset(
        "Weight of the VAE's mean KL per latent element against its mean squared error.", TRAINING, "kl_weight"
    )
    class_dropout: float | None = _preset(
        "Share of labels replaced by the null class, which guidance needs.", TRAINING, "class_dropout"
    )
    ema: float | None = _preset(
        "Decay of the averaged weights, which are the ones kept.", TRAINING, "vae.ema", "dit.ema"
    )
    latent_channels: int | None = _preset("Channels of the latents.", MODEL, "architecture.latent_channels")
    vae_channels: tuple[int, ...] = setting(
        (),
        "The VAE's widths at each resolution; every one but the first halves the side.",
        MODEL,
        shown=_defaults(["architecture.vae_channels"]),
    )
    patch_size: int | None = _preset("Side of the DiT's patches in latent cells.", MODEL, "architecture.patch_size")
    dit_layers: int | None = _preset("Blocks of the DiT.", MODEL, "architecture.dit_layers")
    dit_heads: int | None = _preset("Attention heads of the DiT.", MODEL, "architecture.dit_heads")
    dit_width: int | None = _preset("Hidden width of the DiT.", MODEL, "architecture.dit_width")
    seed: int | None = _preset("Decides weights, order and noise.", TRAINING, "seed")
    checkpoint_every: int | None = _preset("Steps between checkpoints, a multiple of 50.", OUTPUT, "checkpoint_every")
    workers: int = setting(0, "Ray Train workers that train together; 0 trains in this process.", CLUSTER)
    gpus_per_worker: float | None = setting(
        None, "GPUs per worker, whole ones; 0 for CPUs.", CLUSTER, shown="1, or 0 on a cluster without GPUs"
    )
    threads: int = setting(1, "CPU threads per worker; another number gives weights that differ by rounding.", CLUSTER)
    address: str | None = machine_flags.address("Ray cluster for --workers.")
    overwrite: bool = setting(False, "Delete the model and checkpoints in --out and start anew.", OUTPUT)
    check: str | None = setting(
        None,
        "Train nothing: measure this trained model on held-out images (--data, or the test split of digits and idx "
        "sets), print JSON.",
        OUTPUT,
        metavar="FOLDER",
    )
    check_samples: int | None = setting(
        None, "Samples that --check draws, spread over the classes.", OUTPUT, shown=str(SAMPLES)
    )
    teacher: str | None = setting(
        None,
        "The classifier that --check judges by: a folder of `evaluate.py --teacher train`, ARCH=FILE, or a timm name.",
        OUTPUT,
        metavar="NAME|PATH",
        shown="the model's own, else one that is trained for the check",
    )


def check_flags(flags: PretrainFlags, typed: Collection[str] = ("--preset",)) -> None:
    """Raise ValueError for what needs --check, numbers that cannot be, a size of networks that are given, and images of
    one's own without a preset. `typed` are the flags that the user gave.
    """
    if flags.data and not set_of(flags.data) and not flags.check and "--preset" not in typed:
        raise ValueError(
            f"--preset is needed with --data {flags.data}: custom for images of your own (see --size), or the embedded "
            "set whose recipe they are to have"
        )
    for name, least in (("threads", 1), ("workers", 0)):
        if getattr(flags, name) < least:
            raise ValueError(f"{flag_of(name)} {getattr(flags, name)} must be at least {least}")
    if flags.gpus_per_worker is not None and not flags.workers:
        raise ValueError(f"--gpus-per-worker {flags.gpus_per_worker:g} is idle without --workers; leave it out")
    if flags.size and (flags.init or flags.preset != "custom"):
        cure = "leave it out: --init brings its networks" if flags.init else "give --preset custom"
        raise ValueError(f"--size {flags.size} is of networks from scratch for your own images; {cure}")
    if flags.check is None and flags.check_samples is not None:
        raise ValueError("--check-samples needs --check: the trained model to measure")
    if flags.check is None and flags.teacher is not None:
        raise ValueError("--teacher needs --check: the trained model whose samples it judges")
    if flags.check_samples is not None and flags.check_samples < 1:
        raise ValueError(f"--check-samples {flags.check_samples} must be at least 1")
