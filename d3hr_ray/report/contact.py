"""Contact sheets: a set at a glance, one row per class."""

import io
from collections import defaultdict
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pyarrow as pa
from matplotlib import pyplot as plt
from PIL import Image

from d3hr_ray.datasets.images import GLANCE, Images
from d3hr_ray.store import Store

ROWS, COLUMNS = GLANCE
CELL = 0.8  # inches


def contact_sheet(store: Store, name: str, images: pa.Table) -> bytes:
    """IMAGE_SCHEMA rows of a set => PNG with the first images of the first classes."""
    shown: dict[int, list[np.ndarray]] = defaultdict(list)
    names = {}
    for r in images.sort_by([("label", "ascending"), ("index", "ascending")]).to_pylist():
        if r["label"] < ROWS and r["index"] < COLUMNS:
            data = store.read_bytes(f"distilled/{name}/{r['file_name']}")
            shown[r["label"]].append(np.asarray(Image.open(io.BytesIO(data))))
            names[r["label"]] = r["class_name"]
    classes = len(set(images["label"].to_pylist()))
    title = f"{name}: {len(images)} images, {classes} classes"
    return _draw([(names[label], pixels) for label, pixels in shown.items()], title)


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


def save_figure(figure: plt.Figure) -> bytes:
    """Figure => PNG bytes; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
