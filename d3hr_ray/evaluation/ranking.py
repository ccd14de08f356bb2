"""Rows of results compared: means with intervals, DD-Ranking's scores, rank correlations, the best setting.

DD-Ranking (arXiv 2505.13300): what a set gains over random images and loses to real ones, in [0, 1]. Accuracies enter
as fractions. The published package enters percentages into the exponentials, which then saturate (at b8b09664); its
numbers do not compare with these.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import e, exp, sqrt
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import stdtrit

from d3hr_ray.config import RunConfig
from d3hr_ray.evaluation.trials import SCHEMA
from d3hr_ray.layout import RESULTS
from d3hr_ray.runs import base_of
from d3hr_ray.sets import spec_of, with_axes
from d3hr_ray.store import Store

CELL = (
    "set", "method", "search", "candidates", "timestep", "inversion_guidance", "guidance", "ipc", "arch", "protocol",
    "protocol_version", "lr", "teacher", "test", "fidelity", "settings",
)  # fmt: skip
LEAST_SETS = 3  # for an interval: Student's t makes 12.7 times the standard error of two values
WEIGHT = 0.5  # of the label term against the hard-label term, and of augmented against plain; the package's default
KIND = ("set", "fidelity", "inversion_guidance", "guidance", "settings")  # what no two means share
RANKED = (*KIND, "ipc", "arch", "protocol")  # of one evaluation: its flags settle the rest
SETTING = (
    "method", "search", "candidates", "components", "rank", "timestep", "inversion_guidance", "guidance", "fidelity",
    "settings",
)  # fmt: skip
AXES = (*SETTING, "ipc", "arch", "protocol", "protocol_version", "lr", "teacher")


@dataclass(frozen=True)
class Spread:
    """Of some values: mean, standard deviation with n - 1 (NaN for one), and the ends of an interval of the mean.

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


def accuracy_of(cell: Mapping[str, Any]) -> str:
    """A cell's last-epoch top-1 in percent: 65.0 ± 1.2, of two sets 65.0 (64.1, 65.9), of one 65.0."""
    mean, low, high, half = (100 * cell[f"top1_last{end}"] for end in ("", "_low", "_high", "_ci95"))
    if cell["n"] >= LEAST_SETS:
        return f"{mean:.1f} ± {half:.1f}"
    return f"{mean:.1f} ({low:.1f}, {high:.1f})" if cell["n"] > 1 else f"{mean:.1f}"


