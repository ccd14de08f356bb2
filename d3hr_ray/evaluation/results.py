"""evaluations/results.parquet: a row per training run, and its means with intervals."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import stdtrit

from d3hr_ray.evaluation.naming import apart, name_of

CELL = (
    "set", "method", "search", "candidates", "timestep", "inversion_guidance", "guidance", "ipc", "arch", "protocol",
    "protocol_version", "lr", "teacher", "test", "fidelity", "settings",
)  # fmt: skip


LEAST_SETS = 3  # for an interval: Student's t makes 12.7 times the standard error of two values


@dataclass(frozen=True)
class Spread:
    """Of some values: mean, standard deviation with n - 1 (NaN for one), and the ends of what they tell of the mean.

    `ci95` is half of the 95 % interval by Student's t, whose ends are `low` and `high`; of fewer than 3 values it is
    NaN, and the ends are those of their range.
    """

    mean: float
    std: float
    ci95: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Values, at least one => how they spread."""
    n, mean = len(values), float(np.mean(values))
    std = float(np.std(values, ddof=1)) if n > 1 else float("nan")
    if n < LEAST_SETS:
        return Spread(mean, std, float("nan"), float(min(values)), float(max(values)))
    half = float(stdtrit(n - 1, 0.975)) * std / sqrt(n)
    return Spread(mean, std, half, mean - half, mean + half)


def summarise(rows: Iterable[dict[str, Any]], by: Sequence[str] = CELL) -> list[dict[str, Any]]:
    """One row per cell: n sets, and over them mean, std, ci95, low and high of top1_last, top1_best and top5_last.

    Students of one set are not independent of each other, so a set counts once, with their mean; only where a cell has
    a single set do its students count, and the interval tells of the training alone.
    """
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        cells[tuple(row.get(name) for name in by)].append(row)
    summary = []
    for cell, members in cells.items():
        sets: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for member in members:
            sets[member["set_hash"]].append(member)
        groups = list(sets.values()) if len(sets) > 1 else [[member] for member in members]
        line: dict[str, Any] = dict(zip(by, cell, strict=True)) | {"n": len(groups), "students": len(members)}
        for name in ("top1_last", "top1_best", "top5_last"):
            values = [float(np.mean([m[name] for m in group])) for group in groups]
            found = spread(values)
            line[name] = found.mean
            line |= {f"{name}_{what}": getattr(found, what) for what in ("std", "ci95", "low", "high")}
        summary.append(line)
    return summary


def cells_table(summary: Iterable[dict[str, Any]]) -> pa.Table:
    """Cells as a table for people and spreadsheets: what too few values leave unknown is empty."""
    return pa.Table.from_pylist([{k: None if v != v else v for k, v in cell.items()} for cell in summary])


def in_order(summary: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells by student, protocol and IPC, the best first."""
    return sorted(summary, key=lambda s: (s["arch"], s["protocol"], s["ipc"] or 0, -s["top1_last"]))


def accuracy_of(cell: dict[str, Any]) -> str:
    """A cell's last-epoch top-1 in percent: 65.0 ± 1.2, of two sets 65.0 (64.1, 65.9), of one 65.0."""
    mean, low, high, half = (100 * cell[f"top1_last{end}"] for end in ("", "_low", "_high", "_ci95"))
    if cell["n"] >= LEAST_SETS:
        return f"{mean:.1f} ± {half:.1f}"
    return f"{mean:.1f} ({low:.1f}, {high:.1f})" if cell["n"] > 1 else f"{mean:.1f}"


def format_summary(rows: Sequence[dict[str, Any]]) -> str:
    """The rows' cells as text, accuracies in percent: last epoch as of `accuracy_of`, and the best epoch beside it."""
    summary = in_order(summarise(apart(rows)))
    width = max([38, *(len(name_of(s)) for s in summary)])
    other = max([14, *(len(s["protocol"]) for s in summary)])
    head = f"{'set, guidance in / out':<{width}} {'ipc':>5} {'student':<18} {'protocol':<{other}} {'n':>3}"
    lines = [f"{head} {'top-1 last':>17} {'std':>5} {'best':>6}"]
    for s in summary:
        std = f"{100 * s['top1_last_std']:.1f}" if s["n"] >= LEAST_SETS else ""
        lines.append(
            f"{name_of(s):<{width}} {s['ipc'] or '':>5} {s['arch']:<18} {s['protocol']:<{other}} {s['n']:>3} "
            f"{accuracy_of(s):>17} {std:>5} {100 * s['top1_best']:>6.1f}"
        )
    return "\n".join(lines)
