"""Train a VAE and a DiT on labelled images, or fine-tune a DiT, into a folder that `distill.py --model` takes.

    python jobs/pretrain.py --preset digits --out my-digits       # the embedded model again
    python jobs/pretrain.py --preset custom --data /data/flowers --init facebook/DiT-XL-2-256 --workers 8 --out my-dit
    python jobs/pretrain.py --check my-digits                      # measure it on the held-out digits

The same command resumes a run that was stopped. D3HR_TRACEBACK=1 shows the traceback of a failure.
"""

import json
import logging
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cli import Ints, Words, announce, connect, guard, parse, refusing, tell
from layouts import layout

from d3hr_ray.config import DataConfig, Format
from d3hr_ray.datasets.classes import read_classes
from d3hr_ray.datasets.digits import NAMES
from d3hr_ray.lock import driving
from d3hr_ray.pretraining import settings
from d3hr_ray.pretraining.settings import PretrainConfig
from d3hr_ray.store import Store, absolute

SAMPLES = 500  # that --check draws


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


def main() -> None:
    """Check a model, or train one."""
    flags = parse(PretrainFlags, __doc__ or "")
    with refusing():
        if flags.check is None and flags.check_samples is not None:
            raise ValueError("--check-samples needs --check: the trained model to measure")
        if flags.check_samples is not None and flags.check_samples < 1:
            raise ValueError(f"--check-samples {flags.check_samples} must be at least 1")
    if flags.check is not None:
        return check(flags.check, flags.data, flags.check_samples or SAMPLES)
    with refusing():
        config = build_config(flags)

    # Imported late: torch and diffusers take seconds, and --help or a wrong flag should not wait for them.
    from d3hr_ray.pretraining.launch import find_gpus, prepare, pretrain, start_anew
    from d3hr_ray.runtime.capacity import PATIENCE

    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it repeats every report
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # it doubts every cast to fp16, of no module here
    out = flags.out or f"runs/pretrain-{flags.preset}"
    with driving(Store(absolute(out))):
        with refusing():
            if flags.overwrite:
                start_anew(out)
            listing = prepare(config, out, flags.workers)
        if listing is None:
            print(f"{out}: complete already; --overwrite starts anew")
            return
        tell(listing.notes)
        found = f"{len(listing):,} images of {len(listing.classes)} classes"
        gpus = 0.0
        if flags.workers:
            with refusing():
                gpus = find_gpus(flags.workers, flags.gpus_per_worker, PATIENCE if connect(flags.address) else 0)
        announce(f"{found} -> {out}, " + (f"on {flags.workers} workers" if flags.workers else "in this process"))
        pretrain(config, listing, out, shlex.join(["python", *sys.argv]), flags.workers, flags.threads, gpus)
        print(f"{out}: trained on {found}")


def check(model: str, held_out: str | None, samples: int) -> None:
    """Measure a trained model and print what was found as JSON."""
    from d3hr_ray.pretraining.check import measure
    from d3hr_ray.pretraining.watch import showing

    with refusing():
        splits = find_splits(model, held_out)
    with showing() as bars:
        quality = measure(model, *splits, samples, tell=bars)
    print(json.dumps(asdict(quality), indent=2))


def build_config(flags: PretrainFlags) -> PretrainConfig:
    """Flags over the preset. Raises ValueError naming the flag that is wrong."""
    config = _preset(flags)
    uri = flags.data or config.data.uri
    classes, rejected = read_classes(flags.classes), _given(max_rejected=flags.max_rejected)
    data = DataConfig(uri, flags.format, classes, **rejected, **layout(flags))
    shape = _given(
        image_size=flags.image_size,
        latent_channels=flags.latent_channels,
        vae_channels=flags.vae_channels or None,
        patch_size=flags.patch_size,
        dit_layers=flags.dit_layers,
        dit_heads=flags.dit_heads,
        dit_width=flags.dit_width,
    )
    if flags.init and shape:
        flag = next(iter(shape)).replace("_", "-")
        raise ValueError(f"--{flag} cannot be changed with --init: the model has its own; leave it out")
    vae_steps = 0 if flags.init and flags.vae_steps is None else flags.vae_steps
    both = _given(batch_size=flags.batch_size, ema=flags.ema)
    return replace(
        config,
        data=data,
        architecture=replace(config.architecture, **shape),
        vae=replace(config.vae, **both, **_given(steps=vae_steps, lr=flags.vae_lr)),
        dit=replace(config.dit, **both, **_given(steps=flags.dit_steps, lr=flags.dit_lr)),
        init=flags.init,
        **_given(
            kl_weight=flags.kl_weight,
            class_dropout=flags.class_dropout,
            seed=flags.seed,
            checkpoint_every=flags.checkpoint_every,
        ),
    )


def find_splits(model: str, held_out: str | None) -> tuple[DataConfig, DataConfig]:
    """The data a model was trained on, and data it never saw: as given, or the embedded set's own test split."""
    from d3hr_ray.pretraining.launch import trained_on

    data = trained_on(model)
    name = data.uri.partition("/")[0]
    if held_out is None and name not in NAMES:
        raise ValueError(f"--check {model}: {data.uri} has no known held-out split; name one with --data")
    return data, replace(data, uri=held_out or f"{name}/test")


def _preset(flags: PretrainFlags) -> PretrainConfig:
    if flags.preset != "custom":
        return settings.digits() if flags.preset == "digits" else settings.digits_affine()
    if flags.data is None:
        raise ValueError("--preset custom needs --data: the training images")
    return settings.custom(flags.data)


def _given(**values: Any) -> dict[str, Any]:
    """The values that were given."""
    return {name: value for name, value in values.items() if value is not None}


if __name__ == "__main__":
    guard(main)