def summarise(rows: Iterable[dict[str, Any]], by: Sequence[str] = CELL) -> list[dict[str, Any]]:
    """One row per cell: n sets, and over them mean, std, ci95, low and high of top1_last, top1_best and top5_last.

    Students of one set are not independent of each other, so a set counts once, with their mean; only where a cell has
    a single set do its students count, and the interval is of the training alone.
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


def robust(score: float) -> float:
    """alpha in [-1, 1] => (e^alpha - e^-1) / (e - e^-1) in [0, 1]. Raises ValueError for a percentage."""
    if not -1 <= score <= 1:
        raise ValueError(f"{score:g} is not a difference of two fractions: divide accuracies by 100")
    return (exp(score) - 1 / e) / (e - 1 / e)


def label_robust_score(accuracy: Mapping[str, float]) -> dict[str, float]:
    """Accuracies full-hard, set-hard, set-soft, random-soft => HLR, IOR and LRS.

    HLR is what hard labels lose to the full set, IOR what the set gains over random images under the same soft labels.
    """
    hlr = accuracy["full-hard"] - accuracy["set-hard"]
    ior = accuracy["set-soft"] - accuracy["random-soft"]
    return {"HLR": hlr, "IOR": ior, "LRS": robust(WEIGHT * ior - (1 - WEIGHT) * hlr)}


def augmentation_robust_score(accuracy: Mapping[str, float]) -> dict[str, float]:
    """Accuracies set-soft, random-soft, set-noaug, random-noaug => the two gains over random images, and ARS."""
    with_aug = accuracy["set-soft"] - accuracy["random-soft"]
    without = accuracy["set-noaug"] - accuracy["random-noaug"]
    return {"IOR-aug": with_aug, "IOR-noaug": without, "ARS": robust(WEIGHT * with_aug + (1 - WEIGHT) * without)}


def ranking(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """LRS and ARS of every set and student that has all runs they need; means over seeds, last epoch.

    Sets of different settings must have different names in `rows`.
    """
    made = [r for r in rows if r["method"] not in ("real-full", "real-random")]
    top1 = _means(made, RANKED)
    drawn = _means([r for r in rows if r["method"] == "real-random"], RANKED[-3:])
    full = _means([r for r in rows if r["method"] == "real-full"], RANKED[-2:])
    scores = []
    ranked = {key[:-1] for key in top1}
    for *kind, ipc, arch in sorted(ranked, key=lambda key: (str(key[:-2]), key[-2] or 0, key[-1])):
        found = {"full-hard": full.get((arch, "hard"))}
        for what, protocol in (("hard", "hard"), ("soft", "fixed-soft"), ("noaug", "fixed-soft-noaug")):
            found[f"set-{what}"] = top1.get((*kind, ipc, arch, protocol))
            found[f"random-{what}"] = drawn.get((ipc, arch, protocol))
        known = {key: value for key, value in found.items() if value is not None}
        if len(known) == len(found):
            both = label_robust_score(known) | augmentation_robust_score(known)
            scores.append(dict(zip(KIND, kind, strict=True)) | {"ipc": ipc, "arch": arch} | both)
    return scores


def _means(rows: Sequence[dict[str, Any]], by: Sequence[str]) -> dict[tuple[Any, ...], float]:
    return {tuple(c[name] for name in by): c["top1_last"] for c in summarise(rows, by)}


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho over a number of sets, and its two-sided p-value."""

    sets: int
    rho: float
    p: float


def rank_correlations(
    rows: Sequence[dict[str, Any]], accuracy: dict[str, float], scores: Sequence[str]
) -> dict[str, Correlation]:
    """Spearman's correlation of each score with accuracy, over the sets that have both; equal sets count once.

    Scores that fewer than 3 sets have, or that do not vary, have none.
    """
    from scipy import stats  # takes seconds to import

    found = {}
    rows = list({row["set_hash"]: row for row in rows}.values())
    for key in scores:
        pairs = [(row[key], accuracy[row["set_hash"]]) for row in rows if row["set_hash"] in accuracy]
        pairs = [(score, top1) for score, top1 in pairs if np.isfinite(score)]
        if len(pairs) >= 3 and len({score for score, _ in pairs}) > 1 and len({top1 for _, top1 in pairs}) > 1:
            result = stats.spearmanr(*zip(*pairs, strict=True))
            found[key] = Correlation(len(pairs), float(result.statistic), float(result.pvalue))
    return found


@dataclass(frozen=True)
class Accuracy:
    """Mean top-1 of sets, by their hashes, as fractions: all of one student on one `data`, under one protocol version
    and teacher."""

    top1: dict[str, float]
    data: str = ""
    arch: str = ""
    protocol_version: str = ""
    teacher: str = ""  # none with hard labels

    @property
    def words(self) -> str:
        """What it was measured on and how."""
        by = f", teacher {self.teacher}" if self.teacher else ""
        return f"top-1: {self.arch} on {self.data}, protocol version {self.protocol_version}{by}"


def correlate(rows: Sequence[dict[str, Any]], accuracy: Accuracy, scores: Sequence[str]) -> list[dict[str, Any]]:
    """Rank correlations with accuracy over the sets of each IPC: a row per IPC and score that has one."""
    return [
        {"ipc": ipc, "score": score, **vars(correlation)}
        for ipc in sorted({row["ipc"] for row in rows})
        for score, correlation in rank_correlations([r for r in rows if r["ipc"] == ipc], accuracy.top1, scores).items()
    ]


