"""Ray Tune around trials: any number of students as fit the machine at once, a whole grid or ASHA's best of it.

A Tune trial is one student, in its own process, which it shares with the next. Finished ones are records on storage,
so a sweep that was killed trains only what is missing; Tune's own state is not needed for that.
"""

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import ASHAScheduler

from d3hr_ray.config import RunError
from d3hr_ray.datasets.images import Images, Loadable
from d3hr_ray.evaluation.launch import SCRATCH, counting
from d3hr_ray.evaluation.trials import LOOKS, Trial, describe, run_trial, untrained
from d3hr_ray.models.teachers import Target, load_teachers
from d3hr_ray.runtime.capacity import warn_while_unschedulable
from d3hr_ray.runtime.failures import failure
from d3hr_ray.runtime.objects import lend
from d3hr_ray.store import Store

Scheduler = Literal["grid", "asha"]


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
    """Run the trials that have no record => rows of those that ASHA stopped, and why some failed.

    A trial needs one CPU (and its GPU share) and nothing beside it, so a machine of 1 CPU cannot deadlock.
    """
    marks = f"sweeps/{name}/stopped"
    stopped = _stopped(store, marks, trials)
    ended = {row["key"] for row in stopped}
    missing = [t for t in untrained(store, trials) if scheduler == "grid" or t.key not in ended]
    if not missing:
        return stopped, ""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # which prints a header, whatever the verbosity
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Tune's own would let a stopped sweep end as a whole one
    take = lend({t.set_key: sets[t.set_key] for t in missing}, test, here=False)
    trainable = tune.with_parameters(
        _train,
        store=store,
        trials=missing,
        take=take,
        test=test,
        target=target,
        teacher_top1=dict(teacher_top1),
        looks=scheduler == "asha",
        device="cuda" if gpus else "cpu",
    )
    # Rungs are at 1, 3 and 9: the last is reached only after the record, so that no finished student is lost.
    asha = ASHAScheduler("look", max_t=LOOKS + 1, grace_period=1, reduction_factor=3)
    scratch = f"{SCRATCH}/tune-{uuid.uuid4().hex[:8]}"
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}),
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
        bar = counting(store, trials, "sweep") if scheduler == "grid" else nullcontext()
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
    return _stopped(store, marks, trials), failed


def _stopped(store: Store, marks: str, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Rows of the trials that were stopped once and that no other sweep has finished since.

    Each has the last known top-1, and the epoch of that (None in marks of before). As in `rows_of`, equal sets of two
    settings have a row each.
    """
    there = set(store.list(marks))
    keys = {t.key for t in untrained(store, [t for t in trials if f"{t.key}.json" in there])}
    found = {key: store.read_json(f"{marks}/{key}.json") for key in keys}
    return [
        describe(t) | {"top1_last": found[t.key]["top1"], "epoch": found[t.key].get("epoch")}
        for t in trials
        if t.key in keys
    ]


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


def _train(
    config: dict[str, Any],
    store: Store,
    trials: Sequence[Trial],
    take: Callable[[str], Images],
    test: Loadable,
    target: Target,
    teacher_top1: Mapping[tuple[str, ...], float | None],
    looks: bool,
    device: str,
) -> None:
    """One Tune trial: one student."""
    torch.set_num_threads(1)
    trial = trials[config["index"]]
    teacher = load_teachers(trial.teachers, target, device) if trial.teachers else None
    top1, report = teacher_top1.get(trial.teachers), tune.report if looks else None
    row = run_trial(store, trial, take(trial.set_key), test.load(), teacher, top1, device, report=report)
    tune.report({"top1": row["top1_last"], "look": LOOKS + 1})
