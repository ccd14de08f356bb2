"""D3HR (ICML 2025) and the baselines that share its stages."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from d3hr_ray.config import RunConfig
from d3hr_ray.datasets.classes import folder_names
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.models.loading import ModelCard
from d3hr_ray.runs import claim_recipe, open_run
from d3hr_ray.stages.fit import gaussian_file, run_fit
from d3hr_ray.stages.invert import finished, run_invert
from d3hr_ray.stages.pool import Pool
from d3hr_ray.stages.publish import recipe, run_publish
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
    return Run(store, config, card, classes, inputs, pool)


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
    return Run(store, config, card, source.read_table("classes.parquet"), inputs, pool)


def variants(config: RunConfig) -> list[Variant]:
    """The sets that a config asks for: one per timestep and IPC; the baselines without a Gaussian have no timestep."""
    fitted = config.method in ("d3hr", "gaussian")
    search = config.search.method if config.method == "d3hr" else None
    timesteps = config.inversion.timesteps if fitted else (None,)
    return [Variant(config.method, search, t, n, config.seed) for t in timesteps for n in config.search.ipc]


def fit_gaussians(run: Run, listing: Listing) -> None:
    """images => latents => gaussians."""
    run_invert(run.store, run.config, run.card, listing, run.pool)
    accepted = sum(counts["accepted"] for counts in finished(run.store).values())
    run_fit(run.store, run.config.inversion.timesteps, folder_names(run.classes), accepted)


def make_sets(run: Run) -> None:
    """gaussians => subsets => distilled, for every variant."""
    wanted = variants(run.config)
    for variant in wanted:
        claim_recipe(run.store, variant.name, recipe(run.config, variant, run.inputs))
        if variant.method == "dit":
            channels, height, width = run.card.latent_shape
            write_noise(run.store, variant, len(run.classes), channels * height * width)
        else:
            run_search(run.store, run.config, variant, len(run.classes))
    run_synthesize(run.store, run.config, wanted, run.classes, run.pool)
    for variant in wanted:
        run_publish(run.store, run.config, variant, run.classes, run.inputs, None)


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
    if run.config.method in ("d3hr", "gaussian"):
        fit_gaussians(run, listing)
    make_sets(run)
