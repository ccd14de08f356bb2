"""The flags of jobs/distill.py: those of the settings, from their fields, and those that decide no result."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from d3hr_ray.cli import machine_flags
from d3hr_ray.cli.flags import with_settings
from d3hr_ray.cli.presets import PRESETS
from d3hr_ray.config import RunConfig, flag_of, setting
from d3hr_ray.config.fields import CLUSTER, DATA, OUTPUT
from d3hr_ray.runtime.cluster import LogFormat


@with_settings(RunConfig)
@dataclass(frozen=True)
class DistillFlags:
    """Command line of the job. A setting that is not given, None or (), is as the preset says."""

    preset: str | None = setting(
        None,
        f"Dataset, model and settings; other flags override it: {', '.join(PRESETS)}, or a file of jobs/sweep.py "
        "(best.json).",
        DATA,
        metavar="NAME|FILE",
        shown="digits; for data and a model of one's own, none: t = 600 and guidance 2 both ways",
    )
    from_gaussians: str | None = setting(
        None, "Make sets from the Gaussians of an earlier run, without its dataset.", DATA, metavar="RUN"
    )
    extend: str | None = setting(
        None,
        "Distil a set that has grown since an earlier run: what that run has inverted is not inverted again. --data is "
        "the whole set as it is now, the old images and the new ones. The settings are that run's unless a flag says "
        "otherwise, those of the data too.",
        DATA,
        metavar="RUN",
    )
    out: str | None = setting(
        None,
        "Run folder. The same command resumes it.",
        OUTPUT,
        metavar="URI",
        shown="runs/<preset>, or runs/<name of --data> without one, or the run of --from-gaussians",
    )
    overwrite: bool = setting(False, "Start the run folder anew.", OUTPUT)
    status: str | None = setting(
        None, "Print what a run folder has done and what is left, and do nothing else.", OUTPUT, metavar="RUN"
    )
    dry_run: bool = setting(
        False, "Print the plan (images, forwards, FLOP, time, bytes per stage) and run nothing.", OUTPUT
    )
    card_license: str | None = setting(
        None,
        "Licence of the images, for the cards of the sets: an identifier of the Hugging Face hub, or words.",
        OUTPUT,
        metavar="TEXT",
        shown="what an earlier run said, else that none is stated",
    )
    card_source: str | None = setting(
        None,
        "Where the images come from, for the cards of the sets.",
        OUTPUT,
        metavar="TEXT",
        shown="what an earlier run said, else the name of --data",
    )
    no_real_images: bool = machine_flags.no_real_images()
    tflops: float | None = setting(
        None,
        "Sustained TFLOP/s of one device, for the times of --dry-run.",
        OUTPUT,
        shown="measured here, for a small model where there is no GPU; else 300, a GPU's",
    )
    log_format: LogFormat = setting(
        "text", "json: structured lines, from drivers and workers, for log collectors.", OUTPUT
    )
    actors: tuple[int, ...] = machine_flags.actors()
    gpus_per_actor: float | None = machine_flags.gpus_per_actor()
    task_timeout: float = setting(
        1800.0,
        "Seconds that one batch, or the reading of one shard, may take before it is started again.",
        CLUSTER,
    )
    address: str | None = machine_flags.address()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def only_status(flags: DistillFlags) -> bool:
    """Whether --status is all that is asked. Raises ValueError if it comes with other flags."""
    others = [f.name for f in fields(flags) if f.name != "status" and getattr(flags, f.name) != f.default]
    if flags.status is not None and others:
        raise ValueError(f"--status goes alone; leave out {flag_of(others[0])}")
    return flags.status is not None
