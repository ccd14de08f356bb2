"""Tables, as text and CSV: accuracies, DD-Ranking's scores, scores without training, sweeps, CaO2's pools, matching."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import isnan
from typing import Any

import numpy as np
import pyarrow as pa

from d3hr_ray.config import RunConfig, as_dict
from d3hr_ray.evaluation.ranking import (
    AXES,
    LEAST_SETS,
    SETTING,
    Accuracy,
    accuracy_of,
    all_trials,
    best_cell,
    correlate,
    preset_of,
    summarise,
)
from d3hr_ray.evaluation.scores import columns_of
from d3hr_ray.layout import EVALUATIONS, REPORT, sweep_folder
from d3hr_ray.report.names import disambiguate, disambiguate_sets, name_of
from d3hr_ray.runs import base_of
from d3hr_ray.stages.choose import COUNTS
from d3hr_ray.store import Store

SCORES, CORRELATIONS = f"{REPORT}/scores.csv", f"{REPORT}/scores-correlations.csv"
CORRELATION_SCHEMA = pa.schema(
    [("ipc", pa.int64()), ("sets", pa.int64()), ("score", pa.string()), ("rho", pa.float64()), ("p", pa.float64())]
)
LISTED = 20  # classes that are named
MATCHING_HEAD = ("class", "images", "rejected", "loss", "random draw", "ratio")


def cells_table(summary: Iterable[dict[str, Any]]) -> pa.Table:
    """Cells as a table for people and spreadsheets: what too few values leave unknown is empty."""
    return pa.Table.from_pylist([{k: None if v != v else v for k, v in cell.items()} for cell in summary])


def in_order(summary: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells by student, protocol and IPC, the best first."""
    return sorted(summary, key=lambda s: (s["arch"], s["protocol"], s["ipc"] or 0, -s["top1_last"]))


def format_summary(rows: Sequence[dict[str, Any]]) -> str:
    """The rows' cells as text, accuracies in percent: last epoch as of `accuracy_of`, and the best epoch beside it."""
    summary = in_order(summarise(disambiguate(rows)))
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


def write_summary(store: Store, rows: Sequence[dict[str, Any]]) -> None:
    """The rows' means and intervals to evaluations/summary.csv."""
    store.write_csv(f"{EVALUATIONS}/summary.csv", cells_table(in_order(summarise(rows))))


def format_ranking(scores: Sequence[dict[str, Any]]) -> str:
    """The scores as text, sets named as in the table of accuracies."""
    width = max([38, *(len(name_of(s)) for s in scores)])
    head = f"{'set, guidance in / out':<{width}} {'ipc':>5} {'student':<18}"
    lines = [f"{head} {'HLR':>7} {'IOR':>7} {'LRS':>6} {'ARS':>6}  (fractions)"]
    for s in scores:
        values = f"{s['HLR']:>7.3f} {s['IOR']:>7.3f} {s['LRS']:>6.3f} {s['ARS']:>6.3f}"
        lines.append(f"{name_of(s):<{width}} {s['ipc'] or '':>5} {s['arch']:<18} {values}")
    return "\n".join(lines)


def write_scores(run: Store, rows: Sequence[dict[str, Any]], accuracy: Accuracy) -> str:
    """Write the table and its correlations as CSV beside the run's other reports and return the table's URI."""
    store = base_of(run)
    known = [row | {"top1": accuracy.top1.get(row["set_hash"])} for row in rows]
    shown = [{key: value for key, value in row.items() if key != "config"} for row in known]  # manifests have it
    store.write_csv(SCORES, pa.Table.from_pylist(shown))
    store.write_csv(CORRELATIONS, pa.Table.from_pylist(correlate(rows, accuracy, columns_of(rows)), CORRELATION_SCHEMA))
    return f"{store.uri}/{SCORES}"


def format_scores(rows: Sequence[dict[str, Any]], accuracy: Accuracy) -> str:
    """Means over seeds as text; below them, per IPC, the rank correlations of single sets with accuracy, if known."""
    top1, columns = accuracy.top1, columns_of(rows)
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in disambiguate_sets(rows):
        kinds[row["ipc"], name_of(row)].append(row)
    width = max(24, *(len(name) for _, name in kinds))
    lines = [" ".join(["set".ljust(width), "  n", *(f"{c:>10}" for c in columns), f"{'top-1':>7}"])]
    for key in sorted(kinds):
        known = [100 * top1[row["set_hash"]] for row in kinds[key] if row["set_hash"] in top1]
        means = [f"{np.mean([row[c] for row in kinds[key]]):>10.4g}" for c in columns]
        end = [f"{np.mean(known):7.1f}"] if known else []
        lines.append(" ".join([key[1].ljust(width), f"{len(kinds[key]):>3}", *means, *end]))
    how = [accuracy.words] if top1 else []
    return "\n".join([*lines, *how, *_correlation_lines(correlate(rows, accuracy, columns), columns, width)])


