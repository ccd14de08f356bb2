"""What an actor loads once, and fixed batches: what is computed together depends on the input alone, unless a GPU
runs out of memory.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from d3hr_ray.config import RunConfig
from d3hr_ray.models.autoencoder import Autoencoder
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.models.loading import load_networks, load_schedule
from d3hr_ray.numerics.schedule import Schedule

Result = TypeVar("Result")


def open_model(config: RunConfig, device: str) -> tuple[Schedule, Autoencoder, Denoiser]:
    """What an actor loads once: the run's schedule, and its networks in the run's dtype on a device."""
    if device == "cpu":
        torch.set_num_threads(1)  # sums round differently with other thread counts
    schedule = load_schedule(config.model.name, config.inversion.steps, config.inversion.solver)
    return schedule, *load_networks(config.model.name, getattr(torch, config.model.dtype), device)


def run_batches(work: Callable[[slice], Result], count: int, size: int | str) -> list[Result]:
    """Apply `work` to consecutive slices of at most `size` of `count` rows, in order.

    A slice that does not fit on the GPU is halved, as often as it takes; a single row that does not fit raises.
    """
    assert isinstance(size, int), "batch size is resolved before a stage starts"
    return [result for at in range(0, count, size) for result in _halving(work, slice(at, min(at + size, count)))]


def _halving(work: Callable[[slice], Result], rows: slice) -> Iterator[Result]:
    try:
        yield work(rows)
        return
    except torch.OutOfMemoryError:
        if rows.stop - rows.start == 1:
            raise
    torch.cuda.empty_cache()
    middle = (rows.start + rows.stop) // 2
    yield from _halving(work, slice(rows.start, middle))
    yield from _halving(work, slice(middle, rows.stop))
