"""What the flags of jobs/distill.py make of a preset or of an earlier run: its RunConfig."""

import json
from pathlib import Path

from d3hr_ray.cli.defaults import default_preset
from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.extending import hint_if_gone, refuse_contradictions, refuse_unlike
from d3hr_ray.cli.flags import given
from d3hr_ray.cli.overlay import SETTINGS, overlay, refuse_idle
from d3hr_ray.cli.parsing import meant
from d3hr_ray.cli.presets import PRESETS, as_cao2, as_official, becomes_cao2, own
from d3hr_ray.cli.resolve import require_float32
from d3hr_ray.config import FITTING, RunConfig, flag_of, from_dict
from d3hr_ray.filesystems import absolute
from d3hr_ray.runs import stored_config
from d3hr_ray.store import Store

# Flags that name the data or how it is inverted: settled for good once a run has Gaussians.
UPSTREAM = ("preset", *(name for name, s in SETTINGS.items() if s.flag.upstream))


def build_config(flags: DistillFlags) -> RunConfig:
    """The preset, or the run of --from-gaussians or --extend, with the flags laid over it.

    Raises ValueError for flags that are wrong, that contradict each other, or that are missing.
    """
    base = _base(flags)
    config = overlay(base, flags)
    if flags.from_gaussians and flags.dtype in (None, "auto"):
        config = require_float32(config)
    if flags.extend:
        refuse_unlike(base, config, flags)
    refuse_idle(config, flags)
    for name in ("tflops", "task_timeout"):
        if getattr(flags, name) is not None and not getattr(flags, name) > 0:
            raise ValueError(f"{flag_of(name)} {getattr(flags, name):g} must be above 0")
    if flags.tflops is not None and not flags.dry_run:
        raise ValueError("--tflops is for the times of --dry-run; give that, or leave it out")
    if not config.model.name:
        raise ValueError(
            f"--model is needed: preset {flags.preset} has no public model; train one with jobs/pretrain.py"
        )
    if not config.data.uri and config.needs_images and not (flags.dry_run and flags.preset):
        whose = f"preset {flags.preset}" if flags.preset else f"--model {flags.model}"
        raise ValueError(f"--data is needed: the images of {whose} do not come with the package")
    return config


def _base(flags: DistillFlags) -> RunConfig:
    """What flags are laid over. Raises ValueError for flags that contradict it."""
    if flags.extend:
        refuse_contradictions(flags)
        return _earlier("--extend", flags.extend, flags)
    if flags.from_gaussians:
        _refuse_upstream(flags)
        return _earlier("--from-gaussians", flags.from_gaussians, flags)
    preset = flags.preset or default_preset(flags)
    base = load_preset(preset) if preset else own(flags.model or "")
    if flags.fidelity == "fixed" and base.fidelity == "official":
        raise ValueError(f"--fidelity fixed contradicts --preset {preset}, which is official; leave one out")
    anew = becomes_cao2(base, flags.method, flags.fidelity)
    base = as_official(base) if flags.fidelity == "official" else base
    return as_cao2(base, preset) if anew else base


def _earlier(flag: str, run: str, flags: DistillFlags) -> RunConfig:
    """The config of the run that a flag names. Raises ValueError if there is none, or one of another fidelity."""
    stored = stored_config(Store(absolute(run)))
    if stored is None:
        hint = hint_if_gone(run, flags.out) if flag == "--extend" else ""
        raise ValueError(f"{flag} {run}: no run there (it has no run.json){hint}")
    base = from_dict(stored)
    if flags.fidelity not in (None, base.fidelity):
        raise ValueError(f"--fidelity {flags.fidelity} contradicts {flag}: that run is {base.fidelity}")
    return base


def load_preset(name: str) -> RunConfig:
    """A preset by name, or the config in a preset file. Raises ValueError if there is neither."""
    if name in PRESETS:
        return PRESETS[name]()
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(
            f"--preset {name}: no such preset or file; there are {', '.join(PRESETS)}{meant(name, PRESETS)}"
        )
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--preset {name} is no preset file of jobs/sweep.py ({error})") from error


def _refuse_upstream(flags: DistillFlags) -> None:
    for name in UPSTREAM:
        if given(flags, name) is not None:
            what = "contradicts --from-gaussians: the stored Gaussians settle it; leave it out"
            raise ValueError(f"{flag_of(name)} {what}")
    for name in ("dry_run", "overwrite"):
        if getattr(flags, name):
            raise ValueError(f"{flag_of(name)} cannot go with --from-gaussians, which inverts nothing; leave it out")
    if flags.method not in (None, *FITTING):
        raise ValueError(f"--method {flags.method} uses no Gaussians; leave out --from-gaussians")
