"""Ray Train around trials: every worker trains whole students side by side, or several workers train one together.

Finished trials are files, so a restarted worker group repeats none; a trial in training continues from its checkpoint.
Ray's own checkpoints are not used: a crash within its controller's polling interval loses a report (docs/ray.md).
"""

import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import ray
import torch
from ray import train
from ray.train.constants import RAY_CHDIR_TO_TRIAL_DIR
from ray.train.torch import TorchTrainer
from torch import nn

from d3hr_ray.beside import beside
from d3hr_ray.config import RunError
from d3hr_ray.datasets.images import Images, Loadable
from d3hr_ray.evaluation.training import Share, evaluate
from d3hr_ray.evaluation.trials import Trial, run_trial, untrained
from d3hr_ray.models.teachers import Target, load_teachers
from d3hr_ray.runtime.capacity import Ask, claim, warn_while_unschedulable
from d3hr_ray.runtime.failures import failure
from d3hr_ray.runtime.objects import lend
from d3hr_ray.runtime.progress import progress
from d3hr_ray.runtime.tasks import fetch
from d3hr_ray.store import Store

SCRATCH = "evaluations/.training"


@dataclass(frozen=True)
class Workers:
    """`count` Ray Train workers (0: this process) with a share of a GPU each; `per_student` of them share a student."""

    count: int
    gpus: float = 0.0
    per_student: int = 1

    def __post_init__(self) -> None:
        if self.count < 0 or self.per_student < 1 or (self.count or 1) % self.per_student:
            raise ValueError(
                f"--workers-per-student {self.per_student} does not divide --workers {self.count}; give a divisor"
            )
        if self.per_student > 1 and 0 < self.gpus < 1:
            raise ValueError(
                f"--workers-per-student {self.per_student} needs a whole GPU for each of them, and --gpus-per-worker "
                f"{self.gpus:g} puts several on one, which NCCL refuses; give --gpus-per-worker 1"
            )


def find_workers(count: int | None, gpus: float | None, per_student: int, patience: float = 0.0) -> Workers:
    """--workers as asked, or one per GPU, or per CPU where there is none; from nothing, as many as share a student.

    A cluster's autoscaler has `patience` seconds to begin adding nodes. Raises ValueError for more than fit.
    """
    if count == 0:
        if gpus:
            raise ValueError(f"--gpus-per-worker {gpus:g} is idle: --workers 0 trains in this process; leave one out")
        return Workers(0, 0.0, per_student)
    share, there = claim(Ask(count, gpus, "--workers", "--gpus-per-worker", least=per_student), patience)
    return Workers(count or max(per_student, there - there % per_student), share, per_student)


def launch(
    store: Store,
    trials: Sequence[Trial],
    sets: Mapping[str, Loadable],
    test: Loadable,
    target: Target,
    workers: Workers,
    teacher_top1: Mapping[tuple[str, ...], float | None],
    title: str = "evaluate",
) -> None:
    """Run the trials that have no record yet. Raises RunError if one fails, and says how to resume."""
    missing = untrained(store, trials)
    if not missing:
        return
    os.environ.setdefault(RAY_CHDIR_TO_TRIAL_DIR, "0")  # relative paths mean the same in a worker as here
    # The costliest first and in stripes, so that workers end at about the same time; those of a set in a row.
    ordered = sorted(missing, key=lambda t: (-dict(t.about)["images"], t.arch, t.protocol.name, t.set_key, t.key))
    used = {t.set_key: sets[t.set_key] for t in missing}
    config = {
        "store": store,
        "trials": ordered,
        "take": lend(used, test, here=not workers.count),
        "test": test,
        "target": target,
        "workers": workers,
        "teacher_top1": dict(teacher_top1),
    }
    scratch = f"{SCRATCH}/ray-{uuid.uuid4().hex[:8]}"
    trainer = TorchTrainer(
        work,
        train_loop_config=config,
        scaling_config=train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": 1, "GPU": workers.gpus} if workers.gpus else {"CPU": 1},
        ),
        run_config=train.RunConfig(
            name="ray", storage_path=store.at(scratch).uri, failure_config=train.FailureConfig(max_failures=3)
        ),
    )
    try:
        with counting(store, trials, title), warn_while_unschedulable(title, workers.gpus):
            trainer.fit()
    except train.TrainingFailedError as error:
        raise failure(title, error) from error
    finally:
        store.delete(scratch)


