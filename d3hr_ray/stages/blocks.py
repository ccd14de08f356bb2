"""Blocks of a variant on actors that hold the networks: what pools of candidates and distilled images have in common.

Each block is one unit: an actor reads its subsets/ file and writes what it makes of it, last a file that marks it done.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from d3hr_ray.config import RunConfig
from d3hr_ray.models.card import portable
from d3hr_ray.models.teachers import resolve
from d3hr_ray.runtime.actors import Pool, run_units
from d3hr_ray.runtime.telemetry import describe
from d3hr_ray.sets import Variant
from d3hr_ray.stages.sampling import Sampler
from d3hr_ray.store import Store

RESULT_SCHEMA = pa.schema([("count", pa.int64()), ("error", pa.string())])


@dataclass(frozen=True)
class BlockJob:
    """What an actor must know to make blocks."""

    store: Store
    config: RunConfig
    variants: tuple[Variant, ...]
    classes: pa.Table
    device: str


class BlockActor(ABC):
    """Actor: holds the networks and makes one block per call, by its class's `write`."""

    def __init__(self, job: BlockJob) -> None:
        self.job = job
        self.sampler = Sampler(job.config, job.classes, job.device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row {variant, block} => {count, error}, after the files are written."""
        row = batch.to_pylist()[0]
        variant, block, error, count = self.job.variants[row["variant"]], row["block"], None, 0
        labels = list(variant.blocks(len(self.job.classes))[block])
        describe(run=self.job.store.uri, variant=variant.name, block=block, labels=labels)
        try:
            count = self.write(variant, block)
        except (ValueError, OSError) as problem:
            error = f"{variant.name}, block {block}: {problem}"
        return pa.table([[count], [error]], schema=RESULT_SCHEMA)

    @abstractmethod
    def write(self, variant: Variant, block: int) -> int:
        """Make and write one block. Returns its number of images."""


def run_blocks(
    actor: type[BlockActor],
    store: Store,
    config: RunConfig,
    variants: Sequence[Variant],
    classes: pa.Table,
    pool: Pool,
    title: str,
    is_done: Callable[[Variant, int], bool],
) -> None:
    """Make every block that is not done, of all variants in one stream."""
    images = {(v, b): v.ipc * len(labels) for v in variants for b, labels in enumerate(v.blocks(len(classes)))}
    todo = [(v, b) for v, b in images if not is_done(v, b)]
    if not todo:
        return
    config = replace(config, model=replace(config.model, name=portable(config.model.name)))
    if config.cao2.classifier is not None:
        config = replace(config, cao2=replace(config.cao2, classifier=resolve(config.cao2.classifier)))
    job = BlockJob(store, config, tuple(variants), classes, pool.device)
    units = [{"variant": variants.index(v), "block": b} for v, b in todo]
    steps: list[tuple[Any, dict[str, Any]]] = [(actor, {"fn_constructor_args": (job,), **pool.options(len(units))})]
    total = sum(images.values())
    for _ in run_units(units, steps, title, "image", total, total - sum(images[key] for key in todo)):
        pass
