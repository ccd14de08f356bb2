"""The flags of jobs/sweep.py."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import tyro

from d3hr_ray.cli.evaluate_flags import ProtocolName
from d3hr_ray.cli.parsing import Ints, Words
from d3hr_ray.config import Format, Search, as_dict

Floats = Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT ...")]
UNKEPT = ("run", "preset", "resume", "address")  # flags that a resumed sweep is given anew
MACHINE = ("actors", "gpus_per_actor", "gpus_per_trial", "at_once")  # decide no result; another machine may have others
Method = Literal["d3hr", "gaussian", "dit", "cao2", "d3hr+cao2"]


@dataclass(frozen=True)
class SweepFlags:
    """Command line of the job. Every list is an axis; the sweep is their product."""

    run: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    """Run folder of jobs/distill.py. One that is not there yet is made, if --preset says of what."""
    preset: str | None = None
    """Preset or preset file of a run that is made."""
    variants: Annotated[tuple[str, ...], tyro.conf.arg(metavar="'FLAG=VALUE ...' ...")] = ()
    """Whole settings of jobs/distill.py, each in quotes: 'components=ipc single=medoid' 'method=cao2 optimise=0';
    run: as the run has it, which is the default."""
    method: Annotated[tuple[Method, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """d3hr, gaussian (one random draw), dit (plain sampling), cao2, d3hr+cao2. Default: the variant's, or the run's."""
    search: Annotated[tuple[Search, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """moments, random. Default: the run's."""
    candidates: Ints = ()
    """Columns (moments) or subsets (random). Default: the run's; 256 or 1000 for a search that is not the run's."""
    components: Annotated[tuple[int | Literal["ipc"], ...], tyro.conf.arg(metavar="INT|ipc ...")] = ()
    """Gaussians per class; ipc: one per image. Default: the run's."""
    rank: Ints = ()
    """Directions of a class's covariance besides its diagonal. Default: the run's."""
    timesteps: Ints = ()
    """DDPM timesteps. Default: the run's."""
    inversion_guidance: Floats = ()
    """Guidance of the inversion: each inverts the images once more. Default: the run's."""
    guidance: Floats = ()
    """Guidance of the sampling. Default: the run's."""
    matched: bool = False
    """Sample with the guidance of the inversion, instead of the product of both."""
    ipc: Ints = (10,)
    """Images per class."""
    seeds: Ints = (0,)
    """Seeds of the sets."""
    arch: Words = ("convnet-d3",)
    """Students, as of jobs/evaluate.py."""
    protocol: Annotated[tuple[ProtocolName, ...], tyro.conf.arg(metavar="NAME ...")] = ("hard",)
    """How students train."""
    teacher: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME|PATH ...")] = ()
    """For soft labels: a timm name, ARCH=FILE, or a folder of `jobs/evaluate.py --teacher train`."""
    lr: Floats = ()
    """Peak learning rates. Default: the protocol's."""
    weight_decay: Floats = ()
    """Weight decays. Default: the protocol's."""
    epochs: Ints = ()
    """Epochs; they change the protocol's version. Default: the protocol's."""
    batch_size: Ints = ()
    """Images per step. Default: the protocol's."""
    temperature: Floats = ()
    """Of soft labels. Default: the protocol's."""
    repeats: int = 1
    """Students per set."""
    data: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    """Real images to test on. Default: the images that the run was distilled from."""
    format: Format = "auto"
    """Layout of --data."""
    class_depth: int | None = None
    """Of an image folder: the level whose folders are the classes, in --data. Default: 1, if clear."""
    image_column: str | None = None
    """Of Parquet, in --data: the column of images. Default: found by its name, such as image."""
    label_column: str | None = None
    """Of Parquet, in --data: the column of labels. Default: found by its name, such as label."""
    class_ids: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=ID ...")] = ()
    """The model's class id of classes in --data whose names are not the model's; the others are found as ever."""
    scheduler: Literal["grid", "asha"] = "grid"
    """grid: all to the end. asha: stop the worst early; they must share one IPC and one student to be comparable."""
    actors: Annotated[tuple[int, ...], tyro.conf.arg(metavar="MIN MAX")] = ()
    """Actors that hold the networks, as of jobs/distill.py. Default: all GPUs of the cluster, else all CPUs but one."""
    gpus_per_actor: float | None = None
    """GPUs per actor; a fraction shares one. Default 1, or 0 on a cluster without GPUs."""
    gpus_per_trial: float | None = None
    """GPUs per student; with 0.1, ten share one. Default 1, or 0 where the actors have none."""
    at_once: int | None = None
    """Students at once. Default: as many as fit."""
    name: str = "sweep"
    """Of the folder sweeps/<name>/ with the table, the plots and the best preset."""
    resume: bool = False
    """Go on with the stored sweep of --run and --name, with the flags it had: to be left out, or the same. The full
    command without --resume does so too."""
    address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Ray cluster. Default: RAY_ADDRESS, else a local Ray."""


def kept(flags: SweepFlags) -> dict[str, Any]:
    """What sweep.json holds: every flag that a resumed sweep is not given anew."""
    return {name: value for name, value in as_dict(flags).items() if name not in UNKEPT}


def deciding(plain: dict[str, Any]) -> dict[str, Any]:
    """Kept flags => those that decide results; one that an earlier version did not have had today's default."""
    return {name: value for name, value in (kept(SweepFlags()) | plain).items() if name not in MACHINE}


