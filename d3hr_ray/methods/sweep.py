"""The sets of a sweep, each inverted and made once: what a run of its folder has already is taken from there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from d3hr_ray.config import RefineConfig, RunConfig, fingerprint, from_dict
from d3hr_ray.layout import CLASSES, INVERSIONS, RUN, gaussian_file, sweep_flags_file
from d3hr_ray.methods import d3hr
from d3hr_ray.methods.d3hr import Run
from d3hr_ray.methods.guiding import seen_blocks
from d3hr_ray.methods.inputs import check_fit, list_data, read_model
from d3hr_ray.methods.many import make_many
from d3hr_ray.runs import stored_config
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.runtime.console import announce
from d3hr_ray.sets import SetSpec, sets_of
from d3hr_ray.stages.class_means import clear_if_whole
from d3hr_ray.stages.feature_kinds import feature_kind
from d3hr_ray.store import Store


@dataclass(frozen=True)
class Sweep:
    """Which sets are made in a run folder, and on which actors.

    `settings` has the config of every set, all timesteps and IPCs at once, under each inversion guidance. The first
    guidance is that of `base`, the run's own config, if it is one of them: a run folder that is new gets that one.
    `flags` is what a sweep that was stopped is resumed with.
    """

    name: str
    store: Store
    base: RunConfig
    timesteps: tuple[int, ...]
    settings: Mapping[float, Sequence[RunConfig]]
    actors: Actors
    flags: Mapping[str, Any]

    @property
    def configs(self) -> list[RunConfig]:
        """Of all sets."""
        return [config for configs in self.settings.values() for config in configs]

    def remember(self) -> None:
        """Keep the flags, for --resume."""
        self.store.write_json(sweep_flags_file(self.name), dict(self.flags))


@dataclass(frozen=True)
class Place:
    """A run, and the timesteps of the sweep whose Gaussians are taken from it: none for what needs no Gaussian."""

    run: Run
    timesteps: tuple[int, ...] = ()


def invert_all(sweep: Sweep) -> list[Place]:
    """The runs that sets are made from. What a run has already is taken from it; the rest is inverted, and no more."""
    kinds = {config.fits for config in sweep.configs}
    places = [place for guidance in sweep.settings for place in _inverted(sweep, guidance)] if True in kinds else []
    _add_features(sweep, places)
    if False in kinds:
        places.append(Place(_open(sweep, sweep.store, sweep.configs[0], fit=False)))
    return places


def _inverted(sweep: Sweep, guidance: float) -> list[Place]:
    """One inversion's runs: those that have some of its timesteps, and one that is made for those that none has."""
    config = replace(sweep.base, inversion=replace(sweep.base.inversion, guidance=guidance, timesteps=sweep.timesteps))
    check_fit(config, *read_model(config, planning=False))
    inner = sweep.store.at(INVERSIONS)
    places, left = [], sweep.timesteps
    for store in (sweep.store, *(inner.at(name) for name in inner.folders())):
        plain = stored_config(store)
        there = _fitted(from_dict(plain), config) if plain else ()
        if taken := tuple(t for t in left if t in there):
            places.append(Place(_open(sweep, store, config), taken))
            left = tuple(t for t in left if t not in there)
    if left:
        inversion = replace(config.inversion, timesteps=left)
        name = f"{INVERSIONS}/w{guidance:g}-{fingerprint(inversion)[:6]}"
        store = sweep.store.at(name) if sweep.store.exists(RUN) else sweep.store
        places.append(Place(_open(sweep, store, replace(config, inversion=inversion, method="d3hr")), left))
    return places


def _add_features(sweep: Sweep, places: Sequence[Place]) -> None:
    """Make the features of real images that settings are refined or guided by, where runs do not have them."""
    wanted = dict.fromkeys(config.refine for config in sweep.configs if config.refines)
    for place in places:
        run = place.run
        left, blocks = list[RefineConfig](), seen_blocks(list(_configs(sweep, place)), run.card)
        for refine in wanted:
            kind = feature_kind(refine)
            if not clear_if_whole(run.store, kind.missing(run.store), kind.parts):
                left.append(refine)
        unseen = False
        for block, timesteps in blocks.items():
            unseen |= not clear_if_whole(run.store, block.missing(run.store, timesteps), block.parts())
        if left or unseen:
            listing = list_data(run.config, run.card)
            d3hr.check_images(run.store, listing)
            for refine in left:
                d3hr.fit_features(run, listing, refine)
            d3hr.fit_block_features(run, listing, blocks)


def _fitted(own: RunConfig, wanted: RunConfig) -> tuple[int, ...]:
    """The timesteps of a run's Gaussians, if it inverts as is wanted."""
    same = own.fits and replace(own.inversion, timesteps=wanted.inversion.timesteps) == wanted.inversion
    return own.inversion.timesteps if same else ()


def _open(sweep: Sweep, store: Store, new: RunConfig, fit: bool = True) -> Run:
    """The run in a folder, or a `new` one there, with all its Gaussians if `fit`; remembers the sweep."""
    plain = stored_config(store)
    config, (card, _) = from_dict(plain) if plain else new, read_model(new, planning=False)
    files = [gaussian_file(t) for t in config.inversion.timesteps] if fit else []
    if plain and all(map(store.exists, [CLASSES, *files])):
        sweep.remember()
        return d3hr.stored_run(store, card, sweep.actors)  # its images are looked at no more
    listing = list_data(config, card)
    if store != sweep.store:
        d3hr.check_images(sweep.store, listing)
    base = sweep.base if store == sweep.store else None
    run = d3hr.start_run(store, config, card, listing, sweep.actors, overwrite=False, base=base)
    sweep.remember()
    if fit:
        announce(f"inverting {len(listing):,} images with guidance {config.inversion.guidance:g} -> {store.uri}")
        d3hr.fit_gaussians(run, listing)
    return run


def synthesise_all(sweep: Sweep, places: Sequence[Place]) -> dict[str, SetSpec]:
    """Every combination's set => what each is, by its folder; those that are there are kept.

    Sets that no inversion decides (dit, cao2) are made once, in the run folder itself.
    """
    sets: dict[str, SetSpec] = {}
    for place in places:
        for config, uris in make_many(place.run, list(_configs(sweep, place))).items():
            sets |= dict(zip(uris, sets_of(config), strict=True))
    return sets


def _configs(sweep: Sweep, place: Place) -> Iterator[RunConfig]:
    """The settings whose sets are made from a place's run: at its timesteps, or those that need no Gaussian."""
    own = place.run.config.inversion
    for configs in [sweep.settings[own.guidance]] if place.timesteps else sweep.settings.values():
        for config in configs:
            if config.fits == bool(place.timesteps):
                timesteps = place.timesteps or config.inversion.timesteps
                inversion = replace(config.inversion, guidance=own.guidance, timesteps=timesteps)
                yield replace(config, inversion=inversion)
