"""Whole settings of jobs/distill.py as an axis of a sweep: "components=ipc single=medoid", "method=cao2 optimise=0"."""

from dataclasses import replace

from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.overlay import SETTINGS, overlay, refuse_idle
from d3hr_ray.cli.parsing import meant, read
from d3hr_ray.cli.presets import as_cao2, as_official, becomes_cao2
from d3hr_ray.config import RunConfig, flag_of
from d3hr_ray.datasets.subsets import SUBSETS

# What a variant may change. All else is an axis of the sweep, settled by the inversion, or says where and how it runs.
OPEN = sorted(name for name, s in SETTINGS.items() if s.flag.varies)
PLAIN = "run"  # the variant that changes nothing


def settings_of(text: str) -> dict[str, list[str]]:
    """A variant => the values of its flags, by their names in configs. Raises ValueError for what is no flag=value."""
    found = {}
    for word in text.split():
        if word == PLAIN:
            continue
        flag, equals, value = word.partition("=")
        name = flag.replace("-", "_")
        if not equals or name not in OPEN:
            words = [known.replace("_", "-") for known in OPEN]
            near = "" if name in OPEN else meant(name, words)
            raise ValueError(f"--variants {text!r}: {word} is no flag=value{near}; flags are {', '.join(words)}")
        if name in found:
            raise ValueError(f"--variants {text!r} gives {flag} twice")
        found[name] = value.split(",")
    return found


def vary(base: RunConfig, text: str) -> RunConfig:
    """A config with a variant laid over it: flag=value, lists as levels=1,11. Raises ValueError."""
    argv = [word for name, values in settings_of(text).items() for word in (flag_of(name), *values)]
    try:
        return _laid_over(base, read(DistillFlags, argv))
    except ValueError as error:
        raise ValueError(f"--variants {text!r}: {error}") from error


def _laid_over(base: RunConfig, flags: DistillFlags) -> RunConfig:
    anew = becomes_cao2(base, flags.method, flags.fidelity)
    if flags.fidelity == "official":
        base = replace(as_official(base), inversion=base.inversion)
    if anew:
        base = as_cao2(base, next((name for name, classes in SUBSETS.items() if base.data.classes == classes), ""))
    made = overlay(base, flags)
    refuse_idle(made, flags)
    return made
