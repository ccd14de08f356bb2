"""bench pipeline: what Ray costs, with a fake device of fixed time per batch: overhead, scaling, memory.

This proves the scheduling, not a GPU's, a network's or a disk's speed: nodes are simulated, with a fake GPU each.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from d3hr_ray.benchmarks.fake_device import SIDE, FakeDevice, NoiseImages, entries
from d3hr_ray.benchmarks.measure import WALL, Result, peak_mb
from d3hr_ray.runtime.actors import Actors, run_units
from d3hr_ray.stages.read import ReadShard, shard_unit
from d3hr_ray.store import Store

SHARD, BATCH_SECONDS = 512, 0.5  # 4 batches a shard: 2 s, where DiT-XL on one GPU takes about 7
STORE = 100 << 20  # bytes of a node's object store


def run(quick: bool) -> Result:
    """Measure; `quick` is for tests: two actors, small shards."""
    counts, per_actor, seconds, shard = ((1, 2), 3, 0.05, 32) if quick else ((1, 2, 4, 8), 8, BATCH_SECONDS, SHARD)
    bare = _bare_rate(per_actor, shard, seconds)
    rows: list[dict[str, Any]] = [{"actors": "no Ray", "images/s": bare * shard}]
    rates = {}
    top = max(counts)
    many = 20 if quick else 391  # 391 shards are 1,000 classes x 200 images
    shared = _shared_mb()
    with _nodes(top):
        for count in counts:
            rates[count], _ = _ray_rate(count, per_actor * count, shard, seconds)
            ideal = count / (seconds * -(-shard // 128))
            rows.append({"actors": count, "images/s": rates[count] * shard, "device idle": 1 - rates[count] / ideal})
        _, growth = _ray_rate(top, many, shard, 0.0)
        stores = _shared_mb() - shared
    rows.append({"actors": top, "images": many * shard, "driver grows by MB": growth, "object stores MB": stores})
    ratios = {"overhead": bare / rates[1] - 1, f"efficiency_{top}": rates[top] / (top * rates[1])}
    ratios |= {"driver_growth_mb": growth, "object_stores_mb": stores}
    notes = [
        f"{per_actor} shards of {shard} images an actor, {seconds:g} s per batch of 128; rates of their second half",
        f"images of 16 pixels, latents of 4096 numbers; a head and {top} simulated nodes with a fake GPU each",
        f"object stores: memory that all together ever touched, of {(top + 1) * (STORE >> 20)} MB; it never shrinks",
    ]
    return Result("pipeline", ratios, rows, notes)


@contextmanager
def _nodes(count: int) -> Iterator[None]:
    """A simulated cluster: a head with CPUs to read, and nodes with one CPU and one fake GPU each."""
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=4, include_dashboard=False, object_store_memory=STORE)
        for _ in range(count):
            cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def _shared_mb() -> float:
    """Shared memory in use, where object stores live (Linux): a page that one has touched stays with it."""
    status = os.statvfs("/dev/shm")
    return (status.f_blocks - status.f_bfree) * status.f_frsize / 2**20


def _units(shards: int, size: int) -> list[dict[str, Any]]:
    table = entries(shards * size, 1000)
    return [shard_unit(i, table.slice(i * size, size)) for i in range(shards)]


def _bare_rate(shards: int, size: int, seconds: float) -> float:
    """Shards per second of a plain loop in this process: read, decode, sleep, write."""
    with tempfile.TemporaryDirectory() as folder:
        read, device = ReadShard(NoiseImages(), SIDE), FakeDevice(Store(folder), seconds)  # type: ignore[arg-type]
        units = _units(shards, size)
        start = WALL()
        for unit in units:
            device(read(pa.Table.from_pylist([unit])))
        return shards / (WALL() - start)


def _ray_rate(actors: int, shards: int, size: int, seconds: float) -> tuple[float, float]:
    """Shards per second in the second half of a run, and by how many MB the driver grew."""
    with tempfile.TemporaryDirectory() as folder:
        held = Actors((actors, actors), 1.0)
        steps: list[tuple[Any, dict[str, Any]]] = [
            (ReadShard(NoiseImages(), SIDE), {"num_cpus": 1}),  # type: ignore[arg-type]
            (FakeDevice, {"fn_constructor_args": (Store(folder), seconds), **held.options(shards)}),
        ]
        units = _units(shards, size)
        before = peak_mb()
        for _ in run_units(units, steps, "pipeline", "image", shards * size, 0):
            pass
        growth = peak_mb() - before
        # When shards were written, not when the driver heard of it: news of the first comes late.
        times = sorted(file.stat().st_mtime for file in os.scandir(f"{folder}/latents"))
        assert len(times) == shards, "every shard is written"
    half = shards // 2  # the first shards come while workers are still importing
    return (shards - half) / (times[-1] - times[half - 1]), growth
