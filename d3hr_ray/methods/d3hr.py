"""D3HR (ICML 2025), CaO2 (ICCV 2025), their composition, and the baselines that share their stages."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import pyarrow as pa

from d3hr_ray.config import RefineConfig, RunConfig, from_dict
from d3hr_ray.datasets.classes import folder_names
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.look import look_of
from d3hr_ray.layout import CLASSES, GAUSSIANS, REUSED, RUN, VERSIONS, finished, gaussian_file
from d3hr_ray.methods.guiding import seen_blocks
from d3hr_ray.models.card import ModelCard
from d3hr_ray.runs import claim_recipe, describe_lineage, lineage_of, open_run, read_run
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.runtime.console import announce
from d3hr_ray.sets import SetSpec, sets_of
from d3hr_ray.stages import contents
from d3hr_ray.stages.block_features import require_block_features, run_block_features
from d3hr_ray.stages.blocks import BlockJob
from d3hr_ray.stages.candidates import run_candidates
from d3hr_ray.stages.card import UNKNOWN, Origin
from d3hr_ray.stages.choose import run_choose
from d3hr_ray.stages.feature_kinds import BlockKind, feature_kind
from d3hr_ray.stages.features import require_features, run_features
from d3hr_ray.stages.fit import run_fit
from d3hr_ray.stages.growth import find_growth
from d3hr_ray.stages.guides import require_moments, run_moments
from d3hr_ray.stages.invert import run_invert
from d3hr_ray.stages.judge import judge_ids
from d3hr_ray.stages.mixture import MixtureKind, mixture_kind, require_latents, run_mixtures
from d3hr_ray.stages.publish import run_publish
from d3hr_ray.stages.reals import run_reals
from d3hr_ray.stages.reuse import run_reuse
from d3hr_ray.stages.search import run_noise, run_search
from d3hr_ray.stages.synthesize import run_synthesize
from d3hr_ray.stages.weights import image_weights
from d3hr_ray.store import Store


@dataclass(frozen=True)
class Run:
    """One run: where it writes, what it makes, from which model and classes, and the actors that do the work."""

    store: Store
    config: RunConfig
    card: ModelCard
    classes: pa.Table
    inputs: dict[str, Any]
    actors: Actors
    latents: Store  # the run folder whose latents/ and features/ mixtures, guides and refinement take
    pools: Store  # the folder where pools/ are drawn and judged
    origin: Origin = UNKNOWN  # of the real images, for the cards of the sets


def start_run(
    store: Store,
    config: RunConfig,
    card: ModelCard,
    listing: Listing,
    actors: Actors,
    overwrite: bool,
    extended: Store | None = None,
    base: RunConfig | None = None,
) -> Run:
    """Open a run folder, new or to resume, that may take latents of an `extended` run. `base`: as of `open_run`.

    Raises ValueError if it holds another run, or one of other images.
    """
    inputs: dict[str, Any] = {
        "images": len(listing),
        "listing": listing.digest,
        "classes": listing.classes.checksum,
        "model": card.digest,
    }
    changed = {} if overwrite else contents.changed_files(store, listing)
    lineage, reused = _lineage(store, config, listing, overwrite, extended)
    inputs |= {"extends": lineage} if lineage else {}
    open_run(store, config, inputs, overwrite, contents.describe(changed), base)
    if changed:
        contents.refuse_replaced(store, config, listing, changed)
    if changed or not store.exists(VERSIONS):
        contents.remember(store, listing)
    if reused is not None:
        store.write_table(REUSED, reused)
    classes = listing.classes.table()
    store.write_table(CLASSES, classes)
    return Run(store, config, card, classes, inputs, actors, store, store)


def _lineage(
    store: Store, config: RunConfig, listing: Listing, overwrite: bool, extended: Store | None
) -> tuple[dict[str, Any], pa.Table | None]:
    """What a run says of the one that it extends, nothing if it extends none; and what REUSED holds, if not there yet.

    A run that is resumed knows it already, also without --extend and where the other run is gone; that the other one
    was made private since then is no difference.
    """
    known = {} if overwrite or not store.exists(RUN) else read_run(store)["inputs"].get("extends", {})
    if known and store.exists(REUSED):
        lineage, reused = known | (lineage_of(extended) if extended else {}), None
    elif known or extended:
        source = extended or Store(known["run"])
        growth = find_growth(source, config, listing)
        lineage, reused = lineage_of(source) | growth.counts, growth.images
    else:
        return {}, None
    if known and "real_images" not in known:
        lineage.pop("real_images", None)
    announce(describe_lineage(lineage))
    return lineage, reused


def stored_run(store: Store, card: ModelCard, actors: Actors) -> Run:
    """The run of a folder as it was started, without a look at its images. Raises ValueError if the model changed."""
    record = read_run(store)
    config, inputs = from_dict(record["config"]), record["inputs"]
    _check_model(config, inputs, card, store)
    return Run(store, config, card, store.read_table(CLASSES), inputs, actors, store, store)


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


def reopen_run(store: Store, source: Store, config: RunConfig, card: ModelCard, actors: Actors) -> Run:
    """Make more sets from the Gaussians of `source`, in its folder or in a new one, which gets a copy of them.

    Raises ValueError if Gaussians are missing or the model is another.
    """
    inputs = source.read_json(RUN)["inputs"]
    _check_model(config, inputs, card, source)
    files = [gaussian_file(t) for t in config.inversion.timesteps]
    missing = [t for t, f in zip(config.inversion.timesteps, files, strict=True) if not source.exists(f)]
    if missing:
        there = [n.removesuffix(".parquet").lstrip("t0") for n in source.list(GAUSSIANS)]
        raise ValueError(
            f"--from-gaussians {source.uri}: no Gaussians at t={missing[0]} (there: {', '.join(there) or 'none'}); "
            "finish that run first, or choose --timesteps"
        )
    for mixture in mixtures_of(sets_of(config)):
        if not store.list(mixture.folder):  # or else they are fitted already, or in part, from latents that were there
            require_latents(source, mixture)
    if config.refines:
        require_features(source, config.refine)
    for kind, timesteps in seen_blocks([config], card).items():
        require_block_features(source, kind, timesteps, config.guide.until)
    if (near := config.moments_timestep) is not None:
        require_moments(source, near)
    if store != source:
        open_run(store, config, inputs)
        for name in (CLASSES, *files):
            _take_over(store, source, name)
    return Run(store, config, card, source.read_table(CLASSES), inputs, actors, source, store)


def _take_over(store: Store, source: Store, name: str) -> None:
    """Copy a table of another run. Raises ValueError if there is one already that is another."""
    if not store.exists(name):
        store.write_bytes(name, source.read_bytes(name))
    elif not store.read_table(name).equals(source.read_table(name)):
        raise ValueError(
            f"--from-gaussians {source.uri}: its {name} is another than {store.uri} was begun with; give another "
            "--out, or --overwrite to start anew"
        )


def fit_gaussians(run: Run, listing: Listing) -> None:
    """images => latents => gaussians; of a run that extends another, its latents are taken first."""
    if "extends" in run.inputs:
        run_reuse(run.store, run.inputs["extends"], run.classes, run.config.inversion.stored)
    run_invert(run.store, run.config, run.card, listing, run.actors)
    accepted = sum(counts["accepted"] for counts in finished(run.store).values())
    run_fit(run.store, run.config.inversion.timesteps, folder_names(run.classes), accepted)


def fit_features(run: Run, listing: Listing, refine: RefineConfig) -> None:
    """images => features, which refinement matches."""
    config, look = run.config, look_of(run.config.fidelity)
    shard = config.data.shard_size
    run_features(run.store, feature_kind(refine), listing, run.card.image_size, look, shard, run.actors)


def fit_block_features(run: Run, listing: Listing, wanted: Mapping[BlockKind, Sequence[int]]) -> None:
    """images => features of the DiT's own blocks, which sets are guided by."""
    for kind, timesteps in wanted.items():
        run_block_features(run.store, kind, timesteps, run.config, run.card, listing, run.actors)


