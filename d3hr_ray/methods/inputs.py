"""The images of a run: listed for running, or counted for planning; and what its model's small files say.

A wrong path, class or timestep is told before torch and Ray are imported, which takes seconds: they come in late.
"""

from d3hr_ray.config import RunConfig
from d3hr_ray.datasets.listing import Listing, list_images, model_listing, open_source, require_images, require_variance
from d3hr_ray.datasets.source import thread_map
from d3hr_ray.filesystems import resolve
from d3hr_ray.models.card import ModelCard, read_card, sampling_grid
from d3hr_ray.models.geometry import DIT_XL, DIT_XL_CARD
from d3hr_ray.numerics.grids import above, even_grid, leading_grid, position
from d3hr_ray.runtime.console import tell
from d3hr_ray.store import Store


def is_remote(config: RunConfig) -> bool:
    """Remote data is listed by Ray tasks; local data by threads before Ray starts, so that mistakes show at once."""
    return "://" in config.data.uri and config.lists_images


def list_data(config: RunConfig, card: ModelCard, planning: bool = False) -> Listing:
    """All images of the run; for a plan, without Ray. Raises ValueError naming what cannot be used."""
    if not config.lists_images:
        return model_listing(config.data, card.num_classes, card.class_names)
    each = thread_map
    if is_remote(config) and not planning:
        from d3hr_ray.runtime.tasks import ray_map

        each = ray_map
    listing = list_images(config.data, card.num_classes, card.class_names, each)
    tell(listing.notes)
    if config.fits:
        require_variance(listing)
    if config.method == "random":
        require_images(listing, max(config.search.ipc))
    return listing


def check_data(config: RunConfig) -> None:
    """Raise ValueError for data that is not there or cannot be opened: a model's hub may be slow to answer."""
    if is_remote(config):
        resolve(config.data.uri)
    elif config.lists_images and config.data.uri:
        open_source(config.data)


def list_early(config: RunConfig, card: ModelCard) -> Listing | None:
    """The images, if they are listed without Ray."""
    return None if is_remote(config) else list_data(config, card)


def read_model(config: RunConfig, planning: bool) -> tuple[ModelCard, tuple[int, ...]]:
    """The model's card and the grid of its sampler. A plan for DiT-XL/2-256 needs no hub: its geometry is known."""
    if planning and config.model.name == DIT_XL:
        spaced = even_grid if config.inversion.solver == "adams" else leading_grid
        return DIT_XL_CARD, spaced(1000, config.inversion.steps)
    return read_card(config.model.name), read_grid(config)


def read_grid(config: RunConfig) -> tuple[int, ...]:
    """The grid of a config's sampler, ascending."""
    name, steps, solver = config.model.name, config.inversion.steps, config.inversion.solver
    grid = sampling_grid(name, steps, solver)
    if grid is None:
        from d3hr_ray.models.loading import load_schedule

        grid = load_schedule(name, steps, solver).grid
    return grid


def check_fit(config: RunConfig, card: ModelCard, grid: tuple[int, ...]) -> None:
    """Raise ValueError for a timestep that is off the grid or leaves nothing to invert, for cells that do not divide,
    and for a block that is not there.
    """
    for t in config.inversion.stored:
        flag = config.inversion.flag_for(t)
        if position(grid, t, flag) == 0 == grid[0]:
            raise ValueError(f"{flag} {t} is before the first inversion step; give {grid[1]} or more")
    for t in config.inversion.timesteps if config.has_quirk("start") else ():
        above(grid, t)
    if config.guides_features:
        config.guide.block_of(card.blocks)
    (_, height, width), cells = card.latent_shape, config.search.cluster_pool
    if height % cells or width % cells:
        raise ValueError(f"--cluster-pool {cells} does not divide the model's latents of {height}x{width}")


def count_images(
    config: RunConfig, card: ModelCard, known: tuple[int, int] | None, extended: Store | None = None
) -> tuple[int, int, int]:
    """(images, classes, images that an `extended` run has inverted) of the plan: from the data, or those `known` of the
    preset if no data is given.
    """
    if config.data.uri or not config.lists_images:
        listing = list_data(config, card, planning=True)
        return len(listing), len(listing.classes), _count_reused(extended, config, listing)
    if known is None:
        raise ValueError("--data is needed: how many images the preset has is not known")
    images, classes = known
    if chosen := len(config.data.classes):
        images, classes = images * chosen // classes if chosen < classes else images, chosen
    limit = config.data.limit_per_class
    return (images if limit is None else min(images, limit * classes)), classes, 0


def _count_reused(extended: Store | None, config: RunConfig, listing: Listing) -> int:
    if extended is None:
        return 0
    from d3hr_ray.stages.growth import find_growth

    return find_growth(extended, config, listing, planning=True).counts["reused"]
