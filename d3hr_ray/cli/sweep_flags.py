"""The flags of jobs/sweep.py."""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from d3hr_ray.cli import machine_flags
from d3hr_ray.cli.data_flags import LAYOUT
from d3hr_ray.cli.evaluate_flags import ProtocolName, check_training
from d3hr_ray.cli.flags import text_of, with_own
from d3hr_ray.cli.variants import settings_of
from d3hr_ray.config import DataConfig, Search, as_dict, flag_of, setting, with_tuples
from d3hr_ray.config.fields import CLUSTER, DATA, MATCHING, METHOD, OUTPUT, TRAINING
from d3hr_ray.evaluation.protocols import Precision, is_soft, sees_whole

UNKEPT = ("run", "preset", "resume", "address")  # flags that a resumed sweep is given anew
MACHINE = ("actors", "gpus_per_actor", "gpus_per_trial", "at_once")  # decide no result; another machine may have others
VARIED = ("method", "search", "candidates", "components", "rank", "guidance")  # axes that variants may give, too
Method = Literal["d3hr", "gaussian", "dit", "cao2", "d3hr+cao2"]


def _axis(help: str, group: str, shown: str) -> Any:
    """A list of values that the sweep goes through; empty for the one that it has without."""
    return setting((), help, group, shown=shown)


@with_own(DataConfig, *LAYOUT)
@dataclass(frozen=True)
class SweepFlags:
    """Command line of the job. Every list is an axis; the sweep is their product."""

    run: str | None = setting(
        None,
        "Run folder of jobs/distill.py. One that is not there yet is made, if --preset says of what.",
        DATA,
        metavar="URI",
    )
    preset: str | None = setting(None, "Preset or preset file of a run that is made.", DATA, metavar="NAME|FILE")
    variants: tuple[str, ...] = setting(
        (),
        "Whole settings of jobs/distill.py, each in quotes: 'components=ipc single=medoid' 'method=cao2 "
        "optimise=0'; run: as the run has it.",
        METHOD,
        metavar="'FLAG=VALUE ...' ...",
        shown="run",
    )
    method: tuple[Method, ...] = setting(
        (),
        "d3hr, gaussian (one random draw), dit (plain sampling), cao2, d3hr+cao2.",
        METHOD,
        metavar="NAME ...",
        shown="the variant's, or the run's",
    )
    search: tuple[Search, ...] = setting((), "moments, random.", MATCHING, metavar="NAME ...", shown="the run's")
    candidates: tuple[int, ...] = setting(
        (),
        "Columns (moments) or subsets (random).",
        MATCHING,
        shown="the run's; of another search 256, random: 1000",
    )
    components: tuple[int | Literal["ipc"], ...] = setting(
        (), "Gaussians per class; ipc: one per image.", MATCHING, metavar="INT|ipc ...", shown="the run's"
    )
    rank: tuple[int, ...] = _axis("Directions of a class's covariance besides its diagonal.", MATCHING, "the run's")
    timesteps: tuple[int, ...] = _axis("DDPM timesteps.", METHOD, "the run's")
    inversion_guidance: tuple[float, ...] = _axis(
        "Guidance of the inversion: each inverts the images once more.", METHOD, "the run's"
    )
    guidance: tuple[float, ...] = _axis("Guidance of the sampling.", METHOD, "the run's")
    matched: bool = setting(False, "Sample with the guidance of the inversion, instead of the product of both.", METHOD)
    ipc: tuple[int, ...] = setting((10,), "Images per class.", METHOD)
    seeds: tuple[int, ...] = setting((0,), "Seeds of the sets.", METHOD)
    arch: tuple[str, ...] = setting(("convnet-d3",), "Students, as of jobs/evaluate.py.", TRAINING)
    protocol: tuple[ProtocolName, ...] = setting(("hard",), "How students train.", TRAINING, metavar="NAME ...")
    teacher: tuple[str, ...] = setting(
        (),
        "For soft labels: a timm name, ARCH=FILE, or a folder of `jobs/evaluate.py --teacher train`.",
        TRAINING,
        metavar="NAME|PATH ...",
    )
    lr: tuple[float, ...] = _axis("Peak learning rates.", TRAINING, "the protocol's")
    weight_decay: tuple[float, ...] = _axis("Weight decays.", TRAINING, "the protocol's")
    epochs: tuple[int, ...] = _axis("Epochs; they change the protocol's version.", TRAINING, "the protocol's")
    batch_size: tuple[int, ...] = _axis("Images per step.", TRAINING, "the protocol's")
    temperature: tuple[float, ...] = _axis("Of soft labels.", TRAINING, "the protocol's")
    weights: bool = setting(
        False, "Let each image count by the share of its class that it stands for, as of jobs/evaluate.py.", TRAINING
    )
    precision: Precision = setting("float32", "Of students in training, as of jobs/evaluate.py.", TRAINING)
    repeats: int = setting(1, "Students per set.", TRAINING)
    data: str | None = setting(
        None, "Real images to test on.", DATA, metavar="URI", shown="the images that the run was distilled from"
    )
    scheduler: Literal["grid", "asha"] = setting(
        "grid",
        "grid: all to the end. asha: stop the worst early; they must share one IPC and one student to be comparable.",
        TRAINING,
    )
    actors: tuple[int, ...] = machine_flags.actors("Actors that hold the networks, as of jobs/distill.py.")
    gpus_per_actor: float | None = machine_flags.gpus_per_actor()
    gpus_per_trial: float | None = setting(
        None, "GPUs per student; with 0.1, ten share one.", CLUSTER, shown="1, or 0 where the actors have none"
    )
    at_once: int | None = setting(None, "Students at once.", CLUSTER, shown="as many as fit")
    name: str = setting(
        "sweep", "Of the folder sweeps/<name>/ with the table, the plots and the best preset.", OUTPUT, metavar="NAME"
    )
    resume: bool = setting(
        False,
        "Go on with the stored sweep of --run and --name, with the flags it had: to be left out, or the same. The "
        "full command without --resume does so too.",
        OUTPUT,
    )
    address: str | None = machine_flags.address()