def _correlation_lines(correlations: Sequence[dict[str, Any]], columns: Sequence[str], width: int) -> Iterable[str]:
    for ipc in sorted({row["ipc"] for row in correlations}):
        found = {row["score"]: row for row in correlations if row["ipc"] == ipc}
        sets = max(row["sets"] for row in found.values())
        values = [f"{found[c]['rho']:>+10.2f}" if c in found else f"{'-':>10}" for c in columns]
        yield " ".join([f"Spearman's rho, IPC {ipc}".ljust(width), f"{sets:>3}", *values])


def write_sweep(
    store: Store,
    name: str,
    base: RunConfig,
    rows: Sequence[dict[str, Any]],
    stopped: Sequence[dict[str, Any]],
) -> str:
    """Write trials.parquet, trials.csv, cells.csv, settings.json and best.json; return a summary as text.

    `stopped` are rows of students that a scheduler stopped: they are in the trials' table alone, as what they would
    have reached is not known. settings.json has the configs, but for seed, timestep and IPC, by the rows' `settings`.
    """
    folder = sweep_folder(name)
    configs = {row["settings"]: json.loads(row["config"]) for row in (*rows, *stopped)}
    table = all_trials(rows, stopped)
    store.write_table(f"{folder}/trials.parquet", table)
    store.write_csv(f"{folder}/trials.csv", table)
    cells = sorted(summarise(disambiguate_sets(rows), ("set", *AXES)), key=lambda c: -c["top1_last"])
    store.write_csv(f"{folder}/cells.csv", cells_table(cells))
    best = best_cell(cells)
    preset = preset_of(base, best, configs[best["settings"]])
    found = {key: best[key] for key in (*AXES, "n", "top1_last")}
    store.write_json(f"{folder}/settings.json", configs)
    store.write_json(f"{folder}/best.json", {"config": as_dict(preset), "found": found})
    line = f"{len(rows)} students finished, {len(stopped)} stopped early"
    words = ", ".join(f"{axis} {best[axis]}" for axis in SETTING[:-1] if best[axis] is not None)
    said = f"{line}; best over IPCs and students: {best['set']} ({words})"
    return f"{said}\n{store.uri}/{folder}: trials.csv, cells.csv, best.json"


def pools_text(table: pa.Table) -> str:
    """One line on all sets of a sweep."""
    judged = [n for n in table["filled_up"].to_pylist() if n is not None]
    if not any(judged):
        return f"pools: {len(judged)} sets were judged, and every class had enough candidates on class"
    return (
        f"pools: in {sum(n > 0 for n in judged)} of {len(judged)} judged sets a class had too few candidates on class "
        "and kept some that the classifier takes for another class; a larger --pool gives more to choose from"
    )


def chosen_text(table: pa.Table) -> str:
    """One line for all classes, and one for each that had too few candidates on class."""
    rows = table.to_pylist()
    total = {key: sum(r[key] for r in rows) for key in COUNTS}
    if isnan(rows[0]["kept_own"]):
        return f"pool: the first {total['kept']} of {total['candidates']} candidates, not judged (--select none)"
    short = [r for r in rows if r["kept_correct"] < r["kept"]]
    lines = [
        f"pool: {total['correct']} of {total['candidates']} candidates on class, {total['kept_correct']} of the "
        f"{total['kept']} kept"
    ]
    lines += [
        f"  class {r['class']}: the classifier takes {r['kept'] - r['kept_correct']} of the {r['kept']} kept for "
        "another class, as too few were on class; a larger --pool gives more to choose from"
        for r in short[:LISTED]
    ]
    return "\n".join([*lines, *([f"  and {len(short) - LISTED} more classes"] if len(short) > LISTED else [])])


def matching_rows(rows: Sequence[dict[str, Any]], limit: int = LISTED) -> list[tuple[str, str, str, str, str, str]]:
    """How well subsets match their Gaussians, in words: class, images, rejected, loss, random draw, their ratio.

    Above `limit` classes, one row of their totals and means.
    """
    if len(rows) > limit:
        total = {key: sum(r[key] for r in rows) for key in ("images", "rejected")}
        means = {key: sum(r[key] for r in rows) / len(rows) for key in ("loss", "random_loss")}
        rows = [{"class": f"all {len(rows)} classes"} | total | means]
    return [
        (
            str(r["class"]),
            str(r["images"]),
            str(r["rejected"]),
            f"{r['loss']:.3g}",
            f"{r['random_loss']:.4g}",
            f"{r['loss'] / r['random_loss'] if r['random_loss'] else float('nan'):.1e}",
        )
        for r in rows
    ]


def matching_text(table: pa.Table) -> str:
    """How well subsets match their Gaussians, as text."""
    return "\n".join(
        f"{name[:22]:<22} {images:>8} {rejected:>8} {loss:>10} {draw:>11} {ratio:>8}"
        for name, images, rejected, loss, draw, ratio in (MATCHING_HEAD, *matching_rows(table.to_pylist()))
    )
