"""The flags of jobs/distill.py, and what they make of a preset."""

import difflib
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from cli import Ints, LogFormat, Words
from presets import PRESETS, as_cao2, as_official, with_classifier
from settling import exactly

from d3hr_ray.config import (
    Condition,
    Dtype,
    Fidelity,
    Format,
    Method,
    Posterior,
    Quirk,
    RunConfig,
    Sampler,
    Search,
    Selection,
    Single,
    Solver,
    from_dict,
)
from d3hr_ray.datasets.classes import read_classes
from d3hr_ray.runs import stored_config
from d3hr_ray.store import Store

if TYPE_CHECKING:  # torch and Ray take seconds to import: --help and a wrong flag should not wait for them
    pass


@dataclass(frozen=True)
class DistillFlags:
    """Command line of the job. An empty default means: as the preset says."""

    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE")] = None
    """Dataset, model and settings; other flags override it: digits, digits-affine, imagenet1k, imagewoof, imagenette,
    imagenet100, tinyimagenet, cifar10, cifar100, or a file of jobs/sweep.py (best.json). Default: digits."""
    data: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    """Images: a folder, a .tar, a .parquet, or an s3:// or gs:// URI. Needed for all presets but the digits."""
    format: Format | None = None
    """Layout of the data: imagefolder is FOLDER/<class>/<image>."""
    classes: Words = ()
    """Classes in order: names, wnids, NAME=ID (the model's class id), a file of them, or imagenette, imagewoof,
    imagenet100. Default: all, sorted."""
    model: Annotated[str | None, tyro.conf.arg(metavar="FOLDER|ID")] = None
    """diffusers DiTPipeline: a folder, a hub id, or an embedded model (digits, digits-affine)."""
    out: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    """Run folder. Default: runs/<preset>, or the run of --from-gaussians. The same command resumes it."""
    method: Method | None = None
    """d3hr, the default; cao2, which needs no dataset, only the model and a classifier; d3hr+cao2, CaO2's stages on a
    pool drawn from D3HR's Gaussians; or a baseline: gaussian (one random draw), dit (plain sampling), random (real
    images)."""
    fidelity: Fidelity | None = None
    """official reproduces the authors' code bug for bug, with their settings; fixed (the default) is right."""
    mend: Annotated[tuple[Quirk, ...], tyro.conf.arg(metavar="QUIRK ...")] = ()
    """With --fidelity official, do right after all. d3hr: start (sampling starts a step above t). cao2: channels (3 of
    4 are guided), normalisation (of what is judged), levels (of noise, in stage 2), bank (of 1024 noises), fill (by the
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
    """cao2, d3hr+cao2, stage 2: Adam steps on each clean latent; 0 leaves it out. Default 100."""
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
    """Print the plan (images, forwards, FLOP, GPU-hours, bytes per stage) and run nothing."""
    tflops: float = 300.0
    """Sustained TFLOP/s of one GPU, for the hours of --dry-run."""
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


ADAMS_STEPS = 15  # round trip as good as that of 50 DDIM steps (README); t = 600 is on this grid

# Flags that name the data or how it is inverted: settled for good once a run has Gaussians.
UPSTREAM = (
    "preset",
    "data",
    "format",
    "classes",
    "model",
    "ddim_steps",
    "inversion_guidance",
    "solver",
    "posterior",
    "limit_per_class",
    "max_rejected",
)


def only_status(flags: DistillFlags) -> bool:
    """Whether --status is all that is asked. Raises ValueError if it comes with other flags."""
    others = [f.name for f in fields(flags) if f.name != "status" and getattr(flags, f.name) != f.default]
    if flags.status is not None and others:
        raise ValueError(f"--status goes alone; leave out --{others[0].replace('_', '-')}")
    return flags.status is not None


def build_config(flags: DistillFlags) -> RunConfig:
    """The preset, or the run of --from-gaussians, with the flags laid over it.

    Raises ValueError for flags that are wrong, that contradict each other, or that are missing.
    """
    if flags.from_gaussians:
        _refuse_upstream(flags)
        stored = stored_config(Store(flags.from_gaussians))
        if stored is None:
            raise ValueError(f"--from-gaussians {flags.from_gaussians}: no run there (it has no run.json)")
        base = from_dict(stored)
        if flags.fidelity not in (None, base.fidelity):
            raise ValueError(f"--fidelity {flags.fidelity} contradicts --from-gaussians: that run is {base.fidelity}")
    else:
        preset = flags.preset or "digits"
        base = load_preset(preset)
        if flags.fidelity == "fixed" and base.fidelity == "official":
            raise ValueError(f"--fidelity fixed contradicts --preset {preset}, which is official; leave one out")
        base = as_official(base) if flags.fidelity == "official" else base
        base = as_cao2(base, preset) if flags.method == "cao2" else base
    config = overlay(base, flags)
    if flags.from_gaussians and flags.dtype == "auto":
        config = exactly(config)
    refuse_idle(config, flags)
    for name in ("tflops", "task_timeout"):
        if not getattr(flags, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(flags, name):g} must be above 0")
    if not config.model.name:
        raise ValueError(
            f"--model is needed: preset {flags.preset} has no public model; train one with jobs/pretrain.py"
        )
    if not config.data.uri and not flags.dry_run and config.method != "cao2":
        raise ValueError(f"--data is needed: the images of preset {flags.preset} do not come with the package")
    return config


SEARCHES = ("search", "candidates", "skew_weight", "components", "rank", "single", "cluster_timestep")
CHOOSES = ("pool", "classifier", "select", "optimise", "optimise_lr", "linf", "condition", "levels")


def refuse_idle(config: RunConfig, flags: DistillFlags) -> None:
    """Raise ValueError for a flag that the method would not look at."""
    idle = {"rematch": config.method != "d3hr+cao2", "sampler": config.method != "cao2"}
    idle |= dict.fromkeys(SEARCHES, config.method not in ("d3hr", "d3hr+cao2"))
    idle |= dict.fromkeys(CHOOSES, not config.has_pool)
    kinds = {quirk == "start" for quirk in flags.mend}
    idle["mend"] = (True in kinds and config.method != "d3hr") or (False in kinds and config.method != "cao2")
    for name, unused in idle.items():
        if unused and getattr(flags, name) not in (None, ()):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} does nothing with --method {config.method}; leave it out")
    if config.has_pool and config.cao2.iterations == 0 and (flags.linf is not None or flags.condition or flags.levels):
        raise ValueError("--optimise 0 leaves stage 2 out; leave out --linf, --condition and --levels too")


def load_preset(name: str) -> RunConfig:
    """A preset by name, or the config in a preset file. Raises ValueError if there is neither."""
    if name in PRESETS:
        return PRESETS[name]()
    path = Path(name).expanduser()
    if not path.is_file():
        close = difflib.get_close_matches(name, PRESETS, 1)
        meant = f"; perhaps you meant {close[0]}" if close else ""
        raise ValueError(f"--preset {name}: no such preset or file; there are {', '.join(PRESETS)}{meant}")
    try:
        return from_dict(json.loads(path.read_text())["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--preset {name} is no preset file of jobs/sweep.py ({error})") from error


def _refuse_upstream(flags: DistillFlags) -> None:
    default = {f.name: f.default for f in fields(flags)}
    for name in UPSTREAM:
        if getattr(flags, name) != default[name]:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} contradicts --from-gaussians: the stored Gaussians settle it; leave it out")
    for name in ("dry_run", "overwrite"):
        if getattr(flags, name):
            raise ValueError(f"--{name.replace('_', '-')} cannot go with --from-gaussians")
    if flags.method not in (None, "d3hr", "d3hr+cao2", "gaussian"):
        raise ValueError(f"--method {flags.method} uses no Gaussians; leave out --from-gaussians")


def overlay(base: RunConfig, flags: DistillFlags) -> RunConfig:
    """Every flag that was given replaces its field."""
    search = _given(
        base.search,
        method=flags.search,
        skew_weight=flags.skew_weight,
        ipc=flags.ipc,
        components=flags.components,
        rank=flags.rank,
        single=flags.single,
    )
    if flags.candidates is not None:
        search = replace(search, candidates=flags.candidates)
    elif search.method != base.search.method:
        search = replace(search, candidates=256 if search.method == "moments" else 1_000_000)
    steps = flags.ddim_steps or (ADAMS_STEPS if flags.solver == "adams" else None)
    made = replace(
        base,
        data=_given(
            base.data,
            uri=flags.data,
            format=flags.format or ("auto" if flags.data else None),
            classes=read_classes(flags.classes),
            limit_per_class=flags.limit_per_class,
            max_rejected=flags.max_rejected,
        ),
        model=_given(base.model, name=flags.model, dtype=flags.dtype if flags.dtype != "auto" else None),
        inversion=_given(
            base.inversion,
            timesteps=flags.timesteps,
            steps=steps,
            guidance=flags.inversion_guidance,
            posterior=flags.posterior,
            solver=flags.solver,
            batch_size=flags.batch_size if flags.batch_size != "auto" else None,
            cluster_timestep=flags.cluster_timestep,
        ),
        search=search,
        cao2=_given(
            base.cao2,
            pool=1 if flags.select == "none" and flags.pool is None else flags.pool,
            sampler=flags.sampler,
            classifier=flags.classifier,
            select=flags.select,
            rematch=None if flags.rematch is None else flags.rematch == "yes",
            iterations=flags.optimise,
            lr=flags.optimise_lr,
            linf=flags.linf,
            condition=flags.condition,
            levels=flags.levels or _same_levels(base, steps),
        ),
        synthesis=_given(base.synthesis, guidance=flags.guidance, image_size=flags.image_size),
        method=flags.method or base.method,
        seed=base.seed if flags.seed is None else flags.seed,
        mended=tuple(sorted(set(flags.mend))) or base.mended,
    )
    return with_classifier(made)


def _same_levels(base: RunConfig, steps: int | None) -> tuple[int, ...]:
    """Stage 2's places on a grid of other steps, at about the same noise."""
    own = base.inversion.steps
    return () if steps in (None, own) else tuple(max(1, round(level * steps / own)) for level in base.cao2.levels)


def _given(config: Any, **values: Any) -> Any:
    return replace(config, **{k: v for k, v in values.items() if v not in (None, ())})
