"""The table of scores: which sets, against which real images, beside which accuracies."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from d3hr_ray.datasets.reading import Reading
from d3hr_ray.evaluation.comparison import list_real, look_beside
from d3hr_ray.evaluation.naming import name_of, sets_apart
from d3hr_ray.evaluation.sets import DistilledSet, find_sets, image_side, load_set
from d3hr_ray.report.scores import COLUMNS, Measured, measure, rank_correlations, score_set
from d3hr_ray.runs import base_of
from d3hr_ray.runtime.progress import progress
from d3hr_ray.runtime.tasks import ray_map
from d3hr_ray.runtime.telemetry import LOG
from d3hr_ray.sets import spec_of
from d3hr_ray.stages.judge import Judge, judge_name, load_classifier
from d3hr_ray.store import Store

FILE, CORRELATIONS = "report/scores.csv", "report/scores-correlations.csv"
CORRELATION_SCHEMA = pa.schema(
    [("ipc", pa.int64()), ("sets", pa.int64()), ("score", pa.string()), ("rho", pa.float64()), ("p", pa.float64())]
)
MOST_REAL = 20_000
SETTING = ("guidance", "inversion_guidance", "fidelity", "settings", "config")  # of a set, in its row


@dataclass(frozen=True)
class Scoring:
    """Sets with their run folders and manifests, and the classifier that sees them."""

    sets: tuple[DistilledSet, ...]
    runs: tuple[Store, ...]
    manifests: tuple[dict[str, Any], ...]
    judge: Judge
    device: str

    @staticmethod
    def open(paths: tuple[str, ...], classifier: str | None) -> "Scoring":
        """Load sets of ours, all at the size of the first. The classifier normalises, whatever made the sets.

        Raises ValueError for sets of others, for sets that do not belong together, and for a classifier that cannot
        judge them.
        """
        stores = find_sets(paths)
        for store in stores:
            if not store.exists("manifest.json"):
                raise ValueError(f"--distilled {store.uri} has no manifest.json: only sets of this project are scored")
        manifests = tuple(store.read_json("manifest.json") for store in stores)
        runs = tuple(store.at("../..") for store in stores)
        side = image_side(stores[0])
        sets = tuple(load_set(store, side) for store in stores)
        check_alike(stores, sets, manifests)
        config = spec_of(manifests[0]["config"]).config
        config = replace(config, cao2=replace(config.cao2, classifier=classifier or config.cao2.classifier))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        judge = load_classifier(judge_name(config), runs[0].read_table("classes.parquet").sort_by("label"), device)
        return Scoring(sets, runs, manifests, judge, device)

    def real(self, per_class: int) -> Measured:
        """What the classifier sees in the first real training images of each class, MOST_REAL in all."""
        first = self.sets[0]
        per_class = max(2, min(per_class, MOST_REAL // len(first.images.classes)))
        source = first.source
        assert source is not None, "sets of ours know their source"
        listing = replace(list_real(source, first.images.classes, first.wnids), look=look_beside(self.sets))
        labels = listing.entries["label"].to_numpy()
        rows = [np.flatnonzero(labels == label)[:per_class] for label in range(len(first.images.classes))]
        reading = Reading.of(listing, first.images.classes, first.images.side, np.concatenate(rows))
        real = reading.load(each=ray_map)
        for line in real.notes:
            LOG.warning(line)
        return measure(self.judge, real.pixels, real.labels)


def check_alike(stores: Sequence[Store], sets: Sequence[DistilledSet], manifests: Sequence[dict[str, Any]]) -> None:
    """Raises ValueError for a set that the first one's real images and classifier are not for."""
    traits = [
        {
            "other classes": found.images.classes,
            "other real images": (found.about["data"]["uri"], found.about["data"]["limit_per_class"]),
            "another model": manifest["inputs"]["model"],
        }
        for found, manifest in zip(sets, manifests, strict=True)
    ]
    for store, own in zip(stores, traits, strict=True):
        if differing := [words for words, value in own.items() if value != traits[0][words]]:
            raise ValueError(
                f"--distilled {store.uri} has {' and '.join(differing)} than {stores[0].uri}; score them in separate "
                "calls"
            )


