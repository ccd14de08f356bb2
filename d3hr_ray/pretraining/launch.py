"""Ray Train around the phases: any number of workers, resumed from the run folder's own checkpoints.

Ray's checkpoints are not used: a crash within the controller's polling interval loses the last report (RAY.md 1e).
Ours are files in `--out`, whole or absent, so that a killed run continues under the same command, with any number of
workers.
"""

import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import ray
import torch
from ray import train
from ray.train.torch import TorchTrainer, get_device, prepare_model

from d3hr_ray.config import DataConfig, RunError, as_dict, differences
from d3hr_ray.datasets.listing import Listing, list_images, open_source
from d3hr_ray.datasets.source import thread_map
from d3hr_ray.models.loading import locate, read_card
from d3hr_ray.pretraining import export
from d3hr_ray.pretraining.networks import build
from d3hr_ray.pretraining.optimise import Row
from d3hr_ray.pretraining.phases import Worker, World
from d3hr_ray.pretraining.settings import PretrainConfig
from d3hr_ray.pretraining.stream import ImageStream
from d3hr_ray.store import Store

SCRATCH = ".training"  # checkpoints and rejected images, until the model is complete


def pretrain(config: PretrainConfig, out: str, command: str, workers: int = 0, threads: int = 1) -> bool:
    """Train a model into the folder `out`, or finish training it; False if it was complete already.

    0 workers train in this process, without a cluster. Raises ValueError for settings, data or a folder that do not
    fit, before anything runs, and RunError if training fails.
    """
    store = Store(out)
    _claim(store, config)
    if store.exists("training.json"):
        return False
    listing = list_classes(config.data)
    _check_shares(config, listing, max(1, workers))
    settings = {"config": config, "out": out, "command": command, "threads": threads}
    trainer = TorchTrainer(
        _work,
        train_loop_config=settings | {"listing": ray.put(listing) if workers else listing},
        scaling_config=train.ScalingConfig(num_workers=workers, use_gpu=_gpus(workers)),
        # A new name for every launch: under a name it knows, Ray would resume from its own snapshot, not from ours.
        run_config=train.RunConfig(
            name=f"ray-{uuid.uuid4().hex[:8]}",
            storage_path=_absolute(f"{out}/{SCRATCH}"),
            failure_config=train.FailureConfig(max_failures=3),
        ),
    )
    try:
        trainer.fit()
    except train.TrainingFailedError as error:
        raise RunError(f"pretraining into {out} failed: {error}; run the same command again to resume") from error
    store.delete(SCRATCH)
    return True


def trained_on(model: str) -> DataConfig:
    """The data that a model of ours was trained on. Raises ValueError if it is none."""
    store = Store(locate(model))
    if not store.exists("training.json"):
        raise ValueError(f"--check {model}: no training.json in it; only models of jobs/pretrain.py can be checked")
    data = store.read_json("training.json")["settings"]["data"]
    return DataConfig(**{**data, "classes": tuple(data["classes"])})


def start_anew(out: str) -> None:
    """Delete what a training run writes into `out`, and nothing else."""
    for name in (SCRATCH, *export.FILES):
        Store(out).delete(name)


def list_classes(data: DataConfig) -> Listing:
    """List a source with its own classes as labels, which become the model's classes in the same order."""
    once = _Once()
    found = pc.unique(open_source(data).scan(once)["class_name"]).to_pylist()
    return list_images(data, len(found), found, once)


class _Once:
    """A mapper that scans on the first call and repeats what it found on the next: a big set is listed once."""

    def __init__(self) -> None:
        self._found: list[Any] | None = None

    def __call__(self, function: Any, items: Any) -> list[Any]:
        if self._found is None:
            self._found = list(thread_map(function, items))
        return self._found


