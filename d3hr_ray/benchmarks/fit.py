"""bench fit: the reduce over a synthetic latents/ against just reading its columns; equality with numpy in float64."""

import os
import tempfile
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from d3hr_ray.benchmarks.measure import Result, in_turns
from d3hr_ray.stages.fit import FILES_PER_TASK, PerClass, merge_tree, partial_moments
from d3hr_ray.store import Store

SHARD, T = 512, 600
CHECKED = 32  # dims that are compared with numpy over all images


def run(quick: bool) -> Result:
    """Measure on 200,000 x 4096 fp16 latents of 1,000 classes; `quick` is for tests."""
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    images, dims, classes = (2048, 64, 10) if quick else (200_000, 4096, 1000)
    labels = np.random.default_rng(0).integers(0, classes, images).astype(np.int32)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for name, order in (("read_ratio", np.sort(labels)), ("read_ratio_shuffled", labels)):
        seconds, error = _measure(order, dims)
        rows += [{"what": f"{k}, {name}", "seconds": s, "images/s": images / s} for k, s in seconds.items()]
        ratios |= {name: seconds["fit"] / seconds["read"]}
        ratios["largest_relative_error"] = max(error, ratios.get("largest_relative_error", 0.0))
    note = f"{images:,} x {dims} fp16, {classes} classes, in class order (as imagefolder lists them) and shuffled"
    return Result("fit", ratios, rows, [note, "CPU seconds of one core, files in the page cache; fit includes merging"])


def _measure(labels: np.ndarray, dims: int) -> tuple[dict[str, float], float]:
    """Seconds of reading alone and of the fit, and the fit's largest error."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("D3HR_BENCH_DIR")) as folder:
        store = Store(folder)
        checked = _write(store, labels, dims)
        files = store.list("latents")
        groups = [files[at : at + FILES_PER_TASK] for at in range(0, len(files), FILES_PER_TASK)]
        parts: dict[int, PerClass] = {}
        total = {"read": 0.0, "fit": 0.0}
        for i, group in enumerate(groups):  # in turns group by group, so that a change of load meets both sides
            seconds = in_turns({"read": partial(_read, store, group), "fit": partial(_fit, store, group, parts, i)}, 1)
            total = {name: total[name] + seconds[name][0] for name in total}
        merged: list[PerClass] = []
        total["fit"] += in_turns({"merge": lambda: merged.append(merge_tree(list(parts.values())))}, 1)["merge"][0]
        return total, _error(merged[-1], labels, checked)


def _write(store: Store, all_labels: np.ndarray, dims: int) -> np.ndarray:
    """Make latents/; return the first CHECKED dims. Files are shifted and scaled copies of one random block."""
    base, kept = np.random.default_rng(1).standard_normal((SHARD, dims), np.float32), []
    for i, at in enumerate(range(0, len(all_labels), SHARD)):
        labels = all_labels[at : at + SHARD]
        z = (np.roll(base, (i * 37, i * 11), (0, 1))[: len(labels)] * (1 + i % 7 / 10) + i % 5 / 10).astype(np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(z.reshape(-1)), dims)
        ids = [f"{at + k:08d}" for k in range(len(labels))]
        table = pa.table({"image_id": ids, "label": labels, f"z_{T}": column})
        store.write_table(f"latents/part-{i:06d}.parquet", table)
        kept.append(z[:, :CHECKED])
    return np.concatenate(kept)


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
