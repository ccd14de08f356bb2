"""The images of a run: listed for running, or counted for planning."""

from presets import CLASSES, IMAGES

from d3hr_ray.config import RunConfig
from d3hr_ray.datasets.listing import Listing, list_images, require_variance
from d3hr_ray.datasets.source import thread_map
from d3hr_ray.models.loading import ModelCard
from d3hr_ray.stages.pool import ray_map


def is_remote(config: RunConfig) -> bool:
    """Remote data is listed by Ray tasks; local data by threads before Ray starts, so that mistakes show at once."""
    return "://" in config.data.uri


def list_data(config: RunConfig, card: ModelCard) -> Listing:
    """All images of the run. Raises ValueError naming what cannot be used."""
    each = ray_map if is_remote(config) else thread_map
    listing = list_images(config.data, card.num_classes, card.class_names, each)
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
