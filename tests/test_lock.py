"""One driver per run folder: a living one is respected, a killed one replaced, a driver that lost its folder stops."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from d3hr_ray import lock
from d3hr_ray.config import RunError
from d3hr_ray.lock import NAME, Stopped, driving
from d3hr_ray.store import Store


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "SILENCE", 1.0)


def write_holder(folder: Path, **changes) -> None:
    holder = {"owner": "x", "host": lock._host(), "pid": os.getpid(), "since": "then", "beat": 0} | changes
    (folder / NAME).write_text(json.dumps(holder))


HOLD = """
import sys, time
from d3hr_ray import lock
from d3hr_ray.store import Store

lock.BEAT = 0.1
with lock.driving(Store(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A driver in a process of its own that holds the folder; not a fork, which a Ray in this one could lock up."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_driver_is_refused_by_name(tmp_path, other):
    with (
        pytest.raises(RunError, match=rf"in use by process {other.pid} on .* since 20"),
        driving(Store(str(tmp_path))),
    ):
        pytest.fail("two drivers in one folder")
    assert other.poll() is None


def test_a_killed_drivers_lock_is_taken_over_at_once(tmp_path, other, monkeypatch):
    os.kill(other.pid, signal.SIGKILL)
    other.wait(30)
    assert (tmp_path / NAME).exists()
    monkeypatch.setattr(lock, "SILENCE", 60)
    start = time.monotonic()
    with driving(Store(str(tmp_path))):
        assert time.monotonic() - start < 2
    assert not (tmp_path / NAME).exists()


def test_a_driver_told_to_stop_lets_go(tmp_path, other):
    os.kill(other.pid, signal.SIGTERM)
    other.wait(30)
    assert not (tmp_path / NAME).exists()


def test_a_silent_driver_elsewhere_is_taken_over(tmp_path):
    write_holder(tmp_path, host="another machine")
    with driving(Store(str(tmp_path))):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_a_recycled_process_number_does_not_block_for_ever(tmp_path):
    write_holder(tmp_path)  # this process lives, but it is not the holder
    with driving(Store(str(tmp_path))):
        assert json.loads((tmp_path / NAME).read_text())["owner"] != "x"


def test_a_driver_whose_folder_was_taken_stops(tmp_path):
    with pytest.raises(RunError, match="no longer this driver's: it was taken by process 1 on another"):  # noqa: SIM117
        with driving(Store(str(tmp_path))):
            write_holder(tmp_path, owner="y", host="another", pid=1)
            time.sleep(10)
    assert json.loads((tmp_path / NAME).read_text())["owner"] == "y"


def test_a_driver_that_slept_and_was_replaced_leaves_the_others_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 60)  # it ends before it sees the other's name
    with driving(Store(str(tmp_path))):
        write_holder(tmp_path, owner="y")
    assert json.loads((tmp_path / NAME).read_text())["owner"] == "y"


def test_a_process_of_another_machine_with_the_same_name_is_not_taken_for_gone(tmp_path, monkeypatch):
    """Copies of a virtual machine have one name, and all machines the same first namespace of processes."""
    boot = tmp_path / "boot_id"
    boot.write_text("another\n")
    ours = lock._host()
    monkeypatch.setattr(lock, "BOOT", boot)
    assert lock._host() != ours and lock._host().partition(":")[0] == ours.partition(":")[0]
    folder = tmp_path / "run"
    folder.mkdir()
    write_holder(folder, host=lock._host(), pid=2**22 + 1)
    monkeypatch.undo()
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "SILENCE", 0.5)
    start = time.monotonic()
    assert not lock.is_alive(Store(str(folder)), json.loads((folder / NAME).read_text()))
    assert time.monotonic() - start > 0.4


def test_sigterm_is_a_stop_and_its_handler_is_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), driving(Store(str(tmp_path))):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b'{"owner": 1}'])
def test_a_broken_lock_blocks_nobody(tmp_path, junk):
    (tmp_path / NAME).write_bytes(junk)
    with driving(Store(str(tmp_path))):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
