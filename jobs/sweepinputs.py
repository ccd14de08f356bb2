"""What jobs/sweep.py goes through: inversions, sets and students, each once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from cli import announce, tell
from evaluateinputs import judge_teachers
from inputs import list_data, read_model
from settling import check_timesteps, exactly, settle
from sweepchecks import base_of, test_data
from sweepflags import SweepFlags, kept
from sweepvariants import PLAIN, vary

from d3hr_ray.config import DataConfig, RunConfig, SearchConfig, fingerprint, from_dict
from d3hr_ray.evaluation.comparison import Comparison, open_comparison
from d3hr_ray.evaluation.launch import Workers
from d3hr_ray.evaluation.protocols import Overrides, Recipe, Setting
from d3hr_ray.evaluation.trials import Trial
from d3hr_ray.layout import gaussian_file
from d3hr_ray.methods import d3hr
from d3hr_ray.methods.d3hr import Run
from d3hr_ray.methods.many import make_many
from d3hr_ray.models.students import build_student
from d3hr_ray.models.teachers import resolve, teacher_id
from d3hr_ray.report.chosen import pools_table, pools_text
from d3hr_ray.runs import stored_config
from d3hr_ray.runtime.actors import Actors, find_actors
from d3hr_ray.runtime.capacity import Ask, claim
from d3hr_ray.sets import SEARCHING, SetSpec, sets_of
from d3hr_ray.store import Store


@dataclass(frozen=True)
class Sweep:
    """A sweep's run folder, the config that its axes vary, where students are tested, and the machine."""

    flags: SweepFlags
    store: Store
    base: RunConfig
    data: DataConfig
    pool: Actors
    trial_gpus: float = 0.0  # per student

    @property
    def name(self) -> str:
        """Of its folder in sweeps/."""
        return self.flags.name

    @classmethod
    def plan(cls, flags: SweepFlags, store: Store, patience: float = 0.0) -> "Sweep":
        """Settle what the axes vary, the stored run's config or the preset's, and what of the machine they take.

        Raises ValueError.
        """
        pool = find_actors(flags.actors, flags.gpus_per_actor, patience)
        base = settle(base_of(flags, store), stored_config(store), pool)
        data = test_data(flags) or base.data
        return cls(flags, store, base, data, pool, trial_gpus(flags, pool, patience))

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

    @property
    def guidances(self) -> list[float]:
        """Of the inversions, the run's own first: the run folder itself, if new, gets the preset's."""
        own = self.base.inversion.guidance
        return sorted(self.flags.inversion_guidance or (own,), key=lambda guidance: guidance != own)

    def check(self) -> None:
        """Raise ValueError for settings that do not go together, before hours are spent on the first of them."""
        settings = [config for guidance in self.guidances for config in self.configs(guidance)]
        need = next((config.method for config in settings if config.fits), None)
        if need and not self.base.data.uri:
            raise ValueError(
                f"--method {need} needs images, and the run of --run {self.store.uri} has none: make one with "
                f"jobs/distill.py --method {need} --data, and sweep that"
            )
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


def trial_gpus(flags: SweepFlags, pool: Actors, patience: float) -> float:
    """GPUs per student: as asked, else one where the actors have any. Raises ValueError if the cluster has none."""
    share = flags.gpus_per_trial
    if share is None and (pool.gpus or flags.gpus_per_actor is None):
        share = 1.0 if pool.gpus else 0.0
    return claim(Ask(None, share, "--at-once", "--gpus-per-trial"), patience)[0]


@dataclass(frozen=True)
class Place:
    """A run, and the timesteps of the sweep whose Gaussians are taken from it: none for what needs no Gaussian."""

    run: Run
    timesteps: tuple[int, ...] = ()


def invert_all(sweep: Sweep) -> list[Place]:
    """The runs that sets are made from. What a run has already is taken from it; the rest is inverted, and no more."""
    kinds = {config.fits for guidance in sweep.guidances for config in sweep.configs(guidance)}
    places = [place for guidance in sweep.guidances for place in _inverted(sweep, guidance)] if True in kinds else []
    if False in kinds:
        plain = next(sweep.configs(sweep.guidances[0]))
        places.append(Place(_open(sweep, sweep.store, plain, fit=False)))
    return places


