"""Fixed batches: what is computed together depends on the input alone, unless memory runs out."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from d3hr_ray.runtime import telemetry

Result = TypeVar("Result")
NO_HOST_MEMORY = "DefaultCPUAllocator"  # torch raises a bare RuntimeError where the host's memory ends


def run_batches(
    work: Callable[[slice], Result], count: int, size: int | str, misfits: list[int] | None = None
) -> list[Result]:
    """Apply `work` to consecutive slices of at most `size` of `count` rows, in order.

    A slice that does not fit into memory, a GPU's or the host's, is halved, as often as it takes. A single row that
    does not fit is left out and its number added to `misfits`; without that list it raises ValueError.
    """
    assert isinstance(size, int), "batch size is resolved before a stage starts"
    slices = [slice(at, min(at + size, count)) for at in range(0, count, size)]
    return [result for rows in slices for result in _halving(work, rows, misfits)]


def with_room(work: Callable[[int], Result], size: int) -> Result:
    """`work(size)` for work that takes its rows in slices itself; the size is halved, as often as it takes, to fit.

    Raises ValueError where one row does not fit into memory.
    """
    while True:
        try:
            return work(size)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_of_memory(error):
                raise
            if size == 1:
                raise ValueError(f"one image does not fit into memory: {_why(error)}") from error
        size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or NO_HOST_MEMORY in str(error)


def _why(error: Exception) -> str:
    """An error's first line: allocators add pages of statistics, and Python's own MemoryError says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def _halving(work: Callable[[slice], Result], rows: slice, misfits: list[int] | None) -> Iterator[Result]:
    try:
        with telemetry.batch():
            result = work(rows)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        if rows.stop - rows.start == 1 and misfits is None:
            raise ValueError(f"one image does not fit into memory: {_why(error)}") from error
    else:
        yield result
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if rows.stop - rows.start == 1:
        assert misfits is not None, "raised above"
        misfits.append(rows.start)
        return
    middle = (rows.start + rows.stop) // 2
    yield from _halving(work, slice(rows.start, middle), misfits)
    yield from _halving(work, slice(middle, rows.stop), misfits)
