"""What one Ray Train worker does: its share of the training, and for rank 0 the model's folder."""

import time
from dataclasses import replace
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import get_device, prepare_model

from d3hr_ray.config import RunError, as_dict
from d3hr_ray.models.memory import keep_freed_memory
from d3hr_ray.pretraining import export
from d3hr_ray.pretraining.networks import build
from d3hr_ray.pretraining.optimise import Row
from d3hr_ray.pretraining.phases import Worker, World
from d3hr_ray.pretraining.settings import SCRATCH, PretrainConfig
from d3hr_ray.pretraining.state import Tell, silent
from d3hr_ray.pretraining.stream import ImageStream
from d3hr_ray.pretraining.watch import showing, to_driver
from d3hr_ray.store import Store


def work(settings: dict[str, Any]) -> None:
    """Ray Train's training function: one worker's whole run. Rank 0 tells how far it is, and writes the model."""
    torch.set_num_threads(settings["threads"])  # more threads sum in another order: other bytes
    keep_freed_memory()
    context, store = train.get_context(), Store(settings["out"])
    if not settings["workers"]:
        with showing() as tell:
            _train(settings, store, 0, 1, tell)
        return
    rank = context.get_world_rank()
    _train(settings, store, rank, context.get_world_size(), silent if rank else to_driver(store))


def _train(settings: dict[str, Any], store: Store, rank: int, size: int, tell: Tell) -> None:
    start = time.monotonic()
    config, listing = settings["config"], settings["listing"]
    listing = ray.get(listing) if isinstance(listing, ray.ObjectRef) else listing
    stream = ImageStream(listing, config.image_size, config.seed, rank, size, tell=tell)
    rejected = Rejected(store, stream, rank, config.data.max_rejected)

    def report(row: Row) -> None:
        rejected.save()
        train.report(dict(row))  # a barrier too: every rank has saved

    gpu = size > 1 or torch.cuda.is_available()
    world = World(rank, size, get_device() if gpu else torch.device("cpu"), report=report, tell=tell)
    networks = build(config, listing.classes.sources)
    worker = Worker(config, networks, stream, store, replace(world, wrap=prepare_model) if size > 1 else world)
    curve = worker.run()
    if rank == 0:
        record = _record(config, curve, networks.parameters()) | {
            "command": settings["command"],
            "images": len(listing),
            "images_digest": listing.digest,
            "rejected": rejected.total(),
            "workers": size,
            "threads": settings["threads"],
            "seconds_since_last_start": round(time.monotonic() - start, 1),
        }
        export.save(networks, listing.classes.sources, curve, record, store)


def _record(config: PretrainConfig, curve: list[Row], parameters: dict[str, int]) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "steps": {"vae": config.vae.steps, "dit": config.dit.steps},
        "parameters": parameters,
        "final": {row["phase"]: row for row in curve},
        "settings": as_dict(config),
    }


class Rejected:
    """The images that could not be read, in a file per worker, so that a resumed run still counts them."""

    def __init__(self, store: Store, stream: ImageStream, rank: int, limit: float) -> None:
        self.store, self.stream, self.limit = store, stream, limit
        self.file = f"{SCRATCH}/rejected/{rank}.json"
        if store.exists(self.file):
            stream.rejected.update(store.read_json(self.file))

    def save(self) -> None:
        """Write this worker's file. Raises RunError if it has met too many."""
        self.store.write_json(self.file, dict(sorted(self.stream.rejected.items())))
        self._check(self.stream.rejected)

    def total(self) -> int:
        """The number of distinct images over all workers, each printed. Raises RunError if they are too many."""
        found: dict[str, str] = {}
        for name in self.store.list(f"{SCRATCH}/rejected"):
            found |= self.store.read_json(f"{SCRATCH}/rejected/{name}")
        self._check(found)
        for image_id, reason in sorted(found.items()):
            print(f"not read: {image_id}: {reason}")
        return len(found)

    def _check(self, found: dict[str, str]) -> None:
        if len(found) > self.limit * len(self.stream):
            image_id, reason = min(found.items())
            raise RunError(
                f"pretraining: {len(found)} of {len(self.stream)} images cannot be read, such as {image_id} "
                f"({reason}); mend them or raise --max-rejected"
            )
