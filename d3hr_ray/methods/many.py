"""Many sets from one run's Gaussians, made together, none of them twice.

A sweep over seeds, searches, timesteps and IPCs would otherwise start an actor pool for every set.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from d3hr_ray.config import RunConfig, fingerprint
from d3hr_ray.datasets.classes import folder_names
from d3hr_ray.layout import CLASSES, SETS, gaussian_file, manifest_file, set_folder
from d3hr_ray.methods.d3hr import Run, make_together
from d3hr_ray.runs import claim_recipe
from d3hr_ray.sets import SetSpec, sets_of, without_axes
from d3hr_ray.stages.choose import choice_files
from d3hr_ray.stages.guides import run_moments
from d3hr_ray.stages.judge import judge_ids
from d3hr_ray.store import Store


def make_many(base: Run, configs: Sequence[RunConfig]) -> dict[RunConfig, list[str]]:
    """Make the sets of every config from the Gaussians of `base` => URIs of the sets, by config.

    Configs with equal settings share a folder, `sets/<settings>/`; images of all are one stream of actors. What is
    there is kept, and what the base itself has published is taken from there.
    """
    for near in {t for config in configs if (t := config.moments_timestep) is not None}:
        run_moments(base.latents, base.store, near, folder_names(base.classes))
    folders: dict[str, list[SetSpec]] = defaultdict(list)
    for spec in dict.fromkeys(spec for config in configs for spec in sets_of(config)):
        folders[spec.settings].append(spec)
    places, parts = dict[SetSpec, Store](), list[tuple[Run, list[SetSpec]]]()
    for name, specs in folders.items():
        store = base.store.at(f"{SETS}/{name}")
        for spec in specs:
            _give(base, store, spec)
        found = {spec: _published(base, store, spec) for spec in specs}
        if missing := [spec for spec in specs if not found[spec]]:
            run = replace(base, store=store, config=missing[0].config, pools=store)
            parts.append((with_pools(base, run, missing), missing))
        places |= {spec: (found[spec] or store).at(set_folder(spec)) for spec in specs}
    if parts:
        make_together(parts)
    return {config: [places[spec].uri for spec in sets_of(config)] for config in configs}


def _published(base: Run, store: Store, spec: SetSpec) -> Store | None:
    """The folder that holds a set already: that of its settings, or the base's if it was made with the same recipe."""
    file = manifest_file(spec)
    if spec.config.has_pool and store.exists(file):  # of the same candidates, judged by the same networks
        claim_recipe(store, spec.pool.recipe(base.inputs, judge_ids(spec.config)))
    choices = choice_files(spec, len(base.classes)) if spec.config.has_pool else []
    if store.exists(file) and all(map(store.exists, choices)):
        return store
    if spec.config.has_pool or not base.store.exists(file):  # a pool's recipe knows its judges, a manifest does not
        return None
    own, wanted = base.store.read_json(file), json.loads(json.dumps(spec.recipe(base.inputs)))
    return base.store if all(own.get(key) == value for key, value in wanted.items()) else None


def with_pools(base: Run, run: Run, specs: Sequence[SetSpec]) -> Run:
    """A run of sets of one folder, with the folder of their pools, if their method has any.

    Settings that differ only in what is done with a pool share it, in `sets/pools-<what decides it>/`.
    """
    if not specs[0].config.has_pool:
        return run
    plain = specs[0].pool.recipe(base.inputs)["config"]
    judges = judge_ids(specs[0].config).values() or [None]
    pools = base.store.at(f"{SETS}/pools-{fingerprint([without_axes(plain), *judges])[:6]}")
    for spec in specs:
        _give(base, pools, spec)
    return replace(run, pools=pools)


def _give(base: Run, store: Store, spec: SetSpec) -> None:
    """Copy the base's classes, and the Gaussians that a set is matched to; its latents stay where they are."""
    timesteps = [t for t in (spec.timestep, spec.config.moments_timestep) if t is not None]
    files = [CLASSES, *map(gaussian_file, timesteps)]
    for name in files:
        if not store.exists(name):
            store.write_bytes(name, base.store.read_bytes(name))
