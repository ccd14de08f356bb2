"""The report of an evaluation or a sweep: real images beside the distilled, DD-Ranking's scores, the page."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from matplotlib import pyplot as plt

from d3hr_ray.evaluation.images import Images
from d3hr_ray.evaluation.ranking import augmentation_robust_score, label_robust_score
from d3hr_ray.evaluation.results import in_order, name_of, summarise
from d3hr_ray.report.contact import CELL, COLUMNS, ROWS, save_figure
from d3hr_ray.report.page import sets_apart, write_page
from d3hr_ray.store import Store


def report(store: Store, real: Images | None = None, rows: Sequence[dict[str, Any]] = ()) -> str:
    """Write report/ and say where. `real` for a contact sheet of real images.

    `rows` for evaluations/summary.csv, the means that are printed, and for DD-Ranking's scores.
    """
    lines = []
    if rows:
        store.write_csv("evaluations/summary.csv", pa.Table.from_pylist(in_order(summarise(rows))))
    if real is not None:
        store.write_bytes("report/real.png", real_sheet(real))
    if scores := ranking(rows):
        store.write_csv("report/ranking.csv", pa.Table.from_pylist(scores))
        lines = [format_ranking(scores)]
    return "\n".join([*lines, f"report: {write_page(store)}"])


def real_sheet(real: Images) -> bytes:
    """The first images of the first classes, a row per class."""
    classes = min(ROWS, len(real.classes))
    figure, axes = plt.subplots(classes, COLUMNS, figsize=(CELL * COLUMNS + 1.6, CELL * classes + 0.5), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for label in range(classes):
        chosen = real.pixels[real.labels == label][:COLUMNS]
        axes[label][0].text(
            -0.1, 0.5, real.classes[label][:16], transform=axes[label][0].transAxes, ha="right", va="center", fontsize=9
        )
        for axis, pixels in zip(axes[label], chosen, strict=False):
            axis.imshow(pixels, interpolation="nearest")
    figure.suptitle("real test images", fontsize=9, y=0.9, va="bottom")
    return save_figure(figure)


def ranking(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """LRS and ARS of every set and student that has all runs they need; means over seeds, last epoch."""
    cells = summarise(sets_apart(rows), RANKED)
    top1 = {tuple(c[name] for name in RANKED): c["top1_last"] for c in cells}
    drawn = {(c["ipc"], c["arch"], c["protocol"]): c["top1_last"] for c in cells if c["set"] == "real-random"}
    full = {c["arch"]: c["top1_last"] for c in cells if (c["set"], c["protocol"]) == ("real-full", "hard")}
    scores = []
    ranked = {key[:-1] for key in top1 if key[0] not in ("real-full", "real-random")}
    for *kind, ipc, arch in sorted(ranked, key=lambda key: (str(key[:-2]), key[-2] or 0, key[-1])):
        found = {"full-hard": full.get(arch)}
        for what, protocol in (("hard", "hard"), ("soft", "fixed-soft"), ("noaug", "fixed-soft-noaug")):
            found[f"set-{what}"] = top1.get((*kind, ipc, arch, protocol))
            found[f"random-{what}"] = drawn.get((ipc, arch, protocol))
        known = {key: value for key, value in found.items() if value is not None}
        if len(known) == len(found):
            both = label_robust_score(known) | augmentation_robust_score(known)
            scores.append(dict(zip(KIND, kind, strict=True)) | {"ipc": ipc, "arch": arch} | both)
    return scores


KIND = ("set", "fidelity", "inversion_guidance", "guidance", "settings")  # what no two means share
RANKED = (*KIND, "ipc", "arch", "protocol")  # of one evaluation: its flags settle the rest


def format_ranking(scores: Sequence[dict[str, Any]]) -> str:
    """The scores as text, sets named as in the table of accuracies."""
    head = f"{'set, guidance in / out':<38} {'ipc':>5} {'student':<18}"
    lines = [f"{head} {'HLR':>7} {'IOR':>7} {'LRS':>6} {'ARS':>6}  (fractions)"]
    for s in scores:
        values = f"{s['HLR']:>7.3f} {s['IOR']:>7.3f} {s['LRS']:>6.3f} {s['ARS']:>6.3f}"
        lines.append(f"{name_of(s):<38} {s['ipc'] or '':>5} {s['arch']:<18} {values}")
    return "\n".join(lines)
