"""Distil a dataset: images -> latents -> gaussians -> subsets -> distilled images.

    python jobs/distill.py                                          # the embedded digits, on any laptop
    python jobs/distill.py --preset imagenet1k --data /data/imagenet/train --ipc 10 50

The same command resumes a run that was stopped. D3HR_TRACEBACK=1 shows the traceback of a failure.
"""

from cli import connect, guard, parse, refusing
from flags import DistillFlags, build_config, check_timesteps, settle
from presets import CLASSES, IMAGES

from d3hr_ray.config import RunConfig
from d3hr_ray.datasets.listing import Listing, list_images, require_variance
from d3hr_ray.datasets.source import thread_map
from d3hr_ray.methods.d3hr import distill, make_sets, reopen_run, start_run
from d3hr_ray.methods.plan import plan
from d3hr_ray.models.loading import ModelCard, load_schedule, read_card
from d3hr_ray.report.distilled import report
from d3hr_ray.runs import stored_config
from d3hr_ray.stages.pool import find_pool, ray_map
from d3hr_ray.store import Store


def main() -> None:
    """Check all that can be checked without Ray; then connect, run the method, and report."""
    flags = parse(DistillFlags, __doc__ or "")
    store = Store(flags.out or flags.from_gaussians or f"runs/{flags.preset}")
    with refusing():
        config = build_config(flags)
        card, schedule = read_card(config.model.name), load_schedule(config.model.name, config.inversion.steps)
        check_timesteps(config, schedule)
    if flags.dry_run:
        print(plan(config, card, schedule, *count_images(config, card, flags.preset), flags.tflops))
        return
    with refusing():
        listing = None if flags.from_gaussians or is_remote(config) else list_data(config, card)
    connect(flags.address)
    with refusing():
        pool = find_pool(flags.actors, flags.gpus_per_actor)
        source = Store(flags.from_gaussians) if flags.from_gaussians else None
        config = settle(config, None if flags.overwrite else stored_config(source or store), pool)
        if source is not None:
            run = reopen_run(store, source, config, card, pool)
        else:
            listing = listing or list_data(config, card)
            run = start_run(store, config, card, listing, pool, flags.overwrite)
    if listing is None:
        make_sets(run)  # gaussians => subsets => distilled
    else:
        distill(run, listing)  # images => latents => gaussians => subsets => distilled
    print(report(run))


def is_remote(config: RunConfig) -> bool:
    """Remote data is listed by Ray tasks; local data by threads before Ray starts, so that mistakes show at once."""
    return "://" in config.data.uri


def list_data(config: RunConfig, card: ModelCard) -> Listing:
    """All images of the run. Raises ValueError naming what cannot be used."""
    listing = list_images(config.data, card.num_classes, card.class_names, ray_map if is_remote(config) else thread_map)
    if config.method in ("d3hr", "gaussian"):
        require_variance(listing)
    return listing


def count_images(config: RunConfig, card: ModelCard, preset: str) -> tuple[int, int]:
    """(images, classes) of the plan: from the data, or the preset's known numbers if no data is given."""
    if config.data.uri:
        listing = list_images(config.data, card.num_classes, card.class_names)
        return len(listing), len(listing.classes)
    images, classes = IMAGES[preset], CLASSES[preset]
    limit = config.data.limit_per_class
    return (images if limit is None else min(images, limit * classes)), classes


if __name__ == "__main__":
    guard(main)
