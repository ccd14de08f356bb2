"""Many sets from one run's Gaussians, made together, none of them twice.

A sweep over seeds, searches, timesteps and IPCs would otherwise start an actor pool for every set.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from d3hr_ray.config import RunConfig, as_dict, fingerprint, without_axes
from d3hr_ray.layout import gaussian_file
from d3hr_ray.methods.d3hr import Run, make_together
from d3hr_ray.methods.variants import pool_variant, variants
from d3hr_ray.sets import Variant
from d3hr_ray.stages.choose import choice_files
from d3hr_ray.stages.judge import judge_id
from d3hr_ray.stages.publish import pool_recipe, recipe
from d3hr_ray.store import Store


def settings_name(config: RunConfig) -> str:
    """A folder name for what a variant's own name does not tell: candidates, guidance, solver and the like."""
    plain = without_axes(as_dict(config))
    if not config.has_pool:  # how a pool is sampled, and what is done with it, goes by the method
        plain.pop("method")
    return f"w{config.synthesis.guidance:g}-c{config.search.candidates}-{fingerprint(plain)[:6]}"


def make_many(base: Run, configs: Sequence[RunConfig]) -> dict[RunConfig, list[str]]:
    """Make the sets of every config from the Gaussians of `base` => URIs of the sets, by config.

    Configs with equal settings share a folder, `sets/<settings>/`, and one stream of actors per stage. What is there is
    kept, and what the base itself has published is taken from there.
    """
    folders: dict[str, list[RunConfig]] = defaultdict(list)
    for config in dict.fromkeys(configs):
        folders[settings_name(config)].append(config)
    made = {}
    for name, members in folders.items():
        store = base.store.at(f"sets/{name}")
        runs = [_reopen(base, store, config) for config in members]
        wanted = [(run, v) for run in runs for v in variants(run.config)]
        places = {(run.config, v): _published(base, run, v) for run, v in wanted}
        missing = [(run, v) for run, v in wanted if not places[run.config, v]]
        if missing:
            make_together(with_pools(base, missing))
        for run in runs:
            at = [(places[run.config, v] or store).at(f"distilled/{v.name}") for v in variants(run.config)]
            made[run.config] = [found.uri for found in at]
    return made


def _published(base: Run, run: Run, variant: Variant) -> Store | None:
    """The folder that holds a set already: that of its settings, or the base's if it was made with the same recipe."""
    file = f"distilled/{variant.name}/manifest.json"
    choices = choice_files(variant, len(run.classes)) if run.config.has_pool else []
    if run.store.exists(file) and all(map(run.store.exists, choices)):
        return run.store
    if run.config.has_pool or not base.store.exists(file):  # a pool's recipe knows its classifier, a manifest does not
        return None
    own, wanted = base.store.read_json(file), json.loads(json.dumps(recipe(run.config, variant, run.inputs)))
    return base.store if all(own.get(key) == value for key, value in wanted.items()) else None


def with_pools(base: Run, wanted: Sequence[tuple[Run, Variant]]) -> list[tuple[Run, Variant]]:
    """The same runs of one folder, with the folder of their pools, if their method has any.

    Settings that differ only in what is done with a pool share it, in `sets/pools-<what decides it>/`.
    """
    config = wanted[0][0].config
    if not config.has_pool:
        return list(wanted)
    classifier = judge_id(config)
    recipe = pool_recipe(config, pool_variant(config, wanted[0][1]), base.inputs, classifier)
    pools = base.store.at(f"sets/pools-{fingerprint([without_axes(recipe['config']), classifier])[:6]}")
    for run, _ in wanted:
        _give(base, pools, run.config)
    return [(replace(run, pools=pools), variant) for run, variant in wanted]


def _reopen(base: Run, store: Store, config: RunConfig) -> Run:
    """A run in a folder that has a copy of the base's classes and Gaussians; its latents stay where they are."""
    _give(base, store, config)
    return replace(base, store=store, config=config, pools=store)


def _give(base: Run, store: Store, config: RunConfig) -> None:
    files = ["classes.parquet"]
    if config.fits:
        files += [gaussian_file(t) for t in config.inversion.timesteps]
    for name in files:
        if not store.exists(name):
            store.write_bytes(name, base.store.read_bytes(name))
