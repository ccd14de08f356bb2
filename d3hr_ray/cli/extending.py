"""--extend: the settings are the earlier run's, and new images must be inverted as it inverted its own."""

from functools import reduce

from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.flags import given, text_of
from d3hr_ray.cli.overlay import SETTINGS
from d3hr_ray.cli.resolve import needs_float32
from d3hr_ray.config import RunConfig, flag_of
from d3hr_ray.filesystems import absolute
from d3hr_ray.layout import RUN
from d3hr_ray.runs import read_run
from d3hr_ray.store import Store

# What decides an image's latents, beside the model, whose weights are compared, and the timesteps.
DECIDING = [*(name for name, s in SETTINGS.items() if s.section == "inversion" and s.flag.upstream), "dtype", "seed"]


def refuse_contradictions(flags: DistillFlags) -> None:
    """Raise ValueError for flags that cannot stand beside --extend, and without --out."""
    for name, why in (
        ("preset", "the settings are those of that run"),
        ("from_gaussians", "that makes sets without images, this inverts new ones"),
    ):
        if getattr(flags, name):
            raise ValueError(f"{flag_of(name)} contradicts --extend: {why}; leave one of them out")
    if not flags.out:
        raise ValueError(f"--out is needed with --extend: another folder than {flags.extend}, which stays as it is")


def hint_if_gone(run: str, out: str | None) -> str:
    """What to do if the run that --extend names is gone, and the run in `out` has taken latents from it."""
    store = Store(absolute(out or ""))
    if not out or not store.exists(RUN) or read_run(store)["inputs"].get("extends", {}).get("run") != absolute(run):
        return ""
    return f"; {out} has taken images from it: leave --extend out, and give the settings that its run.json has"


def refuse_unlike(base: RunConfig, config: RunConfig, flags: DistillFlags) -> None:
    """Raise ValueError for a config that inverts images unlike the `base` of the run that it extends, or uses none."""
    again = f"leave it out, or leave --extend {flags.extend} out to invert all images again"
    if not config.fits:
        raise ValueError(f"--method {config.method} inverts no images, so there is nothing to --extend; leave that out")
    for name in sorted(DECIDING, key=lambda name: given(flags, name) is None):  # and then what that implies
        was, now = (reduce(getattr, SETTINGS[name].path.split("."), each) for each in (base, config))
        keyed = name != "seed" or config.inversion.posterior == "sample"  # of a mode, nothing is drawn
        if was != now and keyed:
            raise ValueError(
                f"{flag_of(name)} {text_of(now)}: that run inverted its images with {text_of(was)}; {again}"
            )
    if needs_float32(config) and not needs_float32(base) and config.model.dtype != "float32":
        raise ValueError(
            f"--method {config.method} needs float32, and {flags.extend} inverted its images in {config.model.dtype}; "
            f"extend it without --method, then make these sets --from-gaussians {flags.out}"
        )