def score_all(scoring: Scoring, real: Measured) -> list[dict[str, Any]]:
    """A row of scores per set."""
    rows = []
    with progress(len(scoring.sets), "score", "set", False) as bar:
        for found, run, manifest in zip(scoring.sets, scoring.runs, scoring.manifests, strict=True):
            scores = score_set(found, run, manifest, scoring.judge, real, scoring.device)
            bar.update()
            words = {"set": found.name, "seed": found.set_seed, "ipc": found.about["ipc"], "set_hash": found.set_hash}
            rows.append(words | {key: found.about[key] for key in SETTING} | scores)
    return rows


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
    def told(self) -> str:
        """What it was measured on and how, in words."""
        by = f", teacher {self.teacher}" if self.teacher else ""
        return f"top-1: {self.arch} on {self.data}, protocol version {self.protocol_version}{by}"


def write_scores(run: Store, rows: Sequence[dict[str, Any]], accuracy: Accuracy) -> str:
    """Write the table and its correlations as CSV beside the run's other reports and return the table's URI."""
    store = base_of(run)
    known = [row | {"top1": accuracy.top1.get(row["set_hash"])} for row in rows]
    told = [{key: value for key, value in row.items() if key != "config"} for row in known]  # manifests have it
    store.write_csv(FILE, pa.Table.from_pylist(told))
    store.write_csv(CORRELATIONS, pa.Table.from_pylist(correlate(rows, accuracy), CORRELATION_SCHEMA))
    return f"{store.uri}/{FILE}"


def correlate(rows: Sequence[dict[str, Any]], accuracy: Accuracy) -> list[dict[str, Any]]:
    """Rank correlations with accuracy over the sets of each IPC: a row per IPC and score that has one."""
    return [
        {"ipc": ipc, "score": score, **vars(correlation)}
        for ipc in sorted({row["ipc"] for row in rows})
        for score, correlation in rank_correlations([r for r in rows if r["ipc"] == ipc], accuracy.top1).items()
    ]


def read_accuracy(
    runs: Sequence[Store], hashes: Collection[str], arch: str | None, protocol: str, data: str | None
) -> Accuracy:
    """Results of these sets under a protocol, of a student and on `data`: by default of any.

    Accuracies of other students, on other images (such as the training split that a sweep chose on), under other
    versions of the protocol or of other teachers do not compare: those that most of the sets have are taken.
    """
    found: dict[tuple[str, str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in dict.fromkeys(map(base_of, runs)):
        if not run.exists("evaluations/results.parquet"):
            continue
        for row in run.read_table("evaluations/results.parquet").to_pylist():
            if row["set_hash"] in hashes and row["protocol"] == protocol and arch in (None, row["arch"]):
                alike = row["data"] or "", row["arch"], row["protocol_version"], row["teacher"] or ""
                found[alike][row["set_hash"]].append(row["top1_last"])
    there = sorted({alike[0] for alike in found})
    if data is not None and data not in there:
        raise ValueError(f"--data {data}: no set was tested on it under {protocol}; there is {there or 'none'}")
    if not found:
        return Accuracy({})
    among = sorted(alike for alike in found if data in (None, alike[0]))
    chosen = max(among, key=lambda alike: len(found[alike]))
    return Accuracy({key: float(np.mean(values)) for key, values in found[chosen].items()}, *chosen)


def format_scores(rows: Sequence[dict[str, Any]], accuracy: Accuracy) -> str:
    """Means over seeds as text; below them, per IPC, the rank correlations of single sets with accuracy, if known."""
    top1 = accuracy.top1
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in sets_apart(rows):
        kinds[row["ipc"], name_of(row)].append(row)
    width = max(24, *(len(name) for _, name in kinds))
    lines = [" ".join(["set".ljust(width), "  n", *(f"{c:>10}" for c in COLUMNS), f"{'top-1':>7}"])]
    for key in sorted(kinds):
        known = [100 * top1[row["set_hash"]] for row in kinds[key] if row["set_hash"] in top1]
        means = [f"{np.mean([row[c] for row in kinds[key]]):>10.4g}" for c in COLUMNS]
        end = [f"{np.mean(known):7.1f}"] if known else []
        lines.append(" ".join([key[1].ljust(width), f"{len(kinds[key]):>3}", *means, *end]))
    told = [accuracy.told] if top1 else []
    return "\n".join([*lines, *told, *_correlation_lines(correlate(rows, accuracy), width)])


def _correlation_lines(correlations: Sequence[dict[str, Any]], width: int) -> Iterable[str]:
    for ipc in sorted({row["ipc"] for row in correlations}):
        found = {row["score"]: row for row in correlations if row["ipc"] == ipc}
        sets = max(row["sets"] for row in found.values())
        values = [f"{found[c]['rho']:>+10.2f}" if c in found else f"{'-':>10}" for c in COLUMNS]
        yield " ".join([f"Spearman's rho, IPC {ipc}".ljust(width), f"{sets:>3}", *values])
