"""What a run cost, for the summary at its end: images per second, busy devices, bytes, retries."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from d3hr_ray.runtime.console import LOG


@dataclass
class StageCost:
    """One stage of this driver: what its units report as they complete. `actors` is the size of its pool."""

    stage: str
    actors: int
    images: int = 0
    rejected: int = 0
    busy: float = 0.0
    written: int = 0
    retries: int = 0
    workers: set[str] = field(default_factory=set)
    begun: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float = 0.0

    def add(self, row: dict[str, Any]) -> None:
        """Count one unit's row."""
        now = time.monotonic()
        self.first = now - row["seconds"] if self.first is None else self.first
        self.last = now
        self.images += row["count"]
        self.rejected += row.get("rejected") or 0
        self.busy += row["seconds"]
        self.written += row["bytes"]
        self.retries += row["retries"]
        self.workers.add(row["worker"])

    def plain(self) -> dict[str, Any]:
        """As JSON. Rates are over the time from the first unit's start to the last one's end; startup is before it."""
        span = max(self.last - (self.first or self.last), 1e-9)
        return {
            "stage": self.stage,
            "images": self.images,
            "rejected": self.rejected,
            "seconds": round(span, 2),
            "startup_seconds": round((self.first or self.begun) - self.begun, 2),
            "images_per_second": round(self.images / span, 2),
            "busy_share": round(min(1.0, self.busy / (span * max(1, min(self.actors, len(self.workers))))), 3),
            "workers": len(self.workers),
            "bytes_written": self.written,
            "retries": self.retries,
        }


_costs: list[StageCost] = []


@contextlib.contextmanager
def recording() -> Iterator[list[StageCost]]:
    """Collect the cost of the stages that run within this block."""
    before, _costs[:] = list(_costs), []
    try:
        yield _costs
    finally:
        _costs[:] = before


@contextlib.contextmanager
def costing(stage: str, actors: int) -> Iterator[StageCost]:
    """Open the record of one stage, and log it when the stage ends."""
    cost = StageCost(stage, actors)
    _costs.append(cost)
    try:
        yield cost
    finally:
        LOG.info("stage ended", extra=cost.plain())


def summary() -> list[dict[str, Any]]:
    """What each stage recorded so far that had something to do."""
    return [cost.plain() for cost in _costs if cost.workers]


def format_summary(stages: list[dict[str, Any]]) -> str:
    """The summary as lines of text; none if nothing was computed."""
    return "\n".join(
        f"{s['stage']}: {s['images']:,} images in {s['seconds']:.1f} s after {s['startup_seconds']:.1f} s of startup, "
        f"{s['images_per_second']:,.1f} images/s on {s['workers']} worker(s), busy {s['busy_share']:.0%}, "
        f"{s['bytes_written']:,} bytes written, {s['rejected']:,} rejected, {s['retries']:,} retried"
        for s in stages
    )