def _claim(store: Store, config: PretrainConfig) -> None:
    """Write the settings into a new folder, or check that they are the old ones."""
    settings = as_dict(config)
    for name, key in (("training.json", "settings"), (f"{SCRATCH}/settings.json", None)):
        if store.exists(name):
            old = store.read_json(name)
            changes = differences(old[key] if key else old, settings)
            if changes:
                raise ValueError(
                    f"--out {store.uri} has other settings ({'; '.join(changes)}); use --overwrite or another --out"
                )
            return
    if store.list():
        raise ValueError(f"--out {store.uri} holds files that are no training run; give another --out, or --overwrite")
    store.write_json(f"{SCRATCH}/settings.json", settings)


def _work(settings: dict[str, Any]) -> None:
    """One worker's whole run; rank 0 writes the model."""
    torch.set_num_threads(settings["threads"])  # more threads sum in another order: other bytes
    config, store, world = settings["config"], Store(settings["out"]), _world()
    listing = settings["listing"]
    listing = ray.get(listing) if isinstance(listing, ray.ObjectRef) else listing
    start = time.monotonic()
    names = listing.classes.sources
    stream = ImageStream(listing, _image_size(config), config.seed, world.rank, world.size)
    networks = build(config, names)
    curve = Worker(config, networks, stream, store, world).run()
    store.write_json(f"{SCRATCH}/rejected/{world.rank}.json", stream.rejected)
    train.report({"rejected": len(stream.rejected)})  # a barrier: every rank has written its rejected images
    if world.rank == 0:
        record = {
            "command": settings["command"],
            "seed": config.seed,
            "steps": {"vae": config.vae.steps, "dit": config.dit.steps},
            "images": len(listing),
            "rejected": _rejected(store, config.data, len(listing)),
            "workers": world.size,
            "parameters": {
                n: sum(p.numel() for p in getattr(networks, n).parameters()) for n in ("vae", "transformer")
            },
            "seconds_since_last_start": round(time.monotonic() - start, 1),
            "final": {row["phase"]: row for row in curve},
            "settings": as_dict(config),
        }
        export.save(networks, names, curve, record, store)


def _world() -> World:
    context = train.get_context()
    size = context.get_world_size()
    return World(
        rank=context.get_world_rank(),
        size=size,
        device=get_device() if size > 1 or torch.cuda.is_available() else torch.device("cpu"),
        wrap=prepare_model if size > 1 else _unwrapped,
        report=_report,
    )


def _unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    return module


def _report(row: Row) -> None:
    train.report(dict(row))
    if train.get_context().get_world_rank() == 0:
        print(" ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


def _check_shares(config: PretrainConfig, listing: Listing, workers: int) -> None:
    """Raise ValueError if the workers cannot share the batches or the images equally."""
    for size in (config.vae.batch_size, config.dit.batch_size):
        if size % workers:
            raise ValueError(f"--batch-size {size} cannot be shared by --workers {workers}; give a multiple of it")
    ImageStream(listing, _image_size(config), config.seed, workers - 1, workers)


def _image_size(config: PretrainConfig) -> int:
    return config.architecture.image_size if config.init is None else read_card(config.init).image_size


def _gpus(workers: int) -> bool:
    """Whether every worker can have a GPU; in this process, whether there is one."""
    if workers == 0:
        return torch.cuda.is_available()
    return bool(ray.cluster_resources().get("GPU", 0) >= workers)


def _absolute(uri: str) -> str:
    """Ray wants an absolute path or a URI."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def _rejected(store: Store, data: DataConfig, images: int) -> int:
    """The number of distinct images that no worker could read. Raises RunError if they are too many."""
    names = store.list(f"{SCRATCH}/rejected")
    found: dict[str, str] = {}
    for name in names:
        found |= store.read_json(f"{SCRATCH}/rejected/{name}")
    if len(found) > data.max_rejected * images:
        first, reason = min(found.items())
        raise RunError(
            f"pretraining: {len(found)} of {images} images cannot be read, such as {first} ({reason}); mend them or "
            "raise --max-rejected"
        )
    for image_id, reason in sorted(found.items()):
        print(f"not read: {image_id}: {reason}")
    return len(found)
