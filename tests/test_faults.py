"""A driver that is killed, and a driver that must stay small, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, encode
from test_distill import run, snapshot

pytestmark = pytest.mark.slow


def wait_for(condition, process: subprocess.Popen, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "too slow"
        time.sleep(0.05)


def test_a_run_killed_mid_invert_resumes_to_the_same_bytes(ray_session, monkeypatch, tmp_path):
    flags = "--preset digits --timesteps 200 --ipc 2 --batch-size 32"
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    command = [sys.executable, "jobs/distill.py", *flags.split(), "--out", str(killed)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list((killed / ".done" / "invert").glob("*")), process, 240)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list((killed / ".done" / "invert").glob("*")))
    assert 1 <= done < 6 and not (killed / "gaussians").exists()

    run(monkeypatch, f"{flags} --out {killed}")
    run(monkeypatch, f"{flags} --out {calm}")
    assert snapshot(killed) == snapshot(calm)
    ids = pq.read_table(killed / "latents")["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 1297


def write_many(root: Path, count: int) -> str:
    """A Parquet of `count` different small images in 10 classes."""
    draw = np.random.default_rng(count)
    pixels = draw.integers(0, 256, (count, 16, 16, 3), np.uint8)
    rows = {"image": [encode(p, "BMP") for p in pixels], "label": [str(i % 10) for i in range(count)]}
    root.mkdir()
    pq.write_table(pa.table(rows), root / "images.parquet", row_group_size=500)
    return str(root)


SMALL = """
import resource, sys
sys.path.insert(0, "jobs")
import distill
distill.main()
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(root: Path, count: int) -> int:
    """Peak resident memory of the driver, in KiB, over a whole run."""
    data = write_many(root / f"data{count}", count)
    flags = f"--preset digits --data {data} --timesteps 20 --inversion-guidance 1 --ipc 1 --out {root}/run{count}"
    done = subprocess.run(
        [sys.executable, "-c", SMALL, *flags.split()], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("PEAK ")[1])


def test_the_drivers_memory_does_not_grow_with_the_data(tmp_path):
    few, many = peak(tmp_path, 2_000), peak(tmp_path, 20_000)
    assert many < 1.1 * few, f"{few} KiB at 2,000 images, {many} KiB at 20,000"