def make_sets(run: Run) -> None:
    """gaussians => subsets => distilled, for every set of the config."""
    make_together([(run, sets_of(run.config))])


def make_together(parts: Sequence[tuple[Run, Sequence[SetSpec]]]) -> None:
    """gaussians => subsets => distilled, for runs with sets of their own, each in a folder of its own.

    Sets of one run differ in timestep, IPC and seed, and those without a pool in the method, which is settled with
    their subsets. Images of equal networks are one stream, so that actors start once.
    """
    for run, specs in parts:
        find_latents(run, specs)
    streams: dict[object, list[BlockJob]] = defaultdict(list)
    for run, specs in parts:
        config = specs[0].config  # how an actor rounds on a GPU is set for the whole process (models/accelerate.py)
        streams[config.model, config.fidelity].append(_images(run, specs))
    for jobs in streams.values():
        run_synthesize(jobs, parts[0][0].actors)
    for run, specs in parts:
        publish(run, specs)


def find_latents(run: Run, specs: Sequence[SetSpec]) -> None:
    """gaussians => all that images are made of, for sets of one folder: each stage is one stream over them."""
    for spec in specs:
        claim_recipe(run.store, spec.recipe(run.inputs))
    if specs[0].config.has_pool:
        choose_from_pools(run, specs)
    else:
        find_subsets(run, run.store, specs)
    find_moments(run, specs)


