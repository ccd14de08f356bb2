"""The table of scores: which sets, against which real images, beside which accuracies."""

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from d3hr_ray.evaluation.comparison import source_of
from d3hr_ray.evaluation.sets import DistilledSet, find_sets, list_real, load_set, read_listing
from d3hr_ray.report.scores import COLUMNS, Measured, measure, rank_correlations, score_set
from d3hr_ray.stages.judge import Judge, load_judge
from d3hr_ray.stages.publish import made_with
from d3hr_ray.store import Store

FILE = "report/scores.csv"
MOST_REAL = 20_000


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
        """Load sets of ours. Raises ValueError for sets of others, and for a classifier that cannot judge them."""
        stores = find_sets(paths)
        for store in stores:
            if not store.exists("manifest.json"):
                raise ValueError(f"--distilled {store.uri} has no manifest.json: only sets of this project are scored")
        manifests = tuple(store.read_json("manifest.json") for store in stores)
        runs = tuple(store.at("../..") for store in stores)
        config = made_with(manifests[0]["config"])
        config = replace(config, cao2=replace(config.cao2, classifier=classifier or config.cao2.classifier))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        judge = load_judge(config, runs[0].read_table("classes.parquet").sort_by("label"), device)
        side = manifests[0]["config"]["synthesis"]["image_size"]
        sets = tuple(load_set(store, side or _side(store)) for store in stores)
        return Scoring(sets, runs, manifests, judge, device)

    def real(self, per_class: int) -> Measured:
        """What the classifier sees in the first real training images of each class, MOST_REAL in all."""
        first = self.sets[0]
        per_class = max(2, min(per_class, MOST_REAL // len(first.images.classes)))
        source = source_of(first)
        assert source is not None, "sets of ours know their source"
        listing = list_real(source, first.images.classes, first.wnids)
        labels = listing.entries["label"].to_numpy()
        rows = [np.flatnonzero(labels == label)[:per_class] for label in range(len(first.images.classes))]
        pixels, labels = read_listing(listing, first.images.pixels.shape[1], np.concatenate(rows))
        return measure(self.judge, pixels, labels)


def _side(store: Store) -> int:
    first = next(n for n in store.list("train", recursive=True) if n.endswith(".png"))
    with Image.open(io.BytesIO(store.read_bytes(f"train/{first}"))) as image:
        return int(image.size[0])


def score_all(scoring: Scoring, real: Measured) -> list[dict[str, Any]]:
    """A row of scores per set."""
    rows = []
    for found, run, manifest in zip(scoring.sets, scoring.runs, scoring.manifests, strict=True):
        scores = score_set(found, run, manifest, scoring.judge, real, scoring.device)
        words = {"set": found.name, "seed": found.set_seed, "ipc": found.about["ipc"], "set_hash": found.set_hash}
        rows.append(words | {"fidelity": found.about["fidelity"], "settings": found.about["settings"]} | scores)
    return rows


def write_scores(run: Store, rows: Sequence[dict[str, Any]]) -> str:
    """Write the table as CSV beside the run's other reports and return its URI."""
    store = base_of(run)
    store.write_csv(FILE, pa.Table.from_pylist(list(rows)))
    return f"{store.uri}/{FILE}"


def base_of(run: Store) -> Store:
    """The run whose evaluations know a folder's sets: RUN for RUN/sets/<x> and RUN/inversions/<i>/sets/<x>."""
    for inner in ("sets", "inversions"):
        run = run.at("../..") if run.at("..").name == inner else run
    return run


@dataclass(frozen=True)
class Accuracy:
    """Mean top-1 of sets, by their hashes, as fractions, and the real images `data` that all were tested on."""

    top1: dict[str, float]
    data: str = ""


def read_accuracy(runs: Sequence[Store], arch: str | None, protocol: str, data: str | None) -> Accuracy:
    """Results under a protocol, of one student or of all, on `data`: by default what most of the sets were tested on.

    Accuracies on other images, such as the training split that a sweep chose on, do not compare and are left out.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in dict.fromkeys(map(base_of, runs)):
        if not run.exists("evaluations/results.parquet"):
            continue
        for row in run.read_table("evaluations/results.parquet").to_pylist():
            if row["protocol"] == protocol and arch in (None, row["arch"]):
                found[row["data"]][row["set_hash"]].append(row["top1_last"])
    if data is not None and data not in found:
        raise ValueError(f"--data {data}: no set was tested on it under {protocol}; there is {sorted(found) or 'none'}")
    if not found:
        return Accuracy({})
    chosen = data or max(sorted(found), key=lambda name: len(found[name]))
    return Accuracy({key: float(np.mean(values)) for key, values in found[chosen].items()}, chosen)


def format_scores(rows: Sequence[dict[str, Any]], accuracy: Accuracy) -> str:
    """Means over seeds as text; below them, per IPC, the rank correlations of single sets with accuracy, if known."""
    top1 = accuracy.top1
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        kinds[row["ipc"], row["set"], row["fidelity"], row["settings"]].append(row)
    names = {key: key[1] + ("" if key[2] == "fixed" else f" {key[2]}") for key in kinds}
    width = max(24, *map(len, names.values()))
    lines = [" ".join(["set".ljust(width), "  n", *(f"{c:>10}" for c in COLUMNS), f"{'top-1':>7}"])]
    for key in sorted(kinds):
        known = [100 * top1[row["set_hash"]] for row in kinds[key] if row["set_hash"] in top1]
        means = [f"{np.mean([row[c] for row in kinds[key]]):>10.4g}" for c in COLUMNS]
        end = [f"{np.mean(known):7.1f}"] if known else []
        lines.append(" ".join([names[key].ljust(width), f"{len(kinds[key]):>3}", *means, *end]))
    told = [f"top-1: on {accuracy.data}"] if top1 else []
    return "\n".join([*lines, *told, *_correlation_lines(rows, top1, width)])


def _correlation_lines(rows: Sequence[dict[str, Any]], accuracy: dict[str, float], width: int) -> Iterable[str]:
    for ipc in sorted({row["ipc"] for row in rows}):
        here = [row for row in rows if row["ipc"] == ipc and row["set_hash"] in accuracy]
        found = rank_correlations(here, accuracy)
        if found:
            values = [f"{found[c][0]:>+10.2f}" if c in found else f"{'-':>10}" for c in COLUMNS]
            yield " ".join([f"Spearman's rho, IPC {ipc}".ljust(width), f"{len(here):>3}", *values])
