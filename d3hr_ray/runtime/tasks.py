"""Bounded streams of Ray tasks, for work without networks.

Workers import this with the functions of their tasks: nothing here needs seconds to import.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray

from d3hr_ray.config import RunError
from d3hr_ray.runtime import capacity
from d3hr_ray.runtime.failures import naming
from d3hr_ray.runtime.progress import progress

LISTING = "listing"  # what a stream without a title is for
Reference = ray.ObjectRef  # to what a task returns


def ray_map(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
    """A Mapper for listings: one Ray task per item, at most two per CPU in flight, results in order."""
    # In a lambda, because Ray takes no partial for a task.
    results = dict(bounded(lambda item: function(item), [(i, (item,)) for i, item in enumerate(items)]))
    return [results[i] for i in range(len(items))]


def bounded(
    function: Callable[..., Any], jobs: Iterable[tuple[Any, tuple[Any, ...]]], title: str | None = None
) -> Iterator[tuple[Any, Any]]:
    """Run function(*args) as a Ray task for each (key, args), few at a time; yield (key, result) as they finish.

    Errors that the function raises for users arrive as themselves, so that users read their message; Ray's own as a
    RunError that names `title`.
    """
    jobs = list(jobs)
    if not jobs:
        return
    task = deferred(function)
    waiting: dict[Any, Any] = {}
    upcoming = iter(jobs)
    shown = progress(len(jobs), title or "", "task", title is None)
    with shown as bar, capacity.warn_while_unschedulable(title or LISTING, 0):
        for _ in jobs:
            limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))  # the cluster may grow meanwhile
            while len(waiting) < limit and (job := next(upcoming, None)) is not None:
                waiting[task(*job[1])] = job[0]
            ready, _ = ray.wait(list(waiting), num_returns=1)
            key = waiting.pop(ready[0])
            try:
                result = fetch(ready[0], title or LISTING)
            except (ValueError, OSError, RunError):
                for other in waiting:
                    ray.cancel(other)
                raise
            bar.update()
            yield key, result


def deferred(function: Callable[..., Any]) -> Callable[..., Reference]:
    """The function as Ray tasks: called, it gives a reference at once, for other tasks' arguments or for `fetch`."""
    start: Callable[..., Reference] = ray.remote(num_cpus=1, max_retries=3)(function).remote
    return start


def shared(value: Any) -> Reference:
    """A reference to a value that many tasks take: it is sent to each node once."""
    return ray.put(value)


def unfinished(tasks: Sequence[Reference], title: str, timeout: float | None) -> list[Reference]:
    """The tasks that go on after `timeout` seconds (None: none does). Raises as `fetch` does for one that failed."""
    if not tasks:
        return []
    done, rest = ray.wait(list(tasks), num_returns=len(tasks), timeout=timeout)
    for task in done:
        fetch(task, title)
    return list(rest)


def fetch(task: Reference, title: str) -> Any:
    """A task's result. What it raises for users is raised as itself, what went wrong with it as a RunError."""
    with naming(title):
        return ray.get(task)
