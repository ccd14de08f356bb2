"""Contact sheets: a set at a glance, one row per class."""

import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from d3hr_ray.datasets.images import GLANCE, Images
from d3hr_ray.evaluation.baselines import DRAWN
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.layout import REPORT, RUN, set_folder
from d3hr_ray.report.names import disambiguate_sets, name_of
from d3hr_ray.report.plots import plt, save_figure
from d3hr_ray.sets import SetSpec
from d3hr_ray.store import Store

ROWS, COLUMNS = GLANCE
CELL = 0.8  # inches
SHEETS = f"{REPORT}/sheets"  # of what was evaluated last
MOST_SHEETS = 12


def contact_sheet(store: Store, spec: SetSpec, images: pa.Table) -> bytes:
    """IMAGE_SCHEMA rows of a set => PNG with the first images of the first classes."""
    shown = first_images(store.at(set_folder(spec)), images, ROWS, COLUMNS)
    names = dict(zip(images["label"].to_pylist(), images["class_name"].to_pylist(), strict=True))
    classes = len(set(images["label"].to_pylist()))
    title = f"{spec.name}: {len(images)} images, {classes} classes"
    return _draw([(names[label], pixels) for label, pixels in shown.items()], title)


def first_images(own: Store, images: pa.Table, classes: int, each: int) -> dict[int, list[np.ndarray]]:
    """IMAGE_SCHEMA rows of a set in its folder => RGB pixels of the first images of the first classes, by label."""
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    for row in images.sort_by([("label", "ascending"), ("index", "ascending")]).to_pylist():
        if row["label"] < classes and row["index"] < each:
            found[row["label"]].append(pixels_of(own.read_bytes(row["file_name"])))
    return found


def pixels_of(image: bytes) -> np.ndarray:
    """An encoded image => its pixels (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def sheet_of(images: Images, title: str) -> bytes:
    """Images in memory => PNG with the first images of the first classes."""
    classes = range(min(ROWS, len(images.classes)))
    return _draw([(images.classes[k], images.pixels[images.labels == k][:COLUMNS]) for k in classes], title)


def _draw(rows: Sequence[tuple[str, Sequence[np.ndarray]]], title: str) -> bytes:
    columns = max(len(pixels) for _, pixels in rows)
    size = (CELL * columns + 1.6, CELL * len(rows) + 0.5)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (name, shown) in zip(axes, rows, strict=True):
        line[0].text(-0.1, 0.5, name[:16], transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        for axis, pixels in zip(line, shown, strict=False):
            axis.imshow(pixels, interpolation="nearest")
    figure.suptitle(title, fontsize=9, y=0.9, va="bottom")
    return save_figure(figure)


def write_sheets(
    store: Store, rows: Sequence[dict[str, Any]], sets: Sequence[DistilledSet], show_reals: bool = True
) -> None:
    """report/sheets/: a sheet for each kind of set at one IPC, the best kinds first; older sheets are deleted.

    The IPC is 10 or the nearest to it, the seed the first. What jobs/distill.py made a sheet of is left out, and
    baselines of real images unless they may be shown.
    """
    store.delete(SHEETS)
    there = set(store.read_json(RUN).get("sets", {}).values()) if store.exists(RUN) else set()
    rows = [row for row in rows if row["method"] != "real-full" and (show_reals or row["method"] not in DRAWN)]
    ipc = min({row["ipc"] for row in rows}, key=lambda n: (abs(n - 10), n), default=None)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in disambiguate_sets([row for row in rows if row["ipc"] == ipc]):
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
