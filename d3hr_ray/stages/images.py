"""A distilled image on disk: its bytes, and its row in metadata.parquet."""

import io

import numpy as np
import pyarrow as pa
from PIL import Image

WEIGHT = "weight"  # one column more, of sets whose images do not count alike: stages/weights.py
IMAGE_SCHEMA = pa.schema(
    [
        ("file_name", pa.string()),
        ("label", pa.int32()),
        ("class_name", pa.string()),
        ("index", pa.int32()),
        ("seed", pa.int64()),
        ("score", pa.float32()),
        ("sha256", pa.string()),
    ]
)


def png(pixels: np.ndarray, size: int | None) -> bytes:
    """Pixels (H, W, 3) uint8 => PNG, resized (Lanczos, as the authors do) if a size is given."""
    image = Image.fromarray(pixels)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
