"""Failures of Ray's own end a run in one line: the stage, the innermost cause, and what to do."""

import os

import pytest
import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError
from ray.train.v2.api.exceptions import WorkerGroupError

from d3hr_ray.cli.exits import guard
from d3hr_ray.config import RunError
from d3hr_ray.runtime.failures import failure
from d3hr_ray.runtime.tasks import bounded, fetch
from d3hr_ray.stages.fit import fit_tree
from d3hr_ray.store import Store

MEMORY = "Task was killed due to the node running low on memory.\nMemory on it was 30 of 31 GB.\nRefer to the docs."


def test_a_task_whose_process_dies_again_and_again_names_its_stage_and_how_to_resume(ray_session, capsys):
    def main() -> None:
        list(bounded(lambda: os._exit(1), [(0, ())], "fit 3 mixtures"))  # a lambda, which brings no module of tests

    with pytest.raises(SystemExit) as stop:
        guard(main)
    assert stop.value.code == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "failed: fit 3 mixtures: a worker process died too often (WorkerCrashedError: The worker died" in said
    assert "the same command resumes" in said


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OutOfMemoryError(MEMORY), "fit t=600: a node ran out of memory; take nodes with more .*low on memory"),
        (NodeDiedError("Node 1 is gone."), r"fit t=600: a node was lost too often \(NodeDiedError: Node 1 is gone"),
        (
            RayTaskError("f", "Traceback\n  in f\nKeyError: 'z_600'\n\nRuntimeError: after it", KeyError("z_600")),
            "^fit t=600: a worker failed: KeyError: 'z_600'$",
        ),
        (WorkerGroupError("all", {1: OutOfMemoryError(MEMORY)}), "a node ran out of memory"),
        (WorkerGroupError("all", {1: ValueError("teacher near chance")}), "a worker failed: teacher near chance$"),
    ],
)
def test_a_failure_says_its_kind_or_its_innermost_cause(error, message):
    with pytest.raises(RunError, match=message):
        raise failure("fit t=600", error)


def test_every_wait_for_a_task_converts(ray_session, monkeypatch, tmp_path):
    def lost(_: object) -> None:
        raise OutOfMemoryError(MEMORY)

    task = ray.put(0)
    monkeypatch.setattr(ray, "get", lost)
    with pytest.raises(RunError, match="choose: a node ran out of memory"):
        fetch(task, "choose")
    with pytest.raises(RunError, match="listing: a node ran out of memory"):
        list(bounded(lambda: 0, [(0, ())]))
    with pytest.raises(RunError, match="fit t=20: a node ran out of memory"):
        fit_tree(Store(str(tmp_path)), [[]], 20)
