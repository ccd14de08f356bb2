"""The report of an evaluation or a sweep: real images beside the distilled, DD-Ranking's scores, the page."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from matplotlib import pyplot as plt

from d3hr_ray.evaluation.images import Images
from d3hr_ray.evaluation.ranking import augmentation_robust_score, label_robust_score
from d3hr_ray.evaluation.results import summarise
from d3hr_ray.report.contact import CELL, COLUMNS, ROWS, save_figure
from d3hr_ray.report.page import write_page
from d3hr_ray.store import Store


def report(store: Store, real: Images | None = None, rows: Sequence[dict[str, Any]] = ()) -> str:
    """Write report/ and say where. `rows` for DD-Ranking's scores, `real` for a contact sheet of real images."""
    lines = []
    if real is not None:
        store.write_bytes("report/real.png", real_sheet(real))
    if scores := ranking(rows):
        store.write_csv("report/ranking.csv", pa.Table.from_pylist(scores))
        lines = [f"{'set':<34} {'student':<16} {'HLR':>7} {'IOR':>7} {'LRS':>6} {'ARS':>6}  (fractions)"]
        lines += [
            f"{s['set'][:34]:<34} {s['arch']:<16} {s['HLR']:>7.3f} {s['IOR']:>7.3f} {s['LRS']:>6.3f} {s['ARS']:>6.3f}"
            for s in scores
        ]
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
    cells = {tuple(c[name] for name in RANKED): c["top1_last"] for c in summarise(rows, RANKED)}
    full = {key[2]: top1 for key, top1 in cells.items() if (key[0], key[3]) == ("real-full", "hard")}
    scores = []
    for name, ipc, arch in sorted({key[:3] for key in cells if key[0] not in ("real-full", "real-random")}, key=str):
        found = {
            f"{who}-{what}": cells.get((label, ipc, arch, protocol))
            for who, label in (("set", name), ("random", "real-random"))
            for what, protocol in (("hard", "hard"), ("soft", "fixed-soft"), ("noaug", "fixed-soft-noaug"))
        } | {"full-hard": full.get(arch)}
        known = {key: value for key, value in found.items() if value is not None}
        if len(known) == len(found):
            both = label_robust_score(known) | augmentation_robust_score(known)
            scores.append({"set": name, "ipc": ipc, "arch": arch} | both)
    return scores


RANKED = ("set", "ipc", "arch", "protocol")  # of one evaluation: its flags settle the rest
