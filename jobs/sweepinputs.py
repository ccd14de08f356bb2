"""What jobs/sweep.py goes through: inversions, sets and students, each once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import ray
from building import load_preset
from cli import announce, tell
from evaluateinputs import judge_teachers
from inputs import list_data, read_model
from settling import check_timesteps, exactly, settle
from sweepflags import UNKEPT, SweepFlags
from sweepvariants import PLAIN, vary

from d3hr_ray.config import DataConfig, RunConfig, SearchConfig, as_dict, fingerprint, from_dict
from d3hr_ray.evaluation.comparison import Comparison, open_comparison
from d3hr_ray.evaluation.launch import Workers
from d3hr_ray.evaluation.protocols import Overrides, Recipe, Setting
from d3hr_ray.evaluation.students import build_student
from d3hr_ray.evaluation.teachers import resolve, teacher_id
from d3hr_ray.evaluation.trials import Trial
from d3hr_ray.methods import d3hr
from d3hr_ray.methods.d3hr import Run
from d3hr_ray.methods.many import make_many
from d3hr_ray.methods.variants import variants
from d3hr_ray.report.chosen import pools_table, pools_text
from d3hr_ray.runs import stored_config
from d3hr_ray.stages.pool import Pool, find_pool
from d3hr_ray.stages.search import Variant
from d3hr_ray.store import Store, absolute


def open_sweep(flags: SweepFlags) -> tuple[SweepFlags, Store]:
    """The flags, or with --resume the stored ones, and the run folder. Raises ValueError if there is none to resume."""
    assert flags.run is not None
    store, file = Store(absolute(flags.run)), f"sweeps/{flags.name}/sweep.json"
    if not flags.resume:
        # A flag that an earlier version did not have had today's default.
        if store.exists(file) and _kept(SweepFlags()) | store.read_json(file) != _kept(flags):
            raise ValueError(
                f"--name {flags.name}: {store.uri} has another sweep of this name; give another --name (students and "
                "sets are shared all the same), or --resume to go on with that one"
            )
        return flags, store
    if not store.exists(file):
        raise ValueError(f"--resume: {store.uri} has no sweep named {flags.name!r}; give its --name, or start one")
    kept: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in store.read_json(file).items()}
    return replace(flags, **kept), store


def tested_on(flags: SweepFlags, uri: str) -> DataConfig:
    """The real images that --data names."""
    return DataConfig(
        uri,
        flags.format,
        class_depth=flags.class_depth,
        image_column=flags.image_column,
        label_column=flags.label_column,
    )


SEARCHING = ("d3hr", "d3hr+cao2")


@dataclass(frozen=True)
class Sweep:
    """A sweep's run folder, the config that its axes vary, where students are tested, and the machine."""

    flags: SweepFlags
    store: Store
    base: RunConfig
    data: DataConfig
    pool: Pool

    @property
    def name(self) -> str:
        """Of its folder in sweeps/."""
        return self.flags.name

    @property
    def share(self) -> tuple[float, int | None]:
        """GPUs per student, and students at once."""
        gpus = self.flags.gpus_per_trial
        there = ray.cluster_resources().get("GPU", 0)
        if gpus is None:
            gpus = 1.0 if there else 0.0
        if gpus > there:
            raise ValueError(f"--gpus-per-trial {gpus:g}: the cluster has {there:g} GPUs; give 0 to use CPUs")
        return gpus, self.flags.at_once

    @classmethod
    def plan(cls, flags: SweepFlags, store: Store) -> "Sweep":
        """Settle what the axes vary: the stored run's config, or the preset's. Raises ValueError."""
        stored = stored_config(store)
        preset = load_preset(flags.preset or "digits")
        base = from_dict(stored) if stored else preset
        if stored and flags.preset and (preset.data, preset.model.name) != (base.data, base.model.name):
            raise ValueError(f"--preset {flags.preset} is not what --run {store.uri} was made from; leave it out")
        pool = find_pool((), None)
        base = settle(base, stored, pool)
        data = tested_on(flags, flags.data) if flags.data else base.data
        return cls(flags, store, base, data, pool)

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Those that are asked for, or the run's."""
        return self.flags.timesteps or self.base.inversion.timesteps

    def configs(self, inversion_guidance: float) -> Iterator[RunConfig]:
        """Every set's config under one inversion, all timesteps and IPCs at once."""
        flags = self.flags
        inversion = replace(self.base.inversion, guidance=inversion_guidance, timesteps=self.timesteps)
        base = replace(self.base, inversion=inversion, search=replace(self.base.search, ipc=flags.ipc))
        texts = flags.variants or (PLAIN,)
        for text in [f"{text} method={method}" for text, method in product(texts, flags.method)] or texts:
            varied = exactly(vary(base, text))
            guidances = (inversion_guidance,) if flags.matched else flags.guidance or (varied.synthesis.guidance,)
            searches = self.searches(varied.search) if varied.method in SEARCHING else [varied.search]
            for guidance, seed, search in product(guidances, flags.seeds, searches):
                synthesis = replace(varied.synthesis, guidance=guidance)
                yield replace(varied, seed=seed, search=search, synthesis=synthesis)

    def check(self) -> None:
        """Raise ValueError for settings that do not go together, before hours are spent on the first of them."""
        for guidance in self.flags.inversion_guidance or (self.base.inversion.guidance,):
            list(self.configs(guidance))
        card, _ = read_model(self.base, planning=False)
        side = self.base.synthesis.image_size or card.image_size
        for arch in self.flags.arch:
            build_student(arch, card.num_classes, side, 0)
            for protocol, changes in product(self.flags.protocol, self.overrides()):
                Recipe(overrides=changes).make(protocol, Setting(arch, side, self.flags.ipc[0], card.num_classes))
        for name in self.flags.teacher:
            teacher_id((resolve(name),))

    def searches(self, base: SearchConfig) -> list[SearchConfig]:
        """Search methods x candidates x components x ranks."""
        flags, found = self.flags, []
        for method in flags.search or (base.method,):
            own = base.candidates if method == base.method else 256 if method == "moments" else 1000
            axes = (flags.candidates or (own,), flags.components or (base.components,), flags.rank or (base.rank,))
            for count, components, rank in product(*axes):
                found.append(replace(base, method=method, candidates=count, components=components, rank=rank))
        return found

    def overrides(self) -> list[Overrides]:
        """The product of the training hyperparameters."""
        axes = ("epochs", "lr", "weight_decay", "batch_size", "temperature")
        values = [getattr(self.flags, axis) or (None,) for axis in axes]
        return [Overrides(**dict(zip(axes, combination, strict=True))) for combination in product(*values)]


