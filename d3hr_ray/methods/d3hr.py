"""D3HR (ICML 2025), CaO2 (ICCV 2025), their composition, and the baselines that share their stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import pyarrow as pa

from d3hr_ray.config import RunConfig
from d3hr_ray.datasets.classes import folder_names
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.methods.variants import pool_variant, variants
from d3hr_ray.models.loading import ModelCard
from d3hr_ray.runs import claim_recipe, open_run
from d3hr_ray.stages.candidates import run_candidates
from d3hr_ray.stages.choose import run_choose
from d3hr_ray.stages.fit import gaussian_file, run_fit
from d3hr_ray.stages.invert import finished, run_invert
from d3hr_ray.stages.judge import judge_id
from d3hr_ray.stages.mixture import mixture_kind, run_mixture
from d3hr_ray.stages.pool import Pool
from d3hr_ray.stages.publish import pool_recipe, recipe, run_publish
from d3hr_ray.stages.reals import run_reals
from d3hr_ray.stages.search import Variant, run_search, write_noise
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


def start_run(store: Store, config: RunConfig, card: ModelCard, listing: Listing, pool: Pool, overwrite: bool) -> Run:
    """Open a run folder, new or to resume. Raises ValueError if it holds another run."""
    inputs = {
        "images": len(listing),
        "listing": listing.digest,
        "classes": listing.classes.checksum,
        "model": card.digest,
    }
    open_run(store, config, inputs, overwrite)
    classes = listing.classes.table()
    store.write_table("classes.parquet", classes)
    return Run(store, config, card, classes, inputs, pool, store)


def reopen_run(store: Store, source: Store, config: RunConfig, card: ModelCard, pool: Pool) -> Run:
    """Make more sets from the Gaussians of `source`, in its folder or in a new one, which gets a copy of them.

    Raises ValueError if Gaussians are missing or the model is another.
    """
    inputs = source.read_json("run.json")["inputs"]
    if inputs["model"] != card.digest:
        raise ValueError(f"--model {config.model.name} has changed since the Gaussians in {source.uri} were fitted")
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
    return Run(store, config, card, source.read_table("classes.parquet"), inputs, pool, source)


def fit_gaussians(run: Run, listing: Listing) -> None:
    """images => latents => gaussians."""
    run_invert(run.store, run.config, run.card, listing, run.pool)
    accepted = sum(counts["accepted"] for counts in finished(run.store).values())
    run_fit(run.store, run.config.inversion.timesteps, folder_names(run.classes), accepted)


def make_sets(run: Run) -> None:
    """gaussians => subsets => distilled, for every variant."""
    make_together([(run, variant) for variant in variants(run.config)])


def make_together(wanted: Sequence[tuple[Run, Variant]]) -> None:
    """gaussians => subsets => distilled, for variants that differ in search and seed only: one actor pool."""
    for run, variant in wanted:
        claim_recipe(run.store, variant.name, recipe(run.config, variant, run.inputs))
        if run.config.has_pool:
            choose_from_pool(run, variant)
        else:
            find_subsets(run, variant)
    first = wanted[0][0]
    run_synthesize(first.store, first.config, [variant for _, variant in wanted], first.classes, first.pool)
    for run, variant in wanted:
        run_publish(run.store, run.config, variant, run.classes, run.inputs, None)


def find_subsets(run: Run, variant: Variant) -> None:
    """gaussians => subsets, by way of mixtures if asked; or noise, for what needs no Gaussian."""
    if variant.timestep is None:
        write_noise(run.store, variant, len(run.classes), prod(run.card.latent_shape))
        return
    if run.config.has_mixture:
        kind = mixture_kind(run.config, variant.timestep, variant.ipc // variant.per_image)
        run_mixture(run.latents, run.store, kind)
    run_search(run.store, run.config, variant, len(run.classes))


def choose_from_pool(run: Run, variant: Variant) -> None:
    """CaO2's first stage: subsets of a pool => candidates, judged => the subsets of those that stay."""
    wanted, size = pool_variant(run.config, variant), len(run.classes)
    judged = {"classifier": judge_id(run.config)} if run.config.cao2.select != "none" else {}
    claim_recipe(run.store, wanted.name, pool_recipe(run.config, wanted, run.inputs) | judged)
    find_subsets(run, wanted)
    run_candidates(run.store, run.config, wanted, run.classes, run.pool)
    run_choose(run.store, run.config, variant, wanted, size)


def pick_reals(run: Run, listing: Listing) -> None:
    """The `random` baseline: n real images per class, chosen by seed."""
    for variant in variants(run.config):
        claim_recipe(run.store, variant.name, recipe(run.config, variant, run.inputs))
        size = run.config.synthesis.image_size or run.card.image_size
        images = run_reals(run.store, variant, listing, run.classes, size)
        run_publish(run.store, run.config, variant, run.classes, run.inputs, images)


def distill(run: Run, listing: Listing) -> None:
    """images => latents => gaussians => subsets => distilled, or the part of it that the method needs."""
    if run.config.method == "random":
        pick_reals(run, listing)
        return
    if run.config.fits:
        fit_gaussians(run, listing)
    make_sets(run)
