"""Contact sheets: a distilled set at a glance, one row per class."""

import io

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pyarrow as pa
from matplotlib import pyplot as plt
from PIL import Image

from d3hr_ray.store import Store

ROWS, COLUMNS = 20, 10
CELL = 0.8  # inches


def contact_sheet(store: Store, variant: str, images: pa.Table) -> bytes:
    """IMAGE_SCHEMA rows of a variant => PNG with the first images of the first classes."""
    rows = [r for r in images.to_pylist() if r["label"] < ROWS and r["index"] < COLUMNS]
    labels = sorted({r["label"] for r in rows})
    columns = max(r["index"] for r in rows) + 1
    figure, axes = plt.subplots(
        len(labels), columns, figsize=(CELL * columns + 1.6, CELL * len(labels) + 0.5), squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for r in rows:
        data = store.read_bytes(f"distilled/{variant}/{r['file_name']}")
        axis = axes[labels.index(r["label"])][r["index"]]
        axis.imshow(np.asarray(Image.open(io.BytesIO(data))), interpolation="nearest")
        if r["index"] == 0:
            axis.text(-0.1, 0.5, r["class_name"][:16], transform=axis.transAxes, ha="right", va="center", fontsize=9)
    classes = len(set(images["label"].to_pylist()))
    figure.suptitle(f"{variant}: {len(images)} images, {classes} classes", fontsize=9, y=0.9, va="bottom")
    return save_figure(figure)


def save_figure(figure: plt.Figure) -> bytes:
    """Figure => PNG bytes; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
