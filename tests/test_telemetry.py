"""What wraps every unit of work: cost columns, time limit, halved batches, and the summary made of them."""

import subprocess
import sys
import time
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import ROOT

from d3hr_ray.runtime import progress, telemetry
from d3hr_ray.runtime.actors import TASK_LIMIT, Actors, time_limit
from d3hr_ray.runtime.batching import run_batches, with_room
from d3hr_ray.runtime.progress import make_bar
from d3hr_ray.runtime.summary import costing, format_summary, recording, summary
from d3hr_ray.runtime.telemetry import COST, Measured, MeasuredActor
from d3hr_ray.store import Store

UNIT = pa.table({"unit": [1]})


def test_a_units_cost_comes_with_its_result(tmp_path):
    def work(batch: pa.Table) -> pa.Table:
        assert batch.column_names == ["unit"]
        Store(str(tmp_path)).write_bytes("x", b"12345")
        time.sleep(0.05)
        return pa.table({"count": [3], "rejected": [1], "error": pa.array([None], pa.string())})

    row = Measured(work, "invert", 60)(UNIT).to_pylist()[0]
    assert row["bytes"] == 5 and row["seconds"] > 0.04 and row["retries"] == 0 and row["count"] == 3


def test_retries_of_an_earlier_step_are_carried_on():
    read = Measured(lambda batch: pa.table({"rejected": [b"a table"]}), "read", 60)
    table = read(UNIT)
    table = table.set_column(table.schema.get_field_index("retries"), "retries", pa.array([2]))

    class Actor:
        def __call__(self, batch: pa.Table) -> pa.Table:
            assert not set(COST) & set(batch.column_names)
            return pa.table({"count": [1]})

    assert MeasuredActor(Actor, (), "invert", 60)(table)["retries"].to_pylist() == [2]


def test_the_pools_time_limit_is_every_steps():
    assert time_limit([{"num_cpus": 1}, Actors((1, 1), 0, limit=60.0).options(3)]) == 60
    assert time_limit([{"num_cpus": 1}]) == TASK_LIMIT


HANGS = """
import sys, time
from d3hr_ray.runtime import progress, telemetry
from d3hr_ray.runtime.batching import run_batches, with_room
from d3hr_ray.runtime.progress import make_bar
def work(rows):
    time.sleep(0.4 if rows.start < 3 else 60)
with telemetry.limited("invert", 1.0):
    run_batches(work, 3, 1)      # 1.2 s of batches that each keep the limit
    print("kept", flush=True)
    run_batches(work, 4, 1)
"""


@pytest.mark.slow
def test_a_batch_that_hangs_ends_its_process_and_says_where():
    done = subprocess.run([sys.executable, "-c", HANGS], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stdout == "kept\n"
    assert "Timeout" in done.stderr and "in work" in done.stderr


def test_the_limit_ends_with_its_block():
    with telemetry.limited("invert", 0.2):
        pass
    time.sleep(0.4)


HOST = RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried 4 bytes")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError(), HOST])
@pytest.mark.parametrize("most", [1, 3, 5])
def test_a_batch_too_big_for_memory_is_halved_and_keeps_its_order(error, most):
    tried = []

    def work(rows: slice) -> np.ndarray:
        tried.append(rows.stop - rows.start)
        if rows.stop - rows.start > most:
            raise error
        return np.arange(rows.start, rows.stop)

    assert np.concatenate(run_batches(work, 21, 8)).tolist() == list(range(21))
    assert max(tried) == 8


def test_an_image_too_big_for_memory_is_left_out_or_named():
    def work(rows: slice) -> np.ndarray:
        if rows.start <= 6 < rows.stop:
            raise MemoryError("of 6")
        return np.arange(rows.start, rows.stop)

    misfits: list[int] = []
    assert np.concatenate(run_batches(work, 9, 4, misfits)).tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert misfits == [6]
    with pytest.raises(ValueError, match="one image does not fit into memory: of 6"):
        run_batches(work, 9, 4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError(), HOST])
def test_work_that_slices_its_rows_itself_begins_anew_with_half_of_them(error):
    def work(at_once: int, most: int) -> int:
        if at_once > most:
            raise error
        return at_once

    assert [with_room(partial(work, most=most), 24) for most in (99, 23, 2)] == [24, 12, 1]
    with pytest.raises(ValueError, match="one image does not fit into memory: "):
        with_room(partial(work, most=0), 24)


def test_other_errors_are_not_taken_for_memory():
    def work(rows: slice) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        with_room(lambda at_once: work(slice(0, at_once)), 8)
    with pytest.raises(RuntimeError, match="shapes"):
        run_batches(work, 4, 2)


def test_the_summary_adds_up_and_says_it_in_words():
    before = summary()
    with recording():
        with costing("invert", 2) as cost:
            for k in range(4):
                row = {"count": 10, "rejected": k == 0, "seconds": 0.01, "bytes": 100, "retries": k == 1}
                cost.add(row | {"worker": f"w{k % 2}"})
        (stage,) = summary()
        assert (stage["images"], stage["rejected"], stage["bytes_written"], stage["retries"]) == (40, 1, 400, 1)
        assert 0 < stage["busy_share"] <= 1 and stage["workers"] == 2
        assert "invert: 40 images" in format_summary([stage]) and "400 bytes written" in format_summary([stage])
    assert summary() == before


def test_what_arrives_at_once_is_not_taken_for_the_last_seconds_work(capsys):
    """An epoch's 200 steps come after four looks of 6 seconds at nothing new: 8 a second, not 33."""
    with make_bar(1000, "teacher", "step") as bar:
        bar._time = iter(bar.start_t + 6.0 * np.arange(1, 100)).__next__
        for done in (0, 0, 0):
            bar.refresh()
            bar.update(done)
        bar.update(200)
        assert bar.format_meter(**bar.format_dict | {"elapsed": 24.0}).count("8.33 step/s") == 1


def test_a_bar_of_work_that_begins_again_never_counts_backwards(monkeypatch):
    """A killed student's note may be ahead of the checkpoint that it goes on from."""
    bars = []
    monkeypatch.setattr(progress, "make_bar", lambda *args: bars.append(make_bar(*args)) or bars[-1])
    states = iter([(800, "begun"), (100, "again")])
    with progress.counting(lambda: next(states, (300, "end")), 1000, "students", "step", every=0.3):
        time.sleep(1.2)
    assert (bars[0].initial, bars[0].n) == (100, 300)  # 200 steps since it began, where it would say -500
