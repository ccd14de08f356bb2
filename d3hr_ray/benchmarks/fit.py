"""bench fit: the reduce over a synthetic latents/ against just reading its columns; equality with numpy in float64."""

import os
import tempfile
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from d3hr_ray.benchmarks.measure import Result, in_turns, median_ratio
from d3hr_ray.stages.fit import FILES_PER_TASK, PerClass, merge_tree, partial_moments
from d3hr_ray.store import Store

SHARD, T = 512, 600
CHECKED = 32  # dims that are compared with numpy over all images


def run(quick: bool) -> Result:
    """Measure on 200,000 x 4096 fp16 latents of 1,000 shuffled classes; `quick` is for tests."""
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    images, dims, classes = (2048, 64, 10) if quick else (200_000, 4096, 1000)
    with tempfile.TemporaryDirectory(dir=os.environ.get("D3HR_BENCH_DIR")) as folder:
        store = Store(folder)
        labels, checked = _write(store, images, dims, classes)
        files = store.list("latents")
        groups = [files[at : at + FILES_PER_TASK] for at in range(0, len(files), FILES_PER_TASK)]
        parts: dict[int, PerClass] = {}
        read, fit = [], []
        for i, group in enumerate(groups):  # in turns group by group, so that a change of load meets both sides
            seconds = in_turns({"read": partial(_read, store, group), "fit": partial(_fit, store, group, parts, i)}, 1)
            read += seconds["read"]
            fit += seconds["fit"]
        merged: list[PerClass] = []
        merging = in_turns({"merge": lambda: merged.append(merge_tree(list(parts.values())))}, 1)["merge"][0]
        error = _error(merged[-1], labels, checked)
    note = f"{images:,} x {dims} fp16, {classes} shuffled classes; CPU seconds of one core"
    ratio = (sum(fit) + merging) / sum(read)
    rows: list[dict[str, Any]] = [
        {"what": "read", "seconds": sum(read), "images/s": images / sum(read)},
        {"what": "fit", "seconds": sum(fit) + merging, "images/s": images / (sum(fit) + merging)},
        {"what": "merge only", "seconds": merging},
    ]
    ratios = {"read_ratio": ratio, "read_ratio_median": median_ratio(fit, read), "largest_relative_error": error}
    return Result("fit", ratios, rows, [note])


def _write(store: Store, images: int, dims: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Make latents/; return all labels and the first CHECKED dims. Files are shifted copies of one random block."""
    draw = np.random.default_rng(0)
    base = draw.standard_normal((SHARD, dims), np.float32)
    all_labels = draw.integers(0, classes, images).astype(np.int32)
    kept = []
    for i, at in enumerate(range(0, images, SHARD)):
        labels = all_labels[at : at + SHARD]
        z = (np.roll(base, (i * 37, i * 11), (0, 1))[: len(labels)] * (1 + i % 7 / 10) + i % 5 / 10).astype(np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(z.reshape(-1)), dims)
        ids = [f"{at + k:08d}" for k in range(len(labels))]
        store.write_table(
            f"latents/part-{i:06d}.parquet", pa.table({"image_id": ids, "label": labels, f"z_{T}": column})
        )
        kept.append(z[:, :CHECKED])
    return all_labels, np.concatenate(kept)


def _read(store: Store, files: list[str]) -> int:
    return sum(len(store.read_table(f"latents/{file}", columns=["label", f"z_{T}"])) for file in files)


def _fit(store: Store, files: list[str], parts: dict[int, PerClass], i: int) -> None:
    parts[i] = partial_moments(store, files, T)


def _error(moments: PerClass, labels: np.ndarray, checked: np.ndarray) -> float:
    """Largest relative difference of a std, or of a mean in units of the std, from numpy's in float64."""
    worst = 0.0
    for label, ours in moments.items():
        own = checked[labels == label].astype(np.float64)
        std = own.std(0, ddof=1)
        mean_error = np.abs(ours.mean_D[:CHECKED].numpy() - own.mean(0)) / std
        variance_error = np.abs(ours.variance()[:CHECKED].numpy() / std**2 - 1)
        worst = max(worst, float(mean_error.max()), float(variance_error.max()))
    return worst
