"""D3HR (ICML 2025), CaO2 (ICCV 2025), their composition, and the baselines that share their stages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import pyarrow as pa

from d3hr_ray.config import RunConfig, from_dict
from d3hr_ray.datasets.classes import folder_names
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.look import look_of
from d3hr_ray.layout import finished, gaussian_file
from d3hr_ray.methods.variants import pool_variant, variants
from d3hr_ray.models.card import ModelCard
from d3hr_ray.runs import claim_recipe, open_run, read_run
from d3hr_ray.runtime.actors import Pool
from d3hr_ray.sets import Variant
from d3hr_ray.stages import contents
from d3hr_ray.stages.candidates import run_candidates
from d3hr_ray.stages.choose import run_choose
from d3hr_ray.stages.fit import run_fit
from d3hr_ray.stages.invert import run_invert
from d3hr_ray.stages.judge import judge_id
from d3hr_ray.stages.mixture import mixture_kind, run_mixtures
from d3hr_ray.stages.publish import pool_recipe, recipe, run_publish
from d3hr_ray.stages.reals import run_reals
from d3hr_ray.stages.search import run_search, write_noise
from d3hr_ray.stages.synthesize import run_synthesize
from d3hr_ray.store import Store


@dataclass(frozen=True)
class Run:
    """One run: where it writes, what it makes, from which model and classes, and the pool that does the work."""

    store: Store
    config: RunConfig
    card: ModelCard
    classes: pa.Table
    inputs: dict[str, Any]
    pool: Pool
    latents: Store  # the run folder whose latents/ mixtures are fitted to
    pools: Store  # the folder where pools/ are drawn and judged


def start_run(store: Store, config: RunConfig, card: ModelCard, listing: Listing, pool: Pool, overwrite: bool) -> Run:
    """Open a run folder, new or to resume. Raises ValueError if it holds another run, or one of other images."""
    inputs = {
        "images": len(listing),
        "listing": listing.digest,
        "classes": listing.classes.checksum,
        "model": card.digest,
    }
    changed = {} if overwrite else contents.changed_files(store, listing)
    open_run(store, config, inputs, overwrite, contents.describe(changed))
    if changed:
        contents.refuse_replaced(store, config, listing, changed)
    if changed or not store.exists(contents.VERSIONS):
        contents.remember(store, listing)
    classes = listing.classes.table()
    store.write_table("classes.parquet", classes)
    return Run(store, config, card, classes, inputs, pool, store, store)


def stored_run(store: Store, card: ModelCard, pool: Pool) -> Run:
    """The run of a folder as it was started, without a look at its images. Raises ValueError if the model changed."""
    record = read_run(store)
    config, inputs = from_dict(record["config"]), record["inputs"]
    _check_model(config, inputs, card, store)
    return Run(store, config, card, store.read_table("classes.parquet"), inputs, pool, store, store)


def check_images(store: Store, listing: Listing) -> None:
    """Raise ValueError unless the run of a folder, if it has images, was made from those that are listed now."""
    record = read_run(store)
    changed = contents.changed_files(store, listing)
    if record["inputs"]["images"] and record["inputs"]["listing"] != listing.digest:
        raise ValueError(
            f"the images that {store.uri} was made from are others now, {record['inputs']['images']:,} then and "
            f"{len(listing):,} here. {contents.describe(changed)}"
        )
    if changed:
        contents.refuse_replaced(store, from_dict(record["config"]), listing, changed)


def _check_model(config: RunConfig, inputs: dict[str, Any], card: ModelCard, source: Store) -> None:
    """Raise ValueError unless the model is the one that the run in `source` was made with."""
    if inputs["model"] != card.digest:
        raise ValueError(f"--model {config.model.name} has changed since {source.uri} was made with it")


def reopen_run(store: Store, source: Store, config: RunConfig, card: ModelCard, pool: Pool) -> Run:
    """Make more sets from the Gaussians of `source`, in its folder or in a new one, which gets a copy of them.

    Raises ValueError if Gaussians are missing or the model is another.
    """
    inputs = source.read_json("run.json")["inputs"]
    _check_model(config, inputs, card, source)
    files = [gaussian_file(t) for t in config.inversion.timesteps]
    missing = [t for t, f in zip(config.inversion.timesteps, files, strict=True) if not source.exists(f)]
    if missing:
        there = [n.removesuffix(".parquet").lstrip("t0") for n in source.list("gaussians")]
        raise ValueError(
            f"--from-gaussians {source.uri}: no Gaussians at t={missing[0]} (there: {', '.join(there) or 'none'}); "
            "finish that run first, or choose --timesteps"
        )
    if store != source:
        open_run(store, config, inputs)
        for name in ("classes.parquet", *files):
            store.write_bytes(name, source.read_bytes(name))
    return Run(store, config, card, source.read_table("classes.parquet"), inputs, pool, source, store)


def fit_gaussians(run: Run, listing: Listing) -> None:
    """images => latents => gaussians."""
    run_invert(run.store, run.config, run.card, listing, run.pool)
    accepted = sum(counts["accepted"] for counts in finished(run.store).values())
    run_fit(run.store, run.config.inversion.timesteps, folder_names(run.classes), accepted)


def make_sets(run: Run) -> None:
    """gaussians => subsets => distilled, for every variant."""
    make_together([(run, variant) for variant in variants(run.config)])


def make_together(wanted: Sequence[tuple[Run, Variant]]) -> None:
    """gaussians => subsets => distilled, for variants of one folder.

    They differ in timestep, IPC and seed, and those without a pool in the method, which is settled with their subsets.
    Each stage is one stream over all of them, so that its workers start once.
    """
    for run, variant in wanted:
        claim_recipe(run.store, variant.name, recipe(run.config, variant, run.inputs))
    first = wanted[0][0]
    if first.config.has_pool:
        choose_from_pools(wanted)
    else:
        find_subsets(wanted)
    run_synthesize(first.store, first.config, [variant for _, variant in wanted], first.classes, first.pool)
    for run, variant in wanted:
        run_publish(run.store, run.config, variant, run.classes, run.inputs, None)


def find_subsets(wanted: Sequence[tuple[Run, Variant]]) -> None:
    """gaussians => subsets, by way of mixtures if asked; or noise, for what needs no Gaussian."""
    first, searches, kinds = wanted[0][0], [], []
    for run, variant in wanted:
        if variant.timestep is None:
            write_noise(run.store, variant, len(run.classes), prod(run.card.latent_shape))
            continue
        searches.append((run.config, variant))
        if run.config.has_mixture:
            kinds.append(mixture_kind(run.config, variant.timestep, variant.ipc // variant.per_image))
    run_mixtures(first.latents, first.store, list(dict.fromkeys(kinds)))
    run_search(first.store, searches, len(first.classes))


def choose_from_pools(wanted: Sequence[tuple[Run, Variant]]) -> None:
    """CaO2's first stage: subsets of pools => candidates, judged => the subsets of those that stay."""
    first = wanted[0][0]
    classifier = judge_id(first.config)
    pools = [(replace(run, store=run.pools), pool_variant(run.config, variant)) for run, variant in wanted]
    for run, pool in pools:
        for store in (first.store, run.store):  # that of the sets, too, lest another classifier goes on with them
            claim_recipe(store, pool.name, pool_recipe(run.config, pool, run.inputs, classifier))
    find_subsets(pools)
    run_candidates(first.pools, first.config, [pool for _, pool in pools], first.classes, first.pool)
    chosen = [(run.config, variant, pool) for (run, variant), (_, pool) in zip(wanted, pools, strict=True)]
    run_choose(first.store, first.pools, chosen, len(first.classes))


def pick_reals(run: Run, listing: Listing) -> None:
    """The `random` baseline: n real images per class, chosen by seed."""
    for variant in variants(run.config):
        claim_recipe(run.store, variant.name, recipe(run.config, variant, run.inputs))
        size = run.config.synthesis.image_size or run.card.image_size
        images = run_reals(run.store, variant, listing, run.classes, size, look_of(run.config.fidelity))
        run_publish(run.store, run.config, variant, run.classes, run.inputs, images)


def distill(run: Run, listing: Listing) -> None:
    """images => latents => gaussians => subsets => distilled, or the part of it that the method needs."""
    if run.config.method == "random":
        pick_reals(run, listing)
        return
    if run.config.fits:
        fit_gaussians(run, listing)
    make_sets(run)