def work(config: dict[str, Any]) -> None:
    """What a Ray Train worker does: its stripe of the trials, alone or with the others of its group."""
    context, workers = train.get_context(), config["workers"]
    torch.set_num_threads(1)
    rank, world = context.get_world_rank(), context.get_world_size()
    device = str(ray.train.torch.get_device()) if workers.gpus else ("cuda" if _free_gpu(workers) else "cpu")
    group, groups = rank // workers.per_student, world // workers.per_student
    share = _share(rank % workers.per_student, workers.per_student, group, groups, device)
    test, store = config["test"].load(), config["store"]
    teachers = cache(lambda names: load_teachers(names, config["target"], device))
    for trial in config["trials"][group::groups]:
        if store.exists(trial.record):
            continue  # made before a restart
        teacher: nn.Module | None = teachers(trial.teachers) if trial.teachers else None
        top1 = config["teacher_top1"].get(trial.teachers)
        run_trial(store, trial, config["take"](trial.set_key), test, teacher, top1, device, share)


def _free_gpu(workers: Workers) -> bool:
    return workers.count == 0 and torch.cuda.is_available()


def _share(rank: int, count: int, group: int, groups: int, device: str) -> Share:
    """This worker's place in its group, whose gradients are averaged."""
    if count == 1:
        return Share()
    made = [torch.distributed.new_group(list(range(g * count, (g + 1) * count))) for g in range(groups)]

    def wrap(module: nn.Module) -> nn.Module:
        if device == "cpu" and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
            raise ValueError("--workers-per-student: CPU workers cannot share batch norm; use convnet-d3, or 1 worker")
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(module, made[group]) if device != "cpu" else module
        return nn.parallel.DistributedDataParallel(synced, process_group=made[group])

    return Share(rank, count, wrap)


def counting(store: Store, trials: Sequence[Trial], title: str) -> AbstractContextManager[None]:
    """A progress bar of the trials that have a record, wherever they are trained."""
    wanted = {t.record.rpartition("/")[2] for t in trials}

    def count() -> int:
        return len(wanted.intersection(store.list("evaluations/runs")))

    def watch(stop: threading.Event) -> None:
        done = count()
        with progress(len(wanted), title, "student", False, done) as bar:
            while not stop.wait(2):
                now = count()
                bar.update(now - done)
                done = now
            bar.update(count() - done)

    return beside(watch)


def check_teachers(names: tuple[str, ...], target: Target, test: Loadable, workers: Workers) -> float:
    """Preflight on a worker's device. Raises RunError for a teacher near chance."""

    def check(test: Loadable) -> float:
        device = "cuda" if (workers.gpus or not workers.count) and torch.cuda.is_available() else "cpu"
        return preflight(load_teachers(names, target, device), test.load(), " ".join(names), device)

    if workers.count == 0:
        return check(test)
    task = ray.remote(num_cpus=1, num_gpus=workers.gpus, max_retries=3)(check)
    title = f"teacher {' '.join(names)}"
    with warn_while_unschedulable(title, workers.gpus):
        top1: float = fetch(task.remote(test), title)
    return top1


def preflight(teacher: nn.Module, test: Images, name: str, device: str) -> float:
    """The teacher's own top-1 on the test set, in the set's class order.

    Raises RunError if that is near chance: less than a tenth of the way from there to 1.
    """
    top1, chance = evaluate(teacher, test, device).top1, 1 / len(test.classes)
    if top1 < chance + 0.1 * (1 - chance):
        raise RunError(
            f"--teacher {name} reaches {top1:.1%} on the test set, near chance ({chance:.1%}): its class order is "
            "probably another one than the set's; give a teacher with named classes, or sort the classes as it does"
        )
    return top1
