"""Pools of actors that hold networks, and the streams of Ray Data that bring them work."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError

from d3hr_ray.config import RunError
from d3hr_ray.runtime import capacity
from d3hr_ray.runtime.capacity import Ask, claim
from d3hr_ray.runtime.failures import failure
from d3hr_ray.runtime.progress import progress
from d3hr_ray.runtime.summary import costing
from d3hr_ray.runtime.telemetry import Measured, MeasuredActor

logging.getLogger("ray.data").setLevel(logging.ERROR)  # whose import sets another

STUCK = 10  # time limits in a row without a finished unit end the run; a unit has many batches
GROWING = 1_000_000  # upper bound of a pool that takes whatever an autoscaler brings
TASK_LIMIT = 1800.0  # seconds that one batch, one read of a shard or one load of the networks may take

RESULT_SCHEMA = pa.schema([("count", pa.int64()), ("rejected", pa.int64()), ("error", pa.string())])


@dataclass(frozen=True)
class Actors:
    """Actors that hold the networks: `size` (min, max) of them, each with a share of a GPU or one CPU."""

    size: tuple[int, int]
    gpus: float
    limit: float = TASK_LIMIT

    @property
    def device(self) -> str:
        """Where an actor's networks live."""
        return "cuda" if self.gpus else "cpu"

    def __str__(self) -> str:
        low, high = self.size
        share = f"{self.gpus:g} GPU" if self.gpus else "1 CPU"
        count = f"{low} or more" if high == GROWING else (str(low) if low == high else f"{low} to {high}")
        return f"{count} actor(s) with {share} each"

    def options(self, units: int) -> dict[str, Any]:
        """Options of run_units for a step of so many units; more actors than units would only load weights."""
        low, high = (min(bound, units) for bound in self.size)
        compute = ray.data.ActorPoolStrategy(
            min_size=low, max_size=high, initial_size=low, max_tasks_in_flight_per_actor=2
        )
        resources = {"num_gpus": self.gpus or None, "num_cpus": 0 if self.gpus else 1}
        return {"compute": compute, "limit": self.limit, **resources}


def find_actors(actors: tuple[int, ...], gpus_per_actor: float | None, patience: float = 0.0) -> Actors:
    """Size a pool for the cluster that Ray is connected to: all its GPUs, else all CPUs but one.

    That CPU is for readers: Ray Data now runs them inside CPU actors, but where it does not, a pool on every CPU waits
    for ever. GPU actors leave all CPUs to them. Where --actors or --gpus-per-actor asks for more than there is, the
    cluster's autoscaler has `patience` seconds to begin adding nodes.
    Raises ValueError when the cluster can never hold the pool asked for.
    """
    if actors and (len(actors) != 2 or not 1 <= actors[0] <= actors[1]):
        raise ValueError(f"--actors {' '.join(map(str, actors))}: give MIN MAX with 1 <= MIN <= MAX")
    ask = Ask(actors[0] if actors else None, gpus_per_actor, "--actors", "--gpus-per-actor", cpus=0, spare=1)
    share, there = claim(ask, patience)
    if not actors:  # on a cluster that grows from nothing, Ray Data adds actors as nodes come
        return Actors((there, there) if there else (1, GROWING), share)
    return Actors((actors[0], actors[1] if patience else min(actors[1], max(there, actors[0]))), share)


def unit_result(count: int, error: str | None, rejected: int = 0) -> pa.Table:
    """What a unit's last step returns: the images it went through, those it rejected, and what ends the stage."""
    return pa.table([[count], [rejected], [error]], schema=RESULT_SCHEMA)


def run_units(
    units: list[dict[str, Any]],
    steps: Sequence[tuple[Callable[..., Any] | type, dict[str, Any]]],
    title: str,
    unit_name: str,
    total: int,
    done: int,
) -> Iterator[dict[str, Any]]:
    """Stream units through Ray Data map_batches steps and yield one result row per unit as it completes.

    Each unit is one row and each call gets one, so that what a call computes depends on the unit alone. Result rows are
    as of `unit_result`: `count` is for the progress bar, and `error` ends the stage by a RunError with that text.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    context.max_errored_blocks = 0
    limit = time_limit(options for _, options in steps)
    context.execution_no_progress_timeout_s = STUCK * limit
    dataset: ray.data.Dataset = ray.data.from_items(units, override_num_blocks=len(units))
    for function, options in steps:
        work, options = _measured(function, options, title, limit)
        dataset = dataset.map_batches(work, batch_size=1, batch_format="pyarrow", **options)
    shown = progress(total, title, unit_name, done=done)
    last = steps[-1][1]
    waiting = capacity.warn_while_unschedulable(title, last.get("num_gpus") or 0)
    with shown as bar, costing(title, last["compute"].max_size) as cost, waiting:
        try:
            for row in dataset.iter_rows():
                if row["error"]:
                    raise RunError(f"{title}: {row['error']}")
                bar.update(row["count"])
                cost.add(row)
                yield row
        except ExecutionTimeoutError as error:
            raise RunError(
                f"{title}: no unit was finished for {context.execution_no_progress_timeout_s:g} s, "
                f"{STUCK} times the limit of one batch; if batches take that long, jobs/distill.py has --task-timeout"
            ) from error
        except (RayError, SystemException) as error:
            raise failure(title, error) from error


def time_limit(options: Iterable[dict[str, Any]]) -> float:
    """Seconds that one call of any step may take: as the step with a pool has it, else TASK_LIMIT."""
    return max((o["limit"] for o in options if "limit" in o), default=TASK_LIMIT)


def _measured(
    function: Callable[..., Any] | type, options: dict[str, Any], title: str, limit: float
) -> tuple[Any, dict[str, Any]]:
    """A step as Ray Data takes it, with time limit and metrics around every call."""
    options = {k: v for k, v in options.items() if k != "limit"}
    if not isinstance(function, type):
        return Measured(function, f"{title} read", limit), options
    named = type(function.__name__, (MeasuredActor,), {})  # Ray shows this name
    return named, options | {"fn_constructor_args": (function, options["fn_constructor_args"], title, limit)}