def resumed(flags: SweepFlags, stored: dict[str, Any]) -> SweepFlags:
    """The flags of a stored sweep, with the machine's as they are given now.

    Raises ValueError for a flag that is given and is not the stored one.
    """
    given = {f.name: getattr(flags, f.name) for f in fields(flags) if getattr(flags, f.name) != f.default}
    was: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in (kept(SweepFlags()) | stored).items()
    }
    for name in given.keys() & deciding(stored).keys():
        if given[name] != was[name]:
            flag, values = "--" + name.replace("_", "-"), was[name] if isinstance(was[name], tuple) else (was[name],)
            raise ValueError(
                f"--resume: the stored sweep has {flag} {' '.join(map(str, values))}; leave {flag} out, or leave out "
                "--resume and give the new sweep a --name"
            )
    return replace(flags, **was | {name: given[name] for name in MACHINE if name in given})


def check_flags(flags: SweepFlags) -> None:
    """Raise ValueError for flags that are missing or contradict each other."""
    if not flags.run:
        raise ValueError("--run is needed: a run folder of jobs/distill.py, or a new one to make")
    if flags.resume:  # the stored flags are to be checked, and were
        return
    for name, values in vars(flags).items():
        if not isinstance(values, tuple):
            continue
        if len(set(values)) < len(values):
            raise ValueError(f"--{name.replace('_', '-')} names a value twice")
    if flags.scheduler == "asha" and (len(flags.ipc) > 1 or len(flags.arch) > 1 or len(flags.protocol) > 1):
        raise ValueError("--scheduler asha compares students: give one --ipc, one --arch and one --protocol")
    if flags.scheduler == "asha" and (len(flags.seeds) > 1 or flags.repeats > 1):
        raise ValueError("--scheduler asha would keep the lucky ones of several --seeds or --repeats: give one of each")
    if flags.scheduler == "asha" and len(flags.epochs) > 1:
        raise ValueError("--scheduler asha compares students at the same share of their training: give one of --epochs")
    if flags.matched and flags.guidance:
        raise ValueError("--matched contradicts --guidance: it samples with the guidance of the inversion")
    if any(p.endswith("soft") for p in flags.protocol) and not flags.teacher:
        raise ValueError("a soft --protocol needs --teacher: a timm name, ARCH=FILE or a folder")
    if "train" in flags.teacher:
        raise ValueError("--teacher train is jobs/evaluate.py's; train one there and name its folder")
    if flags.repeats < 1:
        raise ValueError(f"--repeats {flags.repeats} must be at least 1")
