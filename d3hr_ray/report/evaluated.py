"""The report of an evaluation or a sweep: real images beside the distilled, DD-Ranking's scores, the page."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from d3hr_ray.datasets.images import Loadable
from d3hr_ray.evaluation.naming import name_of, sets_apart
from d3hr_ray.evaluation.ranking import augmentation_robust_score, label_robust_score
from d3hr_ray.evaluation.results import cells_table, in_order, summarise
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.report.contact import sheet_of
from d3hr_ray.report.page import SHEETS, write_page
from d3hr_ray.store import Store

MOST_SHEETS = 12


def report(store: Store, real: Loadable, rows: Sequence[dict[str, Any]], sets: Sequence[DistilledSet]) -> str:
    """Write report/ and say where: the page, contact sheets of `sets` and of real images, DD-Ranking's scores.

    The scores are of `rows` alone; the page's tables are of all that the folder's records tell.
    """
    lines = []
    store.write_bytes("report/real.png", sheet_of(real.load(glance=True), "real test images"))
    _write_sheets(store, rows, sets)
    if scores := ranking(rows):
        store.write_csv("report/ranking.csv", pa.Table.from_pylist(scores))
        lines = [format_ranking(scores)]
    return "\n".join([*lines, f"report: {write_page(store)}"])


def write_summary(store: Store, rows: Sequence[dict[str, Any]]) -> None:
    """The rows' means and intervals to evaluations/summary.csv."""
    store.write_csv("evaluations/summary.csv", cells_table(in_order(summarise(rows))))


def _write_sheets(store: Store, rows: Sequence[dict[str, Any]], sets: Sequence[DistilledSet]) -> None:
    """report/sheets/: a sheet for each kind of set at one IPC, the best kinds first; those of before go.

    The IPC is 10 or the nearest to it, the seed the first. What jobs/distill.py made a sheet of is left out.
    """
    store.delete(SHEETS)
    there = set(store.read_json("run.json").get("sets", {}).values()) if store.exists("run.json") else set()
    rows = [row for row in rows if row["method"] != "real-full"]
    ipc = min({row["ipc"] for row in rows}, key=lambda n: (abs(n - 10), n), default=None)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in sets_apart([row for row in rows if row["ipc"] == ipc]):
        kinds.setdefault(name_of(row), []).append(row)
    top1 = {name: sum(row["top1_last"] for row in members) / len(members) for name, members in kinds.items()}
    firsts = {name: min(kinds[name], key=lambda row: row["set_seed"]) for name in sorted(kinds, key=lambda n: -top1[n])}
    wanted = [(name, row) for name, row in firsts.items() if row["set_hash"] not in there][:MOST_SHEETS]
    held, names = {found.set_hash: found.images for found in sets}, {}
    for at, (name, row) in enumerate(wanted):
        images = held[row["set_hash"]]
        title = f"{name}, seed {row['set_seed']}: {len(images)} images, {len(images.classes)} classes"
        store.write_bytes(f"{SHEETS}/{at:02d}.png", sheet_of(images.load(glance=True), title))
        names[f"{at:02d}.png"] = name
    store.write_json(f"{SHEETS}/names.json", names)


def ranking(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """LRS and ARS of every set and student that has all runs they need; means over seeds, last epoch."""
    made = [r for r in sets_apart(rows) if r["method"] not in ("real-full", "real-random")]
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


KIND = ("set", "fidelity", "inversion_guidance", "guidance", "settings")  # what no two means share
RANKED = (*KIND, "ipc", "arch", "protocol")  # of one evaluation: its flags settle the rest


def format_ranking(scores: Sequence[dict[str, Any]]) -> str:
    """The scores as text, sets named as in the table of accuracies."""
    width = max([38, *(len(name_of(s)) for s in scores)])
    head = f"{'set, guidance in / out':<{width}} {'ipc':>5} {'student':<18}"
    lines = [f"{head} {'HLR':>7} {'IOR':>7} {'LRS':>6} {'ARS':>6}  (fractions)"]
    for s in scores:
        values = f"{s['HLR']:>7.3f} {s['IOR']:>7.3f} {s['LRS']:>6.3f} {s['ARS']:>6.3f}"
        lines.append(f"{name_of(s):<{width}} {s['ipc'] or '':>5} {s['arch']:<18} {values}")
    return "\n".join(lines)
