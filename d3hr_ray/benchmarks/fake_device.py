"""A device of fixed speed and endless images, so that a pipeline's own cost shows."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from d3hr_ray.runtime.actors import unit_result
from d3hr_ray.stages.read import open_message
from d3hr_ray.store import Store

SIDE, DIMS, BATCH = 16, 4096, 128


@dataclass(frozen=True)
class NoiseImages:
    """A source of small images; every one is decoded for real."""

    def read(self, entries: pa.Table) -> Iterator[bytes]:
        """Uncompressed PPM files."""
        header = f"P6 {SIDE} {SIDE} 255\n".encode()
        for start in entries["start"].to_pylist():
            yield header + np.random.default_rng(start).integers(0, 256, SIDE * SIDE * 3, np.uint8).tobytes()


def entries(images: int, classes: int) -> pa.Table:
    """A listing's entries."""
    labels = np.arange(images, dtype=np.int32) * classes // images
    return pa.table(
        {
            "image_id": [f"{i:09d}" for i in range(images)],
            "label": labels,
            "file": pa.array(["noise"] * images).dictionary_encode(),
            "start": np.arange(images),
            "length": np.zeros(images, np.int64),
            "probe": np.zeros(images, bool),
        }
    )


class FakeDevice:
    """Actor: sleeps `seconds` per batch of 128, and writes latents of DiT-XL's size as InvertShard does."""

    def __init__(self, store: Store, seconds: float) -> None:
        self.store, self.seconds = store, seconds
        self.latents = np.random.default_rng(0).standard_normal(512 * DIMS).astype(np.float16)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row of ReadShard => `unit_result`, after the files are written."""
        shard: Any = batch["shard"][0].as_py()
        _, accepted, _ = open_message(batch)
        for _ in range(0, len(accepted), BATCH):
            time.sleep(self.seconds)
        column = pa.FixedSizeListArray.from_arrays(pa.array(self.latents[: len(accepted) * DIMS]), DIMS)
        table = accepted.select(["image_id", "label"]).append_column("z_600", column)
        self.store.write_table(f"latents/part-{shard:06d}.parquet", table)
        self.store.mark("invert", shard, accepted=len(accepted), rejected=0)
        return unit_result(len(accepted), None)
