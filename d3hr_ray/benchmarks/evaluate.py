"""bench evaluate: the driver's memory while students are trained on one set, and on eight.

Sets and test images are loaded by workers; what a driver would add for each set is what the ratio shows.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image

from d3hr_ray.benchmarks.measure import Result, peak_mb
from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.images import nbytes
from d3hr_ray.evaluation.comparison import open_comparison
from d3hr_ray.evaluation.recipes import Overrides, Recipe
from d3hr_ray.evaluation.schedule import launch
from d3hr_ray.runtime.capacity import Workers
from d3hr_ray.store import Store

STUDENT, CLASSES = "convnet-d1-w1", 10


def run(quick: bool) -> Result:
    """Measure on 8 sets of 40 MB; `quick` is for tests: 2 small sets."""
    sets, side, ipc = (2, 32, 2) if quick else (8, 224, 27)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = tuple(_write_set(Path(folder) / f"set{k}", side, ipc, k) for k in range(sets))
        data = DataConfig(f"{_write_set(Path(folder) / 'test', side, ipc, sets)}/train")
        own = not ray.is_initialized()
        if own:
            ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            for count in (1, sets):
                size = _evaluate(paths[:count], data, Store(f"{folder}/out{count}"))
                rows.append({"sets": count, "MB of images": size, "driver's peak MB": peak_mb()})
        finally:
            if own:
                ray.shutdown()
    peaks = [row["driver's peak MB"] for row in rows]
    ratios = {"driver_growth": peaks[1] / peaks[0], "driver_growth_mb": peaks[1] - peaks[0]}
    notes = [
        f"{CLASSES * ipc} images of {side} pixels a set, and as many to test on; one epoch of {STUDENT}, one worker"
    ]
    return Result("evaluate", ratios, rows, notes)


def _evaluate(paths: tuple[str, ...], data: DataConfig, store: Store) -> float:
    """Train a student on each set, as jobs/evaluate.py does => MB of all images."""
    comparison = open_comparison(paths, data, None, [STUDENT], True, Recipe(overrides=Overrides(epochs=1)))
    trials = comparison.trials([STUDENT], ["hard"], 1, (), None)
    launch(store, trials, comparison.images(), comparison.test, comparison.target, Workers(1), {})
    return sum(map(nbytes, (comparison.test, *comparison.images().values()))) / 1e6


def _write_set(root: Path, side: int, ipc: int, seed: int) -> str:
    """A folder of plain colours, which are quick to write and as large in memory as any images."""
    draw = np.random.default_rng(seed)
    for label in range(CLASSES):
        folder = root / "train" / str(label)
        folder.mkdir(parents=True)
        for k in range(ipc):
            Image.new("RGB", (side, side), tuple(draw.integers(0, 256, 3).tolist())).save(folder / f"{k:03d}.png")
    return str(root)