def kept(flags: SweepFlags) -> dict[str, Any]:
    """What sweep.json holds: every flag that a resumed sweep is not given anew."""
    return {name: value for name, value in as_dict(flags).items() if name not in UNKEPT}


def deciding(plain: dict[str, Any]) -> dict[str, Any]:
    """Kept flags => those that decide results; one that an earlier version did not have had today's default."""
    return {name: value for name, value in (kept(SweepFlags()) | plain).items() if name not in MACHINE}


def resumed(flags: SweepFlags, stored: dict[str, Any], typed: Collection[str] = ()) -> SweepFlags:
    """The flags of a stored sweep, with the machine's as they are given now.

    Given are those that are `typed`, and all that are not the default. Raises ValueError for one that is given and is
    not the stored one.
    """
    given = {
        f.name: getattr(flags, f.name)
        for f in fields(flags)
        if getattr(flags, f.name) != f.default or flag_of(f.name) in typed
    }
    was = with_tuples(kept(SweepFlags()) | stored)
    for name in given.keys() & deciding(stored).keys():
        if given[name] != was[name]:
            flag = flag_of(name)
            raise ValueError(
                f"--resume: the stored sweep has {flag} {text_of(was[name])}; leave {flag} out, or leave out --resume "
                "and give the new sweep a --name"
            )
    return replace(flags, **was | {name: given[name] for name in MACHINE if name in given})


def check_flags(flags: SweepFlags) -> None:
    """Raise ValueError for flags that are missing or contradict each other."""
    if not flags.run:
        raise ValueError("--run is needed: a run folder of jobs/distill.py, or a new one to make")
    if flags.resume:  # the stored flags are to be checked, and were
        return
    for name, values in vars(flags).items():
        # --actors is a range, not an axis: 2 2 is two of them
        if isinstance(values, tuple) and name != "actors" and len(set(values)) < len(values):
            raise ValueError(f"{flag_of(name)} names a value twice")
    check_training(flags)
    for text in flags.variants:
        for name in settings_of(text):
            if name in VARIED and getattr(flags, name):
                raise ValueError(f"--variants {text!r} gives {name} and so does {flag_of(name)}; leave one of them out")
    if flags.scheduler == "asha" and (len(flags.ipc) > 1 or len(flags.arch) > 1 or len(flags.protocol) > 1):
        raise ValueError("--scheduler asha compares students: give one --ipc, one --arch and one --protocol")
    if flags.scheduler == "asha" and (len(flags.seeds) > 1 or flags.repeats > 1):
        raise ValueError("--scheduler asha would keep the lucky ones of several --seeds or --repeats: give one of each")
    if flags.scheduler == "asha" and len(flags.epochs) > 1:
        raise ValueError("--scheduler asha compares students at the same share of their training: give one of --epochs")
    if flags.matched and flags.guidance:
        raise ValueError("--matched contradicts --guidance: it samples with the guidance of the inversion")
    if any(map(is_soft, flags.protocol)) and not flags.teacher:
        raise ValueError("a soft --protocol needs --teacher: a timm name, ARCH=FILE or a folder")
    sees_whole(flags.protocol)
    if flags.temperature and not any(map(is_soft, flags.protocol)):
        raise ValueError("--temperature is of soft labels, and no --protocol here has them; leave it out")
    if "train" in flags.teacher:
        raise ValueError("--teacher train is jobs/evaluate.py's; train one there and name its folder")
    if flags.repeats < 1:
        raise ValueError(f"--repeats {flags.repeats} must be at least 1")