def invert_all(sweep: Sweep) -> dict[float, Run]:
    """A run with Gaussians at all timesteps per inversion guidance; one that has them already is taken as it is."""
    own = sweep.base.inversion.guidance
    asked = sweep.flags.inversion_guidance or (own,)
    made = {}
    for guidance in sorted(asked, key=lambda g: g != own):  # the run folder itself, if new, gets the preset's
        inversion = replace(sweep.base.inversion, guidance=guidance, timesteps=sweep.timesteps)
        made[guidance] = _inverted(sweep, replace(sweep.base, inversion=inversion))
    return made


def _inverted(sweep: Sweep, config: RunConfig) -> Run:
    card, grid = read_model(config, planning=False)
    check_timesteps(config, grid)
    inner = sweep.store.at("inversions")
    there = [sweep.store, *(inner.at(name) for name in inner.folders())]
    stored = {store: stored_config(store) for store in there}
    holding = (s for s in there if (plain := stored[s]) and _holds(from_dict(plain), config))
    name = f"inversions/w{config.inversion.guidance:g}-{fingerprint(config.inversion)[:6]}"
    store = next(holding, sweep.store.at(name) if stored[sweep.store] else sweep.store)
    plain = stored.get(store)
    settled = from_dict(plain) if plain else replace(config, method="d3hr")
    listing = list_data(settled, card)
    run = d3hr.start_run(store, settled, card, listing, sweep.pool, overwrite=False)
    remember(sweep)
    if any(not store.exists(d3hr.gaussian_file(t)) for t in settled.inversion.timesteps):
        announce(f"inverting {len(listing):,} images with guidance {config.inversion.guidance:g} -> {store.uri}")
        d3hr.fit_gaussians(run, listing)
    return run


def _holds(own: RunConfig, wanted: RunConfig) -> bool:
    """Whether a run has the Gaussians that are wanted: the same inversion, at those timesteps and maybe more."""
    same = replace(own.inversion, timesteps=wanted.inversion.timesteps) == wanted.inversion
    return same and set(wanted.inversion.timesteps) <= set(own.inversion.timesteps)


def remember(sweep: Sweep) -> None:
    """Keep the flags, for --resume."""
    sweep.store.write_json(f"sweeps/{sweep.name}/sweep.json", _kept(sweep.flags))


def _kept(flags: SweepFlags) -> dict[str, Any]:
    return {name: value for name, value in as_dict(flags).items() if name not in UNKEPT}


def synthesise_all(sweep: Sweep, runs: Mapping[float, Run]) -> list[str]:
    """Every combination's set => their folders; those that are there are kept. What pools held goes to pools.csv.

    Sets that no inversion decides (dit, cao2) are made under the first one alone.
    """
    sets: list[str] = []
    chosen: dict[str, Variant] = {}
    first = next(iter(runs))
    wanted: dict[float, list[RunConfig]] = {guidance: [] for guidance in runs}
    for guidance in runs:
        for config in sweep.configs(guidance):
            if config.fits:
                wanted[guidance].append(config)
            else:
                wanted[first].append(replace(config, inversion=replace(config.inversion, guidance=first)))
    for guidance, run in runs.items():
        for config, uris in make_many(run, wanted[guidance]).items():
            sets += [u for u in uris if u not in sets]
            if config.has_pool:
                chosen |= dict(zip(uris, variants(config), strict=True))
    if chosen:
        table = pools_table(list(chosen.items()), len(runs[first].classes))
        sweep.store.write_csv(f"sweeps/{sweep.name}/pools.csv", table)
        announce(pools_text(table))
    return sets


def compare(sweep: Sweep, sets: Sequence[str]) -> tuple[Comparison, list[Trial], dict[tuple[str, ...], float | None]]:
    """The comparison, its trials under every combination of hyperparameters, and the teachers' top-1."""
    flags = sweep.flags
    comparison = open_comparison(tuple(sets), sweep.data, None, flags.arch, None, Recipe())
    tell(comparison.notes)
    teachers = tuple(map(resolve, flags.teacher))
    top1: dict[tuple[str, ...], float | None] = {}
    if teachers:
        top1[teachers] = judge_teachers(teachers, comparison, Workers(1, sweep.share[0]))
    names = teacher_id(teachers) if teachers else None
    trials: list[Trial] = []
    for changes in sweep.overrides():
        varied = replace(comparison, recipe=replace(comparison.recipe, overrides=changes))
        found = varied.trials(flags.arch, flags.protocol, flags.repeats, teachers, names)
        trials += found
    return comparison, trials, top1
