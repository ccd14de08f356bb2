"""What a job says while it works: a line at once, how far students are, and that a quiet block goes on."""

import os
import sys
import termios
import time

import pytest
from stripes import hard, stripes

from d3hr_ray.evaluation.schedule import count_steps, counting_steps, trained_already
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.evaluation.training import State
from d3hr_ray.evaluation.trials import Saver, make_trial
from d3hr_ray.runtime import console, progress
from d3hr_ray.runtime.console import waiting
from d3hr_ray.store import Store


@pytest.fixture
def trials():
    """Three students of 30 epochs, each of 2 steps."""
    found = DistilledSet("s", stripes(8), "hash", 0, {"method": "s", "ipc": 8})
    protocol = hard(batch_size=12, epochs=30)
    return [make_trial(found, "convnet-d3-w32", protocol, seed, (), None, ("stripes", "digest")) for seed in range(3)]


def test_steps_are_those_of_records_and_of_the_notes_of_students_in_training(tmp_path, trials, monkeypatch):
    store, wanted = Store(str(tmp_path)), {t.key: t for t in trials}
    assert count_steps(store, wanted) == (0, "0 of 3 students done")
    monkeypatch.setattr("d3hr_ray.evaluation.trials.NOTE_SECONDS", (0.0, 0.0))
    for leads, epoch in ((True, 5), (False, 9), (True, 7)):  # of workers that share a student the first notes
        Saver(store, trials[1], leads)(lambda at=epoch: State(at))
    store.write_json(trials[0].record, {})
    store.write_json(trials[0].note, {"epochs": 29})  # left by a worker that was killed right after its record
    assert count_steps(store, wanted) == (2 * 30 + 2 * 7, "1 of 3 students done")


@pytest.mark.parametrize(("there", "said"), [(0, ""), (2, ", 2 of them trained already"), (3, ", all trained already")])
def test_what_is_trained_already_is_said(tmp_path, trials, there, said):
    for trial in trials[:there]:
        Store(str(tmp_path)).write_json(trial.record, {})
    assert trained_already(Store(str(tmp_path)), [*trials, trials[0]]) == said


def test_a_jobs_log_has_the_steps_and_the_students(tmp_path, trials, monkeypatch, capsys):
    monkeypatch.setattr("d3hr_ray.evaluation.trials.NOTE_SECONDS", (0.05, 0.05))
    monkeypatch.setattr("d3hr_ray.runtime.progress.QUIET", 0.1)
    store = Store(str(tmp_path))
    with counting_steps(store, trials, "evaluate"):
        time.sleep(0.6)
        for trial in trials:
            store.write_json(trial.record, {})
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("evaluate: 180/180 steps, ") and last.endswith("left, 3 of 3 students done")


def test_a_block_that_is_quiet_says_that_it_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(console, "QUIET", 0.5)
    monkeypatch.setattr(sys, "argv", ["jobs/demo.py"])
    with waiting("loading"):
        time.sleep(2.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "demo: loading" and lines[1] in ("demo: loading, 1 s", "demo: loading, 2 s")


def test_bars_are_lines_where_a_terminal_does_not_say_how_wide_it_is(monkeypatch):
    """tqdm draws nothing in 0 columns, as a pseudo-terminal has at first."""
    _, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        before = progress._is_live()
        termios.tcsetwinsize(terminal, (24, 80))
        after = progress._is_live()
        monkeypatch.undo()
    assert (before, after) == (False, True)