def read_accuracy(
    runs: Sequence[Store], hashes: Collection[str], arch: str | None, protocol: str | None, data: str | None
) -> Accuracy:
    """Results of these sets under a protocol (None: `hard`), of a student and on `data`: by default of any.

    Accuracies of other students, on other images (such as the training split that a sweep chose on), under other
    versions of the protocol or of other teachers do not compare: those that most of the sets have are taken.
    Raises ValueError if no set has a result that is asked for, with those that there are.
    """
    wanted, other = protocol or "hard", set[str]()
    found: dict[tuple[str, str, str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in dict.fromkeys(map(base_of, runs)):
        if not run.exists(RESULTS):
            continue
        for row in run.read_table(RESULTS).to_pylist():
            if row["set_hash"] not in hashes:
                continue
            other.add(f"--protocol {row['protocol']} --arch {row['arch']}")
            if row["protocol"] == wanted and arch in (None, row["arch"]):
                how = row["data"] or "", row["arch"], row["protocol_version"], row["teacher"] or ""
                alike = (*how, row.get("test") or "")  # of other sizes or bytes at one place
                found[alike][row["set_hash"]].append(row["top1_last"])
    there = sorted({alike[0] for alike in found})
    if data is not None and data not in there:
        known = ", ".join(there) or "nothing"
        raise ValueError(f"--data {data}: no set has a result on it under {wanted}; there are results on {known}")
    if not found and (protocol or arch):
        asked = f"--protocol {wanted}" + (f" --arch {arch}" if arch else "")
        raise ValueError(f"{asked}: no set has such a result; there are {', '.join(sorted(other)) or 'none at all'}")
    if not found:
        return Accuracy({})
    among = sorted(alike for alike in found if data in (None, alike[0]))
    chosen = max(among, key=lambda alike: len(found[alike]))
    return Accuracy({key: float(np.mean(values)) for key, values in found[chosen].items()}, *chosen[:4])


def all_trials(rows: Sequence[dict[str, Any]], stopped: Sequence[dict[str, Any]]) -> pa.Table:
    """A row per trial, `state` finished or stopped; a stopped one's `top1_last` is that after its `epoch`."""
    fields = [f for f in SCHEMA if f.name not in ("per_class", "config")]  # settings.json has the configs
    schema = pa.schema([*fields, pa.field("state", pa.string()), pa.field("epoch", pa.int32())])
    every = [r | {"state": "finished"} for r in rows] + [r | {"state": "stopped"} for r in stopped]
    return pa.Table.from_pylist(every, schema)


def best_cell(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The distillation setting with the highest mean over IPCs, students and protocols, as its best single cell."""
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in _tuned(cells):
        settings.setdefault(tuple(cell[axis] for axis in SETTING), []).append(cell)
    most = max(map(len, settings.values()))
    whole = [members for members in settings.values() if len(members) == most]
    return max(whole, key=lambda members: sum(m["top1_last"] for m in members) / len(members))[0]


def _tuned(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the training hyperparameters that were tried on a cell only the best: a set is worth what it can train."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cell in cells:
        place = tuple(cell[axis] for axis in (*SETTING, "ipc", "arch", "protocol"))
        best[place] = max(best.get(place, cell), cell, key=lambda c: c["top1_last"])
    return list(best.values())


def preset_of(base: RunConfig, cell: Mapping[str, Any], plain: Mapping[str, Any]) -> RunConfig:
    """The config of a cell's sets as a preset: its timestep and IPC, and the data and seed of the base."""
    made = spec_of(with_axes(plain, cell["timestep"], cell["ipc"], base.seed)).config
    timesteps = base.inversion.timesteps if cell["timestep"] is None else made.inversion.timesteps
    return replace(made, data=base.data, inversion=replace(made.inversion, timesteps=timesteps))
