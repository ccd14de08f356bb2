"""Ray Train around the phases: any number of workers, resumed from the run folder's own checkpoints.

Ray's checkpoints are not used: a crash within the controller's polling interval loses the last report (docs/ray.md).
Ours are files in `--out`, whole or absent, so that a killed run continues under the same command, with any number of
workers.
"""

import contextlib
import os
import uuid

import ray
import torch
from ray import train
from ray.train.constants import RAY_CHDIR_TO_TRIAL_DIR
from ray.train.torch import TorchTrainer

from d3hr_ray.datasets.listing import Listing
from d3hr_ray.filesystems import absolute
from d3hr_ray.pretraining.settings import SCRATCH, PretrainConfig
from d3hr_ray.pretraining.watch import following
from d3hr_ray.pretraining.work import work
from d3hr_ray.runtime.capacity import Ask, claim, warn_while_unschedulable
from d3hr_ray.runtime.failures import FAILURES, failure
from d3hr_ray.store import TEMP, Store


def find_gpus(workers: int, gpus: float | None, patience: float) -> float:
    """GPUs of each of --workers, as --gpus-per-worker asks. Raises ValueError if the cluster has no room for them."""
    if gpus and not gpus.is_integer():
        raise ValueError(f"--gpus-per-worker {gpus:g}: workers train together, and NCCL refuses two on one GPU; give 1")
    return claim(Ask(workers, gpus, "--workers", "--gpus-per-worker"), patience)[0]


def place(workers: int) -> str:
    """Where training goes on, in words: without workers in this process, on a GPU that torch can use."""
    if workers:
        return f"on {workers} workers"
    return f"in this process, on {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}"


def pretrain(
    config: PretrainConfig,
    listing: Listing,
    out: str,
    command: str,
    workers: int = 0,
    threads: int = 1,
    gpus: float = 0.0,
) -> None:
    """Train a model into a prepared folder, or finish training it, by workers with so many GPUs each.

    0 workers train in this process, without a cluster, on its GPU if there is one.
    Raises RunError if training fails, and says how to resume.
    """
    os.environ.setdefault(RAY_CHDIR_TO_TRIAL_DIR, "0")  # relative paths mean the same in a worker as here
    settings = {
        "config": config,
        "out": absolute(out),
        "command": command,
        "workers": workers,
        "threads": threads,
    }
    trainer = TorchTrainer(
        work,
        train_loop_config=settings | {"listing": ray.put(listing) if workers else listing},
        scaling_config=train.ScalingConfig(
            num_workers=workers,
            use_gpu=gpus > 0 if workers else torch.cuda.is_available(),
            resources_per_worker={"CPU": 1, **({"GPU": gpus} if gpus else {})} if workers else None,
        ),
        # A new name for every launch: under a name it knows, Ray would resume from its own snapshot, not from ours.
        run_config=train.RunConfig(
            name=f"ray-{uuid.uuid4().hex[:8]}",
            storage_path=absolute(f"{out}/{SCRATCH}"),
            failure_config=train.FailureConfig(max_failures=FAILURES + workers),
        ),
    )
    try:
        with contextlib.ExitStack() as watches:
            for watch in (following(Store(out)), warn_while_unschedulable("pretrain", gpus)) if workers else ():
                watches.enter_context(watch)
            trainer.fit()
    except train.TrainingFailedError as error:
        raise failure(f"pretraining into {out}", error) from error
    for name in (SCRATCH, TEMP):
        Store(out).delete(name)
