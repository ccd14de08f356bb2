"""Trials on Ray: Train's workers take whole students side by side, or several share one; Tune tries a grid, or ASHA.

A finished trial is a file, so that whatever is killed and started again trains only what is missing. Ray's own
checkpoints are not used: a crash within its controller's polling interval loses a report (docs/ray.md).
"""

import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import ray
import torch
from ray import train, tune
from ray.exceptions import RayError
from ray.train.constants import RAY_CHDIR_TO_TRIAL_DIR
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.schedulers import ASHAScheduler
from torch import nn

from d3hr_ray.config import RunError
from d3hr_ray.datasets.images import Images, Loadable
from d3hr_ray.evaluation.training import Share, epochs, steps_per_epoch
from d3hr_ray.evaluation.trials import LOOKS, SCRATCH, Trial, note_seconds, run_trial, stopped_rows, untrained
from d3hr_ray.layout import RECORDS, stopped_folder
from d3hr_ray.models.classifiers import preflight
from d3hr_ray.models.teachers import Target, load_teachers
from d3hr_ray.runtime.capacity import Workers, warn_while_unschedulable
from d3hr_ray.runtime.failures import FAILURES, failure
from d3hr_ray.runtime.objects import lend
from d3hr_ray.runtime.progress import counting
from d3hr_ray.runtime.tasks import fetch
from d3hr_ray.store import Store

Scheduler = Literal["grid", "asha"]


@dataclass(frozen=True)
class Work:
    """All that it takes to train any of some trials, on any node: images are taken by key, teachers loaded by name."""

    store: Store
    trials: Sequence[Trial]
    take: Callable[[str], Images]
    test: Loadable
    target: Target
    teacher_top1: Mapping[tuple[str, ...], float | None]

    def teacher(self, names: tuple[str, ...], device: str) -> nn.Module | None:
        """The teachers together; None for none, which hard labels need."""
        return load_teachers(names, self.target, device) if names else None

    def train(self, trial: Trial, test: Images, teacher: nn.Module | None, device: str, **how: Any) -> dict[str, Any]:
        """`run_trial` of one of them, `how` being its other arguments."""
        top1 = self.teacher_top1.get(trial.teachers)
        return run_trial(self.store, trial, self.take(trial.set_key), test, teacher, top1, device, **how)


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
    """Run the trials that are not trained yet, with Ray Train. Raises RunError if one fails."""
    missing = untrained(store, trials)
    if not missing:
        return
    os.environ.setdefault(RAY_CHDIR_TO_TRIAL_DIR, "0")  # relative paths mean the same in a worker as here
    # The costliest first and in stripes, so that workers end at about the same time; those of a set in a row.
    ordered = sorted(missing, key=lambda t: (-dict(t.about)["images"], t.arch, t.protocol.name, t.set_key, t.key))
    used = {t.set_key: sets[t.set_key] for t in missing}
    work = Work(store, ordered, lend(used, test, here=not workers.count), test, target, dict(teacher_top1))
    scratch = f"{SCRATCH}/ray-{uuid.uuid4().hex[:8]}"
    trainer = TorchTrainer(
        _train_stripe,
        train_loop_config={"work": work, "workers": workers},
        # Workers with a student each say nothing to each other. NCCL would want a GPU of its own for each of them.
        torch_config=TorchConfig(backend="gloo" if workers.per_student == 1 else None),
        scaling_config=train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker=_resources(workers.gpus),
        ),
        run_config=train.RunConfig(
            name="ray",
            storage_path=store.at(scratch).uri,
            failure_config=train.FailureConfig(max_failures=FAILURES + workers.count),
        ),
    )
    try:
        with counting_steps(store, trials, title), warn_while_unschedulable(title, workers.gpus):
            trainer.fit()
    except train.TrainingFailedError as error:
        raise failure(title, error) from error
    finally:
        store.delete(scratch)


def _train_stripe(config: dict[str, Any]) -> None:
    """What a Ray Train worker does: its stripe of the trials, alone or with the others of its group."""
    work: Work = config["work"]
    workers: Workers = config["workers"]
    context = train.get_context()
    torch.set_num_threads(1)
    rank, world = context.get_world_rank(), context.get_world_size()
    device = str(ray.train.torch.get_device()) if workers.gpus else ("cuda" if _free_gpu(workers) else "cpu")
    group, groups = rank // workers.per_student, world // workers.per_student
    share = _share(rank % workers.per_student, workers.per_student, group, groups, device)
    test, teacher = work.test.load(), cache(lambda names: work.teacher(names, device))
    for trial in work.trials[group::groups]:
        if not trial.is_trained(work.store):  # as some are before a restart
            work.train(trial, test, teacher(trial.teachers), device, share=share)


def _free_gpu(workers: Workers) -> bool:
    """Whether this process does the work, and has a GPU to itself."""
    return workers.count == 0 and torch.cuda.is_available()


def _share(rank: int, count: int, group: int, groups: int, device: str) -> Share:
    """This worker's place in its group, whose gradients are averaged."""
    if count == 1:
        return Share()
    made = [torch.distributed.new_group(list(range(g * count, (g + 1) * count))) for g in range(groups)]

    def wrap(module: nn.Module) -> nn.Module:
        if device == "cpu" and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
            raise ValueError(
                "--workers-per-student: workers on CPUs cannot share batch norm; give --arch convnet-d3, or "
                "--workers-per-student 1"
            )
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(module, made[group]) if device != "cpu" else module
        return nn.parallel.DistributedDataParallel(synced, process_group=made[group])

    return Share(rank, count, wrap)


