"""What the flags of jobs/distill.py make of a preset or of an earlier run: its RunConfig."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from d3hr_ray.cli.defaults import default_preset
from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.layouts import LAYOUT, layout
from d3hr_ray.cli.parsing import meant
from d3hr_ray.cli.presets import PRESETS, as_cao2, as_official, own, with_classifier
from d3hr_ray.cli.resolve import exactly
from d3hr_ray.config import D3HR_QUIRKS, RunConfig, from_dict
from d3hr_ray.datasets.classes import read_classes
from d3hr_ray.datasets.digits import NAMES
from d3hr_ray.runs import stored_config
from d3hr_ray.store import Store, absolute

ADAMS_STEPS = 15  # round trip as good as that of 50 DDIM steps (README); t = 600 is on this grid

# Flags that name the data or how it is inverted: settled for good once a run has Gaussians.
UPSTREAM = (
    "preset",
    "data",
    "format",
    *LAYOUT,
    "classes",
    "model",
    "ddim_steps",
    "inversion_guidance",
    "solver",
    "posterior",
    "limit_per_class",
    "max_rejected",
)


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
        preset = flags.preset or default_preset(flags)
        base = load_preset(preset) if preset else own(flags.model or "")
        if flags.fidelity == "fixed" and base.fidelity == "official":
            raise ValueError(f"--fidelity fixed contradicts --preset {preset}, which is official; leave one out")
        base = as_official(base, bool(preset)) if flags.fidelity == "official" else base
        base = as_cao2(base, preset, bool(preset)) if flags.method == "cao2" else base
    config = overlay(base, flags)
    if flags.from_gaussians and flags.dtype == "auto":
        config = exactly(config)
    refuse_idle(config, flags)
    for name in ("tflops", "task_timeout"):
        if getattr(flags, name) is not None and not getattr(flags, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(flags, name):g} must be above 0")
    if not config.model.name:
        raise ValueError(
            f"--model is needed: preset {flags.preset} has no public model; train one with jobs/pretrain.py"
        )
    if not config.data.uri and config.needs_images and not (flags.dry_run and flags.preset):
        whose = f"preset {flags.preset}" if flags.preset else f"--model {flags.model}"
        raise ValueError(f"--data is needed: the images of {whose} do not come with the package")
    return config


SEARCHES = ("search", "candidates", "skew_weight", "components", "rank", "single", "spread", "cluster_timestep")
STAGE_2 = ("optimise_lr", "linf", "condition", "levels")
CHOOSES = ("pool", "classifier", "select", "optimise", *STAGE_2)


def refuse_idle(config: RunConfig, flags: DistillFlags) -> None:
    """Raise ValueError for a flag that the method would not look at."""
    idle = {"rematch": config.method != "d3hr+cao2", "sampler": config.method != "cao2"}
    idle |= dict.fromkeys(SEARCHES, config.method not in ("d3hr", "d3hr+cao2"))
    idle |= dict.fromkeys(CHOOSES, not config.has_pool)
    kinds = {quirk in D3HR_QUIRKS for quirk in flags.mend}
    idle["mend"] = (True in kinds and config.method != "d3hr") or (False in kinds and config.method != "cao2")
    if config.search.method == "random" and flags.spread is not None:
        raise ValueError("--spread is of exact matching and does nothing with --search random; leave it out")
    for name, unused in idle.items():
        if unused and getattr(flags, name) not in (None, ()):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} does nothing with --method {config.method}; leave it out")
    if config.has_pool and config.cao2.iterations == 0:
        for name in STAGE_2:
            if getattr(flags, name) not in (None, ()):
                flag, default = "--" + name.replace("_", "-"), ", the default here," * (flags.optimise is None)
                raise ValueError(f"--optimise 0{default} leaves stage 2 out; leave out {flag} too, or give --optimise")


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
        spread=flags.spread,
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
            uri=flags.data and written_out(flags.data, flags.format),
            format=flags.format or ("auto" if flags.data else None),
            classes=read_classes(flags.classes),
            **layout(flags),
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
            iterations=_iterations(base, flags),
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


def written_out(uri: str, form: str | None) -> str:
    """--data as any folder can say it again: an absolute path, or the name of an embedded set."""
    is_name = form in (None, "auto", "digits") and uri.partition("/")[0] in NAMES
    return uri if is_name else absolute(uri)


def _iterations(base: RunConfig, flags: DistillFlags) -> int | None:
    """Stage 2's steps; d3hr+cao2 has none unless they are asked for: there they were measured not to help (README)."""
    composed = flags.method == "d3hr+cao2" and base.method != flags.method
    return 0 if composed and flags.optimise is None else flags.optimise


def _same_levels(base: RunConfig, steps: int | None) -> tuple[int, ...]:
    """Stage 2's places on a grid of other steps, at about the same noise."""
    own = base.inversion.steps
    return () if steps in (None, own) else tuple(max(1, round(level * steps / own)) for level in base.cao2.levels)


def _given(config: Any, **values: Any) -> Any:
    return replace(config, **{k: v for k, v in values.items() if v not in (None, ())})