def _inverted(sweep: Sweep, guidance: float) -> list[Place]:
    """One inversion's runs: those that have some of its timesteps, and one that is made for those that none has."""
    config = replace(sweep.base, inversion=replace(sweep.base.inversion, guidance=guidance, timesteps=sweep.timesteps))
    check_timesteps(config, read_model(config, planning=False)[1])
    inner = sweep.store.at("inversions")
    places, left = [], sweep.timesteps
    for store in (sweep.store, *(inner.at(name) for name in inner.folders())):
        plain = stored_config(store)
        there = _fitted(from_dict(plain), config) if plain else ()
        if taken := tuple(t for t in left if t in there):
            places.append(Place(_open(sweep, store, config), taken))
            left = tuple(t for t in left if t not in there)
    if left:
        inversion = replace(config.inversion, timesteps=left)
        name = f"inversions/w{guidance:g}-{fingerprint(inversion)[:6]}"
        store = sweep.store.at(name) if sweep.store.exists("run.json") else sweep.store
        places.append(Place(_open(sweep, store, replace(config, inversion=inversion, method="d3hr")), left))
    return places


def _fitted(own: RunConfig, wanted: RunConfig) -> tuple[int, ...]:
    """The timesteps of a run's Gaussians, if it inverts as is wanted."""
    same = own.fits and replace(own.inversion, timesteps=wanted.inversion.timesteps) == wanted.inversion
    return own.inversion.timesteps if same else ()


def _open(sweep: Sweep, store: Store, new: RunConfig, fit: bool = True) -> Run:
    """The run in a folder, or a `new` one there, with all its Gaussians if `fit`; remembers the sweep."""
    plain = stored_config(store)
    config, (card, _) = from_dict(plain) if plain else new, read_model(new, planning=False)
    files = [gaussian_file(t) for t in config.inversion.timesteps] if fit else []
    if plain and all(map(store.exists, ["classes.parquet", *files])):
        remember(sweep)
        return d3hr.stored_run(store, card, sweep.pool)  # its images are looked at no more
    listing = list_data(config, card)
    if store != sweep.store:
        d3hr.check_images(sweep.store, listing)
    run = d3hr.start_run(store, config, card, listing, sweep.pool, overwrite=False)
    remember(sweep)
    if fit:
        announce(f"inverting {len(listing):,} images with guidance {config.inversion.guidance:g} -> {store.uri}")
        d3hr.fit_gaussians(run, listing)
    return run


def remember(sweep: Sweep) -> None:
    """Keep the flags, for --resume."""
    sweep.store.write_json(f"sweeps/{sweep.name}/sweep.json", kept(sweep.flags))


def synthesise_all(sweep: Sweep, places: Sequence[Place]) -> list[str]:
    """Every combination's set => their folders; those that are there are kept. What pools held goes to pools.csv.

    Sets that no inversion decides (dit, cao2) are made once, in the run folder itself.
    """
    sets: list[str] = []
    chosen: dict[str, SetSpec] = {}
    for place in places:
        for config, uris in make_many(place.run, list(_configs(sweep, place))).items():
            sets += [u for u in uris if u not in sets]
            if config.has_pool:
                chosen |= dict(zip(uris, sets_of(config), strict=True))
    if chosen:
        table = pools_table(list(chosen.items()), len(places[0].run.classes))
        sweep.store.write_csv(f"sweeps/{sweep.name}/pools.csv", table)
        announce(pools_text(table))
    return sets


def _configs(sweep: Sweep, place: Place) -> Iterator[RunConfig]:
    """The settings whose sets are made from a place's run: at its timesteps, or those that need no Gaussian."""
    own = place.run.config.inversion
    for guidance in [own.guidance] if place.timesteps else sweep.guidances:
        for config in sweep.configs(guidance):
            if config.fits == bool(place.timesteps):
                timesteps = place.timesteps or config.inversion.timesteps
                inversion = replace(config.inversion, guidance=own.guidance, timesteps=timesteps)
                yield replace(config, inversion=inversion)


def compare(sweep: Sweep, sets: Sequence[str]) -> tuple[Comparison, list[Trial], dict[tuple[str, ...], float | None]]:
    """The comparison, its trials under every combination of hyperparameters, and the teachers' top-1."""
    flags = sweep.flags
    comparison = open_comparison(tuple(sets), sweep.data, None, flags.arch, None, Recipe())
    tell(comparison.notes)
    teachers = tuple(map(resolve, flags.teacher))
    top1: dict[tuple[str, ...], float | None] = {}
    if teachers:
        top1[teachers] = judge_teachers(teachers, comparison, Workers(1, sweep.trial_gpus))
    names = teacher_id(teachers) if teachers else None
    trials: list[Trial] = []
    for changes in sweep.overrides():
        varied = replace(comparison, recipe=replace(comparison.recipe, overrides=changes))
        found = varied.trials(flags.arch, flags.protocol, flags.repeats, teachers, names)
        trials += found
    return comparison, trials, top1