def tune_trials(
    store: Store,
    trials: Sequence[Trial],
    sets: Mapping[str, Loadable],
    test: Loadable,
    target: Target,
    teacher_top1: Mapping[tuple[str, ...], float | None],
    scheduler: Scheduler,
    gpus: float,
    at_once: int | None,
    name: str,
) -> tuple[list[dict[str, Any]], str]:
    """Run the trials that have no record, with Ray Tune => rows of those that ASHA stopped, and why some failed.

    A trial needs one CPU (and its GPU share) and nothing beside it, so a machine of 1 CPU cannot deadlock.
    """
    marks = stopped_folder(name)
    stopped = stopped_rows(store, marks, trials)
    ended = {row["key"] for row in stopped}
    missing = [t for t in untrained(store, trials) if scheduler == "grid" or t.key not in ended]
    if not missing:
        return stopped, ""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault(RAY_CHDIR_TO_TRIAL_DIR, "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # which prints a header, whatever the verbosity
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Tune's own would let a stopped sweep end as a whole one
    take = lend({t.set_key: sets[t.set_key] for t in missing}, test, here=False)
    work = Work(store, missing, take, test, target, dict(teacher_top1))
    trainable = tune.with_parameters(_train_one, work=work, looks=scheduler == "asha", device="cuda" if gpus else "cpu")
    # Rungs are at 1, 3 and 9: the last is reached only after the record, so that no finished student is lost.
    asha = ASHAScheduler("look", max_t=LOOKS + 1, grace_period=1, reduction_factor=3)
    scratch = f"{SCRATCH}/tune-{uuid.uuid4().hex[:8]}"
    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources(gpus)),
        param_space={"index": tune.grid_search(list(range(len(missing))))},
        tune_config=tune.TuneConfig(
            metric="top1",
            mode="max",
            scheduler=asha if scheduler == "asha" else None,
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            callbacks=[Stops(store, marks, missing)],
            storage_path=store.at(scratch).uri,
            failure_config=tune.FailureConfig(max_failures=2),
            verbose=0,
        ),
    )
    try:
        bar = counting_steps(store, trials, "sweep") if scheduler == "grid" else nullcontext()
        with bar, warn_while_unschedulable("sweep", gpus):
            results = tuner.fit()
    except (RayError, tune.TuneError) as error:
        raise failure("sweep", error) from error
    finally:
        store.delete(scratch)
    failed = ""
    if results.errors:
        failed = str(failure(f"sweep: {len(results.errors)} students failed, the first", results.errors[0]))
        if not any(store.exists(t.record) for t in trials):
            raise RunError(failed)
    return stopped_rows(store, marks, trials), failed


class Stops(tune.Callback):
    """Marks a trial that the scheduler stopped, with its last top-1 and epoch; --resume does not train it again."""

    def __init__(self, store: Store, folder: str, trials: Sequence[Trial]) -> None:
        self.store, self.folder, self.trials = store, folder, trials

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Called by Tune in the driver, for what ended and for what was stopped."""
        ended = self.trials[trial.config["index"]]
        if not self.store.exists(ended.record):
            last = trial.last_result
            self.store.write_json(f"{self.folder}/{ended.key}.json", {"top1": last["top1"], "epoch": last.get("epoch")})


def _train_one(config: dict[str, Any], work: Work, looks: bool, device: str) -> None:
    """One Tune trial: one student."""
    torch.set_num_threads(1)
    trial = work.trials[config["index"]]
    teacher, report = work.teacher(trial.teachers, device), tune.report if looks else None
    row = work.train(trial, work.test.load(), teacher, device, report=report)
    tune.report({"top1": row["top1_last"], "look": LOOKS + 1})


def _resources(gpus: float) -> dict[str, float]:
    """Of a student: one CPU, and its share of a GPU."""
    return {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}


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


def counting_steps(store: Store, trials: Iterable[Trial], title: str) -> AbstractContextManager[None]:
    """A progress bar of the steps of all students, with how many of these are trained, wherever they are."""
    wanted = {t.key: t for t in trials}
    total = sum(_epochs(t) * _steps(t) for t in wanted.values())

    def count() -> tuple[int, str]:
        return count_steps(store, wanted)

    return counting(count, total, title, "step", note_seconds(store))


def count_steps(store: Store, wanted: dict[str, Trial]) -> tuple[int, str]:
    """Steps that are done, and in words how many of the students are: by their records, and notes of the others."""
    recorded, noted = ({n.removesuffix(".json") for n in store.list(folder)} for folder in (RECORDS, SCRATCH))
    trained = {k for k in wanted.keys() & recorded if not wanted[k].keep or wanted[k].is_trained(store)}
    steps = sum(_epochs(wanted[key]) * _steps(wanted[key]) for key in trained)
    steps += sum(_noted(store, wanted[key]) * _steps(wanted[key]) for key in (wanted.keys() & noted) - trained)
    return steps, f"{len(trained)} of {len(wanted)} students done"


def trained_already(store: Store, trials: Sequence[Trial]) -> str:
    """ ", all trained already" or ", 3 of them trained already", to be said after their number."""
    wanted = {t.key for t in trials}
    there = len(wanted) - len(untrained(store, trials))
    if not there:
        return ""
    return f", {'all' if there == len(wanted) else f'{there} of them'} trained already"


def _noted(store: Store, trial: Trial) -> int:
    """Epochs that a student in training has done; none if it has ended since its note was listed."""
    try:
        return int(store.read_json(trial.note)["epochs"])
    except FileNotFoundError:
        return 0


def _epochs(trial: Trial) -> int:
    return epochs(trial.protocol, dict(trial.about)["images"])


def _steps(trial: Trial) -> int:
    """Of an epoch."""
    images = dict(trial.about)["images"]
    return steps_per_epoch(images, min(images, trial.protocol.batch_size))
