"""Flags of settings laid over a config: what each replaces, what it brings with it, and which would do nothing."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.flags import given
from d3hr_ray.cli.presets import with_classifier
from d3hr_ray.config import (
    D3HR_QUIRKS,
    CaO2Config,
    Format,
    GuideConfig,
    InversionConfig,
    RunConfig,
    Setting,
    flag_of,
    settings_of,
)
from d3hr_ray.datasets.classes import read_classes
from d3hr_ray.datasets.named import set_of
from d3hr_ray.filesystems import absolute

SETTINGS: Mapping[str, Setting] = settings_of(RunConfig)
ADAMS_STEPS = 15  # round trip as good as that of 50 DDIM steps (docs/results.md); t = 600 is on this grid
CANDIDATES = {"moments": 256, "random": 1_000_000}
AUTO = ("dtype", "batch_size")  # whose `auto` leaves what a stored run has settled
READ: dict[str, Callable[[Any], Any]] = {  # what people type => what the field holds, where these differ
    "classes": read_classes,
    "rematch": lambda typed: typed == "yes",
    "mend": lambda typed: tuple(sorted(set(typed))),
}


def overlay(base: RunConfig, flags: DistillFlags) -> RunConfig:
    """Every setting that was given replaces its field; what it implies for others does so where they were not given."""
    typed = {name: value for name in SETTINGS if (value := given(flags, name)) is not None}
    typed = {name: value for name, value in typed.items() if not (name in AUTO and value == "auto")}
    values = {name: READ[name](value) if name in READ else value for name, value in typed.items()}
    if values.get("data"):
        values["data"] = written_out(values["data"], flags.format)
    return with_classifier(_laid_over(base, _implied(base, values) | values))


def _implied(base: RunConfig, values: dict[str, Any]) -> dict[str, Any]:
    """What the settings that were given mean for others, which may be given, too."""
    more: dict[str, Any] = {}
    if "data" in values:
        more["format"] = "auto"
    if values.get("search", base.search.method) != base.search.method:
        more["candidates"] = CANDIDATES[values["search"]]
    if values.get("solver", base.inversion.solver) != base.inversion.solver:
        more["ddim_steps"] = ADAMS_STEPS if values["solver"] == "adams" else InversionConfig().steps
    if (steps := (more | values).get("ddim_steps", base.inversion.steps)) != base.inversion.steps:
        more["levels"] = _same_levels(base, steps)
    if values.get("select") == "none":
        more["pool"] = 1
    elif "select" in values and base.cao2.select == "none":
        more["pool"] = CaO2Config().pool
    if values.get("select", "learnable") != "learnable":
        more["learner"] = None
    if values.get("guide", base.guide.kind) != base.guide.kind:  # what one kind of guide alone has
        plain = GuideConfig()
        more |= {"guide_repulsion": plain.repulsion, "feature_block": plain.block, "feature_images": plain.images}
    if values.get("method") == "d3hr+cao2" != base.method:
        more["optimise"] = 0  # stage 2 was measured not to help there (docs/results.md)
    return more


def _same_levels(base: RunConfig, steps: int) -> tuple[int, ...]:
    """Stage 2's places on a grid of other steps, at about the same noise."""
    return tuple(max(1, round(level * steps / base.inversion.steps)) for level in base.cao2.levels)


def _laid_over(base: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """A config with fields replaced, given by the names of their flags."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        parts.setdefault(SETTINGS[name].section, {})[SETTINGS[name].field.name] = value
    own = parts.pop("", {})
    inner = {section: replace(getattr(base, section), **fields) for section, fields in parts.items()}
    return replace(base, **inner, **own)


def written_out(uri: str, form: Format | None) -> str:
    """--data as any folder can say it again: an absolute path, or the name of a set."""
    return uri if set_of(uri, form or "auto") else absolute(uri)


def refuse_idle(config: RunConfig, flags: DistillFlags) -> None:
    """Raise ValueError for a flag that would do nothing: the method does not look at it, or what it needs is off."""
    if config.search.method == "random" and flags.spread is not None:
        raise ValueError("--spread is of exact matching and does nothing with --search random; leave it out")
    asked = [s for name, s in SETTINGS.items() if given(flags, name) is not None]
    for s in asked:
        unlooked = s.flag.methods and config.method not in s.flag.methods
        if unlooked or (s.name == "mend" and _mends_another(config, flags)):
            raise ValueError(f"{flag_of(s.name)} does nothing with --method {config.method}; leave it out")
    for s in asked:
        if s.flag.needs and getattr(getattr(config, s.section), s.flag.needs) in (0, "none"):
            if lead := _switch(s):
                raise ValueError(f"{flag_of(s.name)} does nothing without {lead}; give that, or leave it out")
            default = ", the default here," * (flags.optimise is None)
            raise ValueError(
                f"--optimise 0{default} leaves stage 2 out; leave out {flag_of(s.name)}, or give --optimise"
            )
    until, first = config.guide.until, min(config.inversion.timesteps)
    if config.guides and until > first:
        raise ValueError(
            f"--guide {config.guide.kind} does nothing at --timesteps {first}: it ends at --guide-until {until}; "
            f"give a smaller one, such as {first // 2}"
        )


def _switch(setting: Setting) -> str:
    """What turns a setting on, as people type it, such as --refine match; nothing where that is a number."""
    (lead,) = (s for s in SETTINGS.values() if s.path == f"{setting.section}.{setting.flag.needs}")
    words = [word for word in get_args(lead.type) if word != "none"]
    return f"{flag_of(lead.name)} {' or '.join(words)}" if words else ""


def _mends_another(config: RunConfig, flags: DistillFlags) -> bool:
    """Whether a quirk is named that the method's code does not have."""
    own = {True: "d3hr", False: "cao2"}
    return any(own[quirk in D3HR_QUIRKS] != config.method for quirk in flags.mend)