def _images(run: Run, specs: Sequence[SetSpec]) -> BlockJob:
    return BlockJob(run.store, specs[0].config, tuple(specs), run.classes, run.actors.device, run.latents)


def publish(run: Run, specs: Sequence[SetSpec]) -> None:
    """distilled => sets with their metadata, card and manifest."""
    for spec in specs:
        mixtures = run.pools if spec.config.has_pool else run.store
        weights = image_weights(run.store, mixtures, spec, len(run.classes))
        run_publish(run.store, spec, run.classes, run.inputs, None, run.origin, weights)


def find_subsets(run: Run, store: Store, specs: Sequence[SetSpec]) -> None:
    """gaussians => subsets in a folder, by way of mixtures if asked; or noise, for what needs no Gaussian."""
    unfitted = [spec for spec in specs if spec.timestep is None]
    run_noise(store, unfitted, len(run.classes), prod(run.card.latent_shape))
    run_mixtures(run.latents, store, mixtures_of(specs), run.card.latent_shape)
    run_search(store, [spec for spec in specs if spec.timestep is not None], len(run.classes))


def mixtures_of(specs: Sequence[SetSpec]) -> list[MixtureKind]:
    """Those that sets are drawn from or guided to, each once."""
    fitted = [(spec, t) for spec in specs if (t := spec.timestep) is not None and spec.config.has_mixture]
    return list(dict.fromkeys(mixture_kind(spec.config, t, spec.images_per_class) for spec, t in fitted))


def find_moments(run: Run, specs: Sequence[SetSpec]) -> None:
    """latents => gaussians near the images, if sets are guided to them."""
    for near in {t for spec in specs if (t := spec.config.moments_timestep) is not None}:
        run_moments(run.latents, run.store, near, folder_names(run.classes))


def choose_from_pools(run: Run, specs: Sequence[SetSpec]) -> None:
    """CaO2's first stage: subsets of pools => candidates, judged => the subsets of those that stay."""
    judges, pools = judge_ids(specs[0].config), [spec.pool for spec in specs]
    for pool in pools:
        for store in (run.store, run.pools):  # that of the sets, too, lest another classifier goes on with them
            claim_recipe(store, pool.recipe(run.inputs, judges))
    find_subsets(run, run.pools, pools)
    run_candidates(run.pools, pools, run.classes, run.actors)
    run_choose(run.store, run.pools, specs, len(run.classes))


def pick_reals(run: Run, listing: Listing) -> None:
    """The `random` baseline: n real images per class, chosen by seed."""
    size = run.config.synthesis.image_size or run.card.image_size
    for spec in sets_of(run.config):
        claim_recipe(run.store, spec.recipe(run.inputs))
        images = run_reals(run.store, spec, listing, run.classes, size, look_of(run.config.fidelity))
        run_publish(run.store, spec, run.classes, run.inputs, images, run.origin)


def distill(run: Run, listing: Listing) -> None:
    """images => latents => gaussians => subsets => distilled, or the part of it that the method needs."""
    if run.config.method == "random":
        pick_reals(run, listing)
        return
    if run.config.fits:
        fit_gaussians(run, listing)
    if run.config.refines:
        fit_features(run, listing, run.config.refine)
    fit_block_features(run, listing, seen_blocks([run.config], run.card))
    make_sets(run)
