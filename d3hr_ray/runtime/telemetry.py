"""What every unit of work is wrapped in on its worker: a time limit, metrics, a log line, and its cost for the summary.

Metrics leave by Ray (`ray.util.metrics`, Prometheus); cluster/grafana.json draws them.
"""

import contextlib
import faulthandler
import functools
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray
from ray.util.metrics import Counter, Gauge, Histogram

from d3hr_ray import store
from d3hr_ray.runtime.console import LOG

COST_SCHEMA = pa.schema(
    [("seconds", pa.float64()), ("bytes", pa.int64()), ("retries", pa.int64()), ("worker", pa.string())]
)
COST = COST_SCHEMA.names


@functools.cache
def metrics() -> dict[str, Any]:
    """The process's metrics by short name; Prometheus shows them as ray_d3hr_<name>."""
    stage = ("stage",)
    return {
        "images": Counter("d3hr_images_total", "Images that went through a stage", (*stage, "outcome")),
        "forwards": Counter("d3hr_forwards_total", "Denoiser forwards, one per image and pass", stage),
        "bytes": Counter("d3hr_bytes_written_total", "Bytes written to the run folder", stage),
        "retries": Counter("d3hr_retries_total", "Units of work that were started again", stage),
        "batch": Histogram("d3hr_batch_seconds", "Seconds per batch", [0.01, 0.1, 0.3, 1, 3, 10, 30, 100, 300], stage),
        "busy": Gauge("d3hr_busy_share", "Share of its life that a worker spent on units", (*stage, "worker")),
    }


@dataclass
class Call:
    """One unit's work under way in this process."""

    stage: str
    limit: float
    fields: dict[str, Any] = field(default_factory=dict)


_current: list[Call] = []


def describe(**fields: Any) -> None:
    """Add fields to the log line of the unit under way: its run, set, block, classes."""
    if _current:
        _current[-1].fields |= fields


@contextlib.contextmanager
def batch() -> Iterator[None]:
    """Measure one batch, and give the next one the whole time limit again."""
    start = time.monotonic()
    yield
    if _current:
        metrics()["batch"].observe(time.monotonic() - start, {"stage": _current[-1].stage})
    goes_on()


def goes_on() -> None:
    """Give what follows the whole time limit again: of a unit whose parts are no batches."""
    if _current:
        _arm(_current[-1].limit)


def count_forwards(module: Any, inputs: tuple[Any, ...], _: Any) -> None:
    """A forward hook for the denoiser."""
    if _current and inputs:
        metrics()["forwards"].inc(len(inputs[0]), {"stage": _current[-1].stage})


@contextlib.contextmanager
def limited(stage: str, seconds: float) -> Iterator[Call]:
    """Within this block, a batch that takes longer than `seconds` ends the process, and Ray starts the work again.

    Nothing less helps where a driver, a lock or a disk hangs: faulthandler's thread needs no Python to go on.
    """
    call = Call(stage, seconds)
    _current.append(call)
    _arm(seconds)
    try:
        yield call
    finally:
        _current.pop()
        faulthandler.cancel_dump_traceback_later()


def _arm(seconds: float) -> None:
    # 2, not sys.stderr: what replaces that in tests and notebooks has no file descriptor
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)


class Measured:
    """A unit's function, wrapped. `stage` names it in metrics and logs."""

    def __init__(self, function: Callable[[pa.Table], pa.Table], stage: str, limit: float) -> None:
        self.function, self.stage, self.limit = function, stage, limit
        self.begun, self.busy = time.monotonic(), 0.0

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row => one row, with the columns of COST_SCHEMA added."""
        start, written, again = time.monotonic(), store.written.total, _attempt()
        earlier = batch["retries"][0].as_py() if "retries" in batch.column_names else 0
        with limited(self.stage, self.limit) as call:
            result = self.function(batch.drop_columns([c for c in COST if c in batch.column_names]))
        seconds, size = time.monotonic() - start, store.written.total - written
        self.busy += seconds
        self._report(result, seconds, size, again, call.fields)
        for name, value in zip(COST, (seconds, size, earlier + bool(again), worker()), strict=True):
            result = result.append_column(COST_SCHEMA.field(name), pa.array([value], COST_SCHEMA.field(name).type))
        return result

    def _report(self, result: pa.Table, seconds: float, size: int, again: int, fields: dict[str, Any]) -> None:
        tags, known = {"stage": self.stage}, metrics()
        there = set(result.column_names)
        row = {c: result[c][0].as_py() for c in ("count", "rejected", "error") if {c, "count"} <= there}
        rejected = row.get("rejected") or 0
        steps = [
            ("images", (row.get("count") or 0) - rejected, {"outcome": "accepted"}),
            ("images", rejected, {"outcome": "rejected"}),
            ("bytes", size, {}),
            ("retries", int(bool(again)), {}),
        ]
        for name, value, more in steps:
            if value > 0:  # Ray refuses to count nothing
                known[name].inc(value, tags | more)
        known["busy"].set(self.busy / max(time.monotonic() - self.begun, 1e-9), tags | {"worker": worker()})
        LOG.info(
            "unit done", extra={"stage": self.stage, "seconds": round(seconds, 3), "attempt": again, **row, **fields}
        )


class MeasuredActor(Measured):
    """The same for a class whose object an actor holds: making it has the time limit too."""

    def __init__(self, kind: Callable[..., Any], arguments: tuple[Any, ...], stage: str, limit: float) -> None:
        with limited(stage, limit):
            function = kind(*arguments)
        super().__init__(function, stage, limit)


def worker() -> str:
    """This process, as the summary counts them."""
    return f"{platform.node()}:{os.getpid()}"


def _attempt() -> int:
    """How often Ray has started this unit before; Ray has no public name for it."""
    if not ray.is_initialized():
        return 0
    core: Any = ray._private.worker.global_worker.core_worker  # type: ignore[attr-defined]
    return int(core.get_current_task_attempt_number())
