"""A cluster of several nodes on this machine, a driver on it, and the faults that befall both."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import ROOT
from ray.cluster_utils import Cluster

from d3hr_ray.runtime.surroundings import start_patiently

NODE = {"num_cpus": 2, "object_store_memory": 150 << 20}


def add(made: Cluster, **node: Any) -> None:
    """Start a node."""
    start_patiently(lambda: made.add_node(**node), lambda: None)


@contextlib.contextmanager
def cluster(workers: int = 2, **node: Any) -> Iterator[Cluster]:
    """A head that takes no work, and workers of 2 CPUs, with further settings if given."""
    made = Cluster()
    try:
        add(made, num_cpus=0, object_store_memory=150 << 20, include_dashboard=False)
        for _ in range(workers):
            add(made, **NODE, **node)
        yield made
    finally:
        made.shutdown()


def start(made: Cluster, faults: Path, *flags: str, script: str = "tests/faulty.py") -> subprocess.Popen:
    """A driver in a process of its own."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("", "tests"))
    env = os.environ | {"RAY_ADDRESS": made.address, "D3HR_FAULTS": str(faults), "PYTHONPATH": paths}
    command = [sys.executable, script, *flags]
    return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def attend(made: Cluster, driver: subprocess.Popen, faults: Path, replace: bool, seconds: float = 900) -> str:
    """Kill the nodes that faults ask for, with a new one in their place 2 s later, until the driver ends.

    Returns what it printed.
    """
    end = time.monotonic() + seconds
    while driver.poll() is None and time.monotonic() < end:
        for file in faults.glob("*.kill"):
            node = next(n for n in made.list_all_nodes() if n.node_id == file.stem)
            file.unlink()
            made.remove_node(node, allow_graceful=False)
            if replace:
                time.sleep(2)
                add(made, **NODE)
        time.sleep(0.2)
    if driver.poll() is None:
        driver.kill()
    out, errors = driver.communicate()
    assert driver.returncode == 0, errors[-4000:]
    return out
