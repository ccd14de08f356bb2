"""The flags of jobs/distill.py; jobs/building.py makes a config of them."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import tyro

from d3hr_ray.cli.parsing import Ints, Words
from d3hr_ray.config import (
    Condition,
    Dtype,
    Fidelity,
    Format,
    Method,
    Posterior,
    Quirk,
    Sampler,
    Search,
    Selection,
    Single,
    Solver,
    Spread,
)
from d3hr_ray.runtime.cluster import LogFormat


@dataclass(frozen=True)
class DistillFlags:
    """Command line of the job. An empty default means: as the preset says."""

    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE")] = None
    """Dataset, model and settings; other flags override it: digits, digits-affine, imagenet1k, imagewoof, imagenette,
    imagenet100, tinyimagenet, cifar10, cifar100, or a file of jobs/sweep.py (best.json). Default: digits; for
    data and a model of one's own, none: t = 600 and guidance 2 both ways."""
    data: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    """Images: a folder, a .tar, a .parquet, or an s3:// or gs:// URI. Needed for all presets but the digits."""
    format: Format | None = None
    """Layout of the data: imagefolder is FOLDER/<class>/<image>."""
    class_depth: int | None = None
    """Of an image folder: the level whose folders are the classes, 1 for FOLDER/<class>/..., 2 for
    FOLDER/<group>/<class>/... Default: 1, unless that is not clear."""
    image_column: str | None = None
    """Of Parquet: the column of images. Default: found by its name, such as image."""
    label_column: str | None = None
    """Of Parquet: the column of labels. Default: found by its name, such as label."""
    classes: Words = ()
    """Classes in order, and no others: names, wnids, NAME=ID (the model's class id), a file of them, or imagenette,
    imagewoof, imagenet100. Default: all, sorted."""
    class_ids: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=ID ...")] = ()
    """The model's class id of classes whose name it does not know or that fits two; the other classes stay."""
    model: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|ID")] = None
    """diffusers DiTPipeline: a folder, a hub id, or an embedded model (digits, digits-affine)."""
    out: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    """Run folder. Default: runs/<preset>, or runs/<name of --data> without one, or the run of --from-gaussians. The
    same command resumes it."""
    method: Method | None = None
    """d3hr, the default; cao2, which needs no dataset, only the model and a classifier; d3hr+cao2, CaO2's stages on a
    pool drawn from D3HR's Gaussians; or a baseline: gaussian (one random draw), dit (plain sampling), random (real
    images)."""
    fidelity: Fidelity | None = None
    """official reproduces the authors' code bug for bug, with their settings (they have none for the digits, which keep
    their own guidance); fixed (the default) is right."""
    mend: Annotated[tuple[Quirk, ...], tyro.conf.arg(metavar="QUIRK ...")] = ()
    """With --fidelity official, do right after all. d3hr: start (sampling starts a step above t), seeds (shared by
    all classes), skewness (taken along the features of an image, not along the images). cao2: channels (3 of 4 are
    guided), normalisation (of what is judged), levels (of noise, in stage 2), bank (of 1024 noises), fill (by the
    surest wrong images)."""
    ipc: Ints = ()
    """Images per class, one or more. Default 10."""
    timesteps: Ints = ()
    """DDPM timesteps, on the sampling grid, at which Gaussians are fitted."""
    ddim_steps: int | None = None
    """Points of the sampling grid. Default 50 (adams: 15)."""
    inversion_guidance: float | None = None
    """Classifier-free guidance of the inversion; 1 is none, and costs half."""
    guidance: float | None = None
    """Classifier-free guidance of the sampling."""
    solver: Solver | None = None
    """Solver of both directions: ddim, the default, or adams, of second order, which needs a third of the steps."""
    posterior: Posterior | None = None
    """VAE posterior: sample (seeded per image) or mode. Default sample."""
    search: Search | None = None
    """moments: exact matching; random: the paper's best of many subsets. Default moments (official: random)."""
    candidates: int | None = None
    """Candidate columns (moments, default 256) or subsets (random, default 1000000)."""
    skew_weight: float | None = None
    """Weight of the skewness term in the score. Default 0.5, the paper's (official: 0.1, the code's)."""
    components: int | Literal["ipc"] | None = None
    """Gaussians per class, fitted to the stored latents (k-means); ipc: one per image. Default 1, D3HR's."""
    single: Single | None = None
    """What a component with one image gives: its mean (better at low IPC) or its medoid, the stored latent nearest to
    its centre (better at high IPC, and close to a real image). Default mean."""
    spread: Spread | None = None
    """What exact matching matches beside the mean. std: the unbiased std; radius: the distance from the mean, larger by
    sqrt(n / (n - 1)), as far out as the Gaussian's own draws. Default std."""
    rank: int | None = None
    """Principal directions beside each Gaussian's diagonal covariance. Default 0, D3HR's."""
    cluster_timestep: int | None = None
    """Store latents at this t too and cluster them there (--components): nearer the images, such as 100, clusters
    mean more. Default: where the Gaussians are fitted."""
    pool: int | None = None
    """cao2, d3hr+cao2: candidates per image kept. Default 4 (official imagenette, imagenet100: 2; --select none: 1)."""
    sampler: Sampler | None = None
    """cao2: how the pool is drawn: ddpm, ancestral sampling as the authors do, or ddim. Default ddpm."""
    classifier: Annotated[str | None, tyro.conf.arg(metavar="NAME|PATH")] = None
    """cao2, d3hr+cao2: what judges the pool: a timm name with weights, ARCH=FILE, or a folder that evaluate.py
    --teacher train made. Default: the embedded models' own; for ImageNet resnet18.tv_in1k."""
    select: Selection | None = None
    """cao2, d3hr+cao2, stage 1: of the images whose class the classifier sees, keep the easy ones (most confident) or
    the hard ones; if these are too few, wrong ones fill up. none: the first of the pool, unjudged. Default easy."""
    rematch: Literal["yes", "no"] | None = None
    """d3hr+cao2: move and scale the chosen latents back to the class moments, and sample them again. Default yes."""
    optimise: Annotated[int | None, tyro.conf.arg(metavar="STEPS")] = None
    """cao2, d3hr+cao2, stage 2: Adam steps on each clean latent; 0 leaves it out. Default 100; for d3hr+cao2 0, because
    it was measured not to help there."""
    optimise_lr: float | None = None
    """Its learning rate. Default 6e-4."""
    linf: float | None = None
    """Its weight of the largest error against the mean square. Default 10."""
    condition: Condition | None = None
    """The class that its network is told: the image's, or null. Default null."""
    levels: Annotated[tuple[int, ...], tyro.conf.arg(metavar="LOW HIGH")] = ()
    """Its noise levels: places on the even grid of --ddim-steps. Default 1 11, which is t = 20 to 224."""
    limit_per_class: int | None = None
    """Use only the first so many images of each class."""
    seed: int | None = None
    """Seed of the run; every draw is keyed by it and by what it is for. Default 0 (--from-gaussians: that run's)."""
    image_size: int | None = None
    """Side in pixels of the saved images. Default: the model's (official ImageNet: 224)."""
    dtype: Dtype = "auto"
    """Of the denoiser. auto: bfloat16 on GPUs (official: float16), float32 on CPUs."""
    batch_size: int | Literal["auto"] = "auto"
    """Images per forward. auto: 128 on GPUs, 64 on CPUs; halved when a GPU runs out of memory."""
    actors: Annotated[tuple[int, ...], tyro.conf.arg(metavar="MIN MAX")] = ()
    """Actors that hold the networks. Default: all GPUs of the cluster, else all CPUs but one."""
    gpus_per_actor: float | None = None
    """GPUs per actor; a fraction shares one. Default 1, or 0 on a cluster without GPUs."""
    max_rejected: float | None = None
    """Share of unreadable images above which the run fails. Default 0.01."""
    from_gaussians: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Make sets from the Gaussians of an earlier run, without its dataset."""
    dry_run: bool = False
    """Print the plan (images, forwards, FLOP, time, bytes per stage) and run nothing."""
    tflops: float | None = None
    """Sustained TFLOP/s of one device, for the times of --dry-run. Default: measured here, for a small model where
    there is no GPU; else 300, a GPU's."""
    overwrite: bool = False
    """Start the run folder anew."""
    status: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Print what a run folder has done and what is left, and do nothing else."""
    task_timeout: float = 1800.0
    """Seconds that one batch, or the reading of one shard, may take before it is started again."""
    log_format: LogFormat = "text"
    """json: structured lines, from drivers and workers, for log collectors."""
    address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Ray cluster. Default: RAY_ADDRESS, else a local Ray."""


def only_status(flags: DistillFlags) -> bool:
    """Whether --status is all that is asked. Raises ValueError if it comes with other flags."""
    others = [f.name for f in fields(flags) if f.name != "status" and getattr(flags, f.name) != f.default]
    if flags.status is not None and others:
        raise ValueError(f"--status goes alone; leave out --{others[0].replace('_', '-')}")
    return flags.status is not None
