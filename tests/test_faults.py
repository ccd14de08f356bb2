"""A driver that is killed, and a driver that must stay small, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simulated
from conftest import CALM, ROOT, assert_same, encode, run, wait_for

pytestmark = pytest.mark.slow


def test_a_run_killed_mid_invert_resumes_to_the_same_bytes(calm, here, monkeypatch, tmp_path):
    """Begun by Ray's actors, ended in this process."""
    command = [sys.executable, "jobs/distill.py", *CALM.split(), "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list((tmp_path / ".done" / "invert").glob("*")), process, 240)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list((tmp_path / ".done" / "invert").glob("*")))
    assert 1 <= done < 6 and not (tmp_path / "gaussians").exists()

    run(monkeypatch, f"{CALM} --out {tmp_path}")
    assert_same(tmp_path, calm)


@pytest.mark.chaos
def test_lost_actors_and_nodes_change_no_byte(calm, tmp_path):
    """An actor dies in a batch, a node in another and comes back, and a node dies while sampling."""
    faults = tmp_path / "faults"
    faults.mkdir()
    for name in ("invert-die-0", "invert-node-1", "synthesize-node-0"):
        (faults / name).touch()
    with simulated.cluster() as made:
        driver = simulated.start(made, faults, *CALM.split(), "--actors", "2", "2", "--out", str(tmp_path / "run"))
        out = simulated.attend(made, driver, faults, replace=True)
    assert not list(faults.iterdir())
    assert_same(tmp_path / "run", calm)
    retried = sum(s["retries"] for s in json.loads((tmp_path / "run" / "run.json").read_text())["stages"])
    assert retried >= 3, out


def write_many(root: Path, count: int) -> str:
    """A Parquet of `count` different small images in 10 classes."""
    draw = np.random.default_rng(count)
    pixels = draw.integers(0, 256, (count, 16, 16, 3), np.uint8)
    rows = {"image": [encode(p, "BMP") for p in pixels], "label": [str(i % 10) for i in range(count)]}
    root.mkdir()
    pq.write_table(pa.table(rows), root / "images.parquet", row_group_size=500)
    return str(root)


TWICE = """
import sys
sys.path.insert(0, ".")
from jobs import distill
from d3hr_ray.benchmarks.measure import peak_mb
for command in sys.argv[1:]:
    sys.argv = ["distill.py", *command.split()]
    distill.main()
    print("PEAK", peak_mb())
"""


def test_the_drivers_memory_does_not_grow_with_the_data(tmp_path):
    """Peak resident memory of one process after a run of few images, and after one of many more."""
    commands = []
    for count in (500, 3_000):
        data = write_many(tmp_path / f"data{count}", count)
        flags = f"--preset digits --data {data} --timesteps 20 --inversion-guidance 1 --ipc 1 --actors 1 1"
        commands.append(f"{flags} --out {tmp_path}/run{count}")
    done = subprocess.run(
        [sys.executable, "-c", TWICE, *commands], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    few, many = (float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("PEAK"))
    assert many < 1.05 * few, f"{few:.0f} MB at 500 images, {many:.0f} MB at 3,000"
