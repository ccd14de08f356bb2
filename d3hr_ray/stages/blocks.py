"""Blocks of sets on actors that hold the networks: what pools of candidates and distilled images have in common.

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
from d3hr_ray.runtime.actors import Actors, run_units, unit_result
from d3hr_ray.runtime.telemetry import describe
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.sampling import Sampler
from d3hr_ray.store import Store


@dataclass(frozen=True)
class BlockJob:
    """What an actor must know to make blocks."""

    store: Store
    config: RunConfig
    specs: tuple[SetSpec, ...]
    classes: pa.Table
    device: str
    source: Store | None = None  # the run folder that has features of real images, if it is not `store`


class BlockActor(ABC):
    """Actor: holds the networks and makes one block per call, by its class's `write`."""

    def __init__(self, job: BlockJob) -> None:
        self.job = job
        self.sampler = Sampler(job.config, job.classes, job.device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row {set, block} => `unit_result`, after the files are written."""
        row = batch.to_pylist()[0]
        spec, block, error, count = self.job.specs[row["set"]], row["block"], None, 0
        labels = list(spec.blocks(len(self.job.classes))[block])
        describe(run=self.job.store.uri, set=spec.name, block=block, labels=labels)
        try:
            count = self.write(spec, block)
        except (ValueError, OSError) as problem:
            error = f"{spec.name}, block {block}: {problem}"
        return unit_result(count, error)

    @abstractmethod
    def write(self, spec: SetSpec, block: int) -> int:
        """Make and write one block. Returns its number of images."""


def run_blocks(
    actor: type[BlockActor],
    store: Store,
    specs: Sequence[SetSpec],
    classes: pa.Table,
    actors: Actors,
    title: str,
    is_done: Callable[[SetSpec, int], bool],
    source: Store | None = None,
) -> None:
    """Make every block that is not done, of all sets in one stream. They differ in nothing that networks look at."""
    images = {(s, b): s.ipc * len(labels) for s in specs for b, labels in enumerate(s.blocks(len(classes)))}
    todo = [(spec, b) for spec, b in images if not is_done(spec, b)]
    if not todo:
        return
    config = specs[0].config
    config = replace(config, model=replace(config.model, name=portable(config.model.name)))
    classifier, learner = (name and resolve(name) for name in (config.cao2.classifier, config.cao2.learner))
    config = replace(config, cao2=replace(config.cao2, classifier=classifier, learner=learner))
    job = BlockJob(store, config, tuple(specs), classes, actors.device, source)
    units = [{"set": specs.index(spec), "block": b} for spec, b in todo]
    steps: list[tuple[Any, dict[str, Any]]] = [(actor, {"fn_constructor_args": (job,), **actors.options(len(units))})]
    total = sum(images.values())
    for _ in run_units(units, steps, title, "image", total, total - sum(images[key] for key in todo)):
        pass
