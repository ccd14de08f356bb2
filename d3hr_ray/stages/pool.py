"""How work reaches a Ray cluster: pools of actors for networks, bounded tasks for the rest, progress for people."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.data.exceptions import SystemException, UserCodeException
from ray.exceptions import RayError
from tqdm import tqdm

from d3hr_ray.config import RunError


@dataclass(frozen=True)
class Pool:
    """Actors that hold the networks: `size` (min, max) of them, each with a share of a GPU or one CPU."""

    size: tuple[int, int]
    gpus: float

    @property
    def device(self) -> str:
        """Where an actor's networks live."""
        return "cuda" if self.gpus else "cpu"

    def __str__(self) -> str:
        low, high = self.size
        share = f"{self.gpus:g} GPU" if self.gpus else "1 CPU"
        return f"{low if low == high else f'{low} to {high}'} actor(s) with {share} each"

    def options(self, units: int) -> dict[str, Any]:
        """Arguments for Ray Data's map_batches over so many units; more actors than units would only load weights."""
        low, high = (min(bound, units) for bound in self.size)
        compute = ray.data.ActorPoolStrategy(
            min_size=low, max_size=high, initial_size=low, max_tasks_in_flight_per_actor=2
        )
        return {"compute": compute, "num_gpus": self.gpus or None, "num_cpus": 0 if self.gpus else 1}


def find_pool(actors: tuple[int, ...], gpus_per_actor: float | None) -> Pool:
    """Size a pool for the cluster that Ray is connected to: all its GPUs, else all CPUs but one.

    That CPU is for readers: Ray Data now runs them inside CPU actors, but where it does not, a pool on every CPU waits
    for ever. GPU actors leave all CPUs to them.
    Raises ValueError when the cluster can never hold the pool asked for.
    """
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), resources.get("GPU", 0)
    share = gpus_per_actor if gpus_per_actor is not None else (1.0 if gpus else 0.0)
    if not (0 <= share <= 1 or share.is_integer()):
        raise ValueError(f"--gpus-per-actor {share:g}: give 0, a fraction of one GPU, or whole GPUs")
    if share > gpus:
        raise ValueError(f"--gpus-per-actor {share:g}: the cluster has {gpus:g} GPUs; add nodes, or give 0 to use CPUs")
    # A fraction must fit on one GPU: of 4 GPUs, 0.6 each makes room for 4 actors, not 6.
    room = (int(1 / share) * int(gpus) if share <= 1 else int(gpus / share)) if share else max(1, cpus - 1)
    if not actors:
        return Pool((room, room), share)
    if len(actors) != 2 or not 1 <= actors[0] <= actors[1]:
        raise ValueError(f"--actors {' '.join(map(str, actors))}: give MIN MAX with 1 <= MIN <= MAX")
    if actors[0] > room:
        raise ValueError(
            f"--actors {actors[0]}: the cluster has room for {room} (one {'GPU share' if share else 'CPU'} each, "
            "one CPU kept for reading); give fewer or add nodes"
        )
    return Pool((actors[0], min(actors[1], room)), share)


def ray_map(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
    """A Mapper for listings: one Ray task per item, at most two per CPU in flight, results in order."""
    results = dict(bounded(function, [(i, (item,)) for i, item in enumerate(items)]))
    return [results[i] for i in range(len(items))]


def bounded(
    function: Callable[..., Any], jobs: Iterable[tuple[Any, tuple[Any, ...]]], title: str | None = None
) -> Iterator[tuple[Any, Any]]:
    """Run function(*args) as a Ray task for each (key, args), few at a time; yield (key, result) as they finish.

    Errors that the function raises for users arrive as themselves, so that users read their message.
    """
    jobs = list(jobs)
    task = ray.remote(num_cpus=1, max_retries=3)(function)
    limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: dict[Any, Any] = {}
    upcoming = iter(jobs)
    with progress(len(jobs), title or "", "task", title is None) as bar:
        for _ in jobs:
            while len(waiting) < limit and (job := next(upcoming, None)) is not None:
                waiting[task.remote(*job[1])] = job[0]
            ready, _ = ray.wait(list(waiting), num_returns=1)
            key = waiting.pop(ready[0])
            try:
                result = ray.get(ready[0])
            except (ValueError, OSError, RunError) as error:
                for other in waiting:
                    ray.cancel(other)
                raise getattr(error, "cause", error) from error
            bar.update()
            yield key, result


def run_units(
    units: list[dict[str, Any]],
    steps: Sequence[tuple[Callable[..., Any] | type, dict[str, Any]]],
    title: str,
    unit_name: str,
    total: int,
    done: int,
) -> Iterator[dict[str, Any]]:
    """Stream units through Ray Data map_batches steps and yield one result row per unit as it completes.

    Each unit is one row and each call gets one, so that what a call computes depends on the unit alone. A result row
    has `count`, for the progress bar, and `error`, which ends the stage: RunError with that text.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    context.max_errored_blocks = 0
    dataset: ray.data.Dataset = ray.data.from_items(units, override_num_blocks=len(units))
    for function, options in steps:
        dataset = dataset.map_batches(function, batch_size=1, batch_format="pyarrow", **options)
    with progress(total, title, unit_name, False, done) as bar:
        try:
            for row in dataset.iter_rows():
                if row["error"]:
                    raise RunError(f"{title}: {row['error']}")
                bar.update(row["count"])
                yield row
        except (RayError, UserCodeException, SystemException) as error:
            raise RunError(f"{title}: a worker failed: {_innermost(error)}") from error


def _innermost(error: BaseException) -> str:
    """The first cause of an error from a worker, in one line."""
    while cause := getattr(error, "cause", None) or error.__cause__:
        error = cause
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1]


class _Lines:
    """A log file's view of a progress bar: each state once, on a line of its own."""

    last = ""

    def write(self, text: str) -> None:
        """Print what tqdm draws, without its carriage returns."""
        line = text.strip()
        if line and line != self.last:
            print(line, file=sys.stderr)
            self.last = line

    def flush(self) -> None:
        """Pass on."""
        sys.stderr.flush()


def progress(total: int, title: str, unit: str, hide: bool, done: int = 0) -> tqdm:
    """A progress bar: live on a terminal, a line every 10 seconds in a job's log."""
    live = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=title,
        unit=f" {unit}",
        initial=done,
        disable=hide,
        mininterval=0.1 if live else 10,
        delay=0 if live else 0.5,
        file=None if live else _Lines(),
        bar_format=None
        if live
        else "{desc}: {n_fmt}/{total_fmt}{unit}s, {rate_fmt}, {elapsed} elapsed, {remaining} left",
    )
