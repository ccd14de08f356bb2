"""Blocks of sets on actors that hold the networks: what pools of candidates and distilled images have in common.

Each block is one unit: an actor reads its subsets/ file and writes what it makes of it, last a file that marks it done.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pyarrow as pa

from d3hr_ray.config import RunConfig
from d3hr_ray.models.card import portable
from d3hr_ray.models.teachers import resolve
from d3hr_ray.runtime.actors import Actors, run_units, unit_result
from d3hr_ray.runtime.telemetry import describe
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.networks import OpenNetworks, open_networks
from d3hr_ray.stages.sampling import Sampler
from d3hr_ray.store import Store


@dataclass(frozen=True)
class BlockJob:
    """What an actor must know to make the blocks of sets of one folder, which share their settings."""

    store: Store
    config: RunConfig
    specs: tuple[SetSpec, ...]
    classes: pa.Table
    device: str
    source: Store | None = None  # the run folder that has features of real images, if it is not `store`


class BlockActor(ABC):
    """Makes blocks of a job's sets, by its class's `write`, with the networks that `networks` opens."""

    def __init__(self, job: BlockJob, networks: OpenNetworks = open_networks) -> None:
        self.job = job
        self.sampler = Sampler(job.config, job.classes, job.device, networks)

    def make(self, spec: SetSpec, block: int) -> pa.Table:
        """One block => `unit_result`, after its files are written."""
        error, count, labels = None, 0, list(spec.blocks(len(self.job.classes))[block])
        describe(run=self.job.store.uri, set=spec.name, block=block, labels=labels)
        try:
            count = self.write(spec, block)
        except (ValueError, OSError) as problem:
            error = f"{spec.name}, block {block}: {problem}"
        return unit_result(count, error)

    @abstractmethod
    def write(self, spec: SetSpec, block: int) -> int:
        """Make and write one block. Returns its number of images."""


class Blocks:
    """Actor: makes one block per call, of any of several jobs; they share the networks of models that they share."""

    def __init__(self, actor: type[BlockActor], jobs: Sequence[BlockJob]) -> None:
        self.actor, self.jobs = actor, jobs
        self.networks = cache(open_networks)
        self.made: dict[int, BlockActor] = {}
        self.of(0)

    def of(self, job: int) -> BlockActor:
        """What makes a job's blocks; opened once."""
        if job not in self.made:
            self.made[job] = self.actor(self.jobs[job], self.networks)
        return self.made[job]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row {job, set, block} => `unit_result`."""
        (row,) = batch.to_pylist()
        return self.of(row["job"]).make(self.jobs[row["job"]].specs[row["set"]], row["block"])


def run_blocks(
    actor: type[BlockActor],
    jobs: Sequence[BlockJob],
    actors: Actors,
    title: str,
    is_done: Callable[[Store, SetSpec, int], bool],
) -> None:
    """Make every block that is not done, of all sets of all jobs in one stream."""
    images = {
        (j, s, b): spec.ipc * len(labels)
        for j, job in enumerate(jobs)
        for s, spec in enumerate(job.specs)
        for b, labels in enumerate(spec.blocks(len(job.classes)))
    }
    todo = [(j, s, b) for j, s, b in images if not is_done(jobs[j].store, jobs[j].specs[s], b)]
    if not todo:
        return
    units = [{"job": j, "set": s, "block": b} for j, s, b in todo]
    named = type(actor.__name__, (Blocks,), {})  # Ray shows this name
    constructor = {"fn_constructor_args": (actor, tuple(map(_everywhere, jobs)))}
    steps: list[tuple[Any, dict[str, Any]]] = [(named, constructor | actors.options(len(units)))]
    total = sum(images.values())
    for _ in run_units(units, steps, title, "image", total, total - sum(images[key] for key in todo)):
        pass


def _everywhere(job: BlockJob) -> BlockJob:
    """A job with names of models that every node understands."""
    config = job.config
    config = replace(config, model=replace(config.model, name=portable(config.model.name)))
    classifier, learner = (name and resolve(name) for name in (config.cao2.classifier, config.cao2.learner))
    return replace(job, config=replace(config, cao2=replace(config.cao2, classifier=classifier, learner=learner)))
