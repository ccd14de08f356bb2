"""The images of a run: listed for running, or counted for planning."""

from cli import tell
from presets import CLASSES, DIT_XL, IMAGES

from d3hr_ray.config import RunConfig
from d3hr_ray.datasets.listing import Listing, list_images, model_listing, require_variance
from d3hr_ray.datasets.source import thread_map
from d3hr_ray.models.geometry import DIT_XL_CARD
from d3hr_ray.models.loading import ModelCard, load_schedule, read_card
from d3hr_ray.numerics.schedule import Schedule, even_grid, leading_grid, linear_alphas
from d3hr_ray.stages.tasks import ray_map


def is_remote(config: RunConfig) -> bool:
    """Remote data is listed by Ray tasks; local data by threads before Ray starts, so that mistakes show at once."""
    return "://" in config.data.uri and config.method != "cao2"


def list_data(config: RunConfig, card: ModelCard, planning: bool = False) -> Listing:
    """All images of the run; for a plan, without Ray. Raises ValueError naming what cannot be used."""
    if config.method == "cao2":
        return model_listing(config.data, card.num_classes, card.class_names)
    each = ray_map if is_remote(config) and not planning else thread_map
    listing = list_images(config.data, card.num_classes, card.class_names, each)
    tell(listing.notes)
    if config.fits:
        require_variance(listing)
    return listing


def read_model(config: RunConfig, planning: bool) -> tuple[ModelCard, Schedule]:
    """The model's card and schedule. A plan for DiT-XL/2-256 needs no hub: its published geometry is enough."""
    if planning and config.model.name == DIT_XL:
        grid = even_grid if config.inversion.solver == "adams" else leading_grid
        return DIT_XL_CARD, Schedule(linear_alphas(), grid(1000, config.inversion.steps))
    return read_card(config.model.name), load_schedule(
        config.model.name, config.inversion.steps, config.inversion.solver
    )


def count_images(config: RunConfig, card: ModelCard, preset: str) -> tuple[int, int]:
    """(images, classes) of the plan: from the data, or the preset's known numbers if no data is given."""
    if config.data.uri or config.method == "cao2":
        listing = list_data(config, card, planning=True)
        return len(listing), len(listing.classes)
    images, classes = IMAGES[preset], CLASSES[preset]
    if chosen := len(config.data.classes):
        images, classes = images * chosen // classes if chosen < classes else images, chosen
    limit = config.data.limit_per_class
    return (images if limit is None else min(images, limit * classes)), classes
