"""The embedded sets: scikit-learn's 1,797 real handwritten digits at 16x16, plain or affinely distorted.

The train/test split is fixed and stratified, 1,297 / 500. `digits-affine` shows every digit several times, each time
rotated, scaled and shifted by amounts keyed by its image id, so that pixel prototypes fail (of the plain
digits the mean image of each class alone trains a classifier to 90 %).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import cos, radians, sin

import numpy as np
import pyarrow as pa
from PIL import Image

from d3hr_ray.datasets.source import Mapper, Scan, scan_table
from d3hr_ray.numerics.seeds import generator

SIDE = 16
NAMES = ("digits", "digits-affine")
COPIES = {"digits": 1, "digits-affine": 8}
ROTATION, SCALE, SHIFT = 30.0, (0.65, 0.95), 2.0  # degrees, factor, pixels of 16: a 6 never becomes a 9


@dataclass(frozen=True)
class Digits:
    """`name` is digits or digits-affine; `split` is train or test."""

    name: str
    split: str = "train"

    def scan(self, each: Mapper) -> Scan:
        """Every image of the split, in the order of scikit-learn's file."""
        _, targets = _load()
        rows = [
            (f"{self.split}/{i:04d}-{copy}", str(targets[i]), self.split, int(i), copy)
            for i in _indices(self.split)
            for copy in range(COPIES[self.name])
        ]
        return Scan(scan_table(rows))

    def read(self, entries: pa.Table) -> Iterator[bytes]:
        """Uncompressed PPM files, the same bytes with every version of every library."""
        for image_id, index in zip(entries["image_id"], entries["start"], strict=True):
            pixels = render(self.name, image_id.as_py(), index.as_py())
            header = f"P6 {SIDE} {SIDE} 255\n".encode()
            yield header + np.repeat(pixels[..., None], 3, axis=2).tobytes()


def render(name: str, image_id: str, index: int) -> np.ndarray:
    """One digit => (16, 16) uint8, white ink on black, distorted by its image id if the set is affine."""
    images, _ = _load()
    digit = Image.fromarray((images[index] * (255 / 16)).round().astype(np.uint8))
    digit = digit.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    if name == "digits-affine":
        digit = _distort(digit, image_id)
    return np.asarray(digit)


def _distort(digit: Image.Image, image_id: str) -> Image.Image:
    draw = generator("digits-affine", image_id)
    angle = radians(draw.uniform(-ROTATION, ROTATION))
    zoom = 1 / draw.uniform(*SCALE)
    dx, dy = draw.uniform(-SHIFT, SHIFT, 2)
    a, b = zoom * cos(angle), zoom * sin(angle)
    centre = SIDE / 2
    # PIL maps output to input: p_in = R (p_out - centre - shift) + centre.
    x, y = centre + dx, centre + dy
    matrix = (a, b, centre - a * x - b * y, -b, a, centre + b * x - a * y)
    return digit.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


@cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # takes seconds to import: only where digits are meant

    bunch = load_digits()
    return bunch.images, bunch.target


@cache
def _indices(split: str) -> tuple[int, ...]:
    from sklearn.model_selection import train_test_split

    _, targets = _load()
    train, test = train_test_split(
        np.arange(len(targets)), test_size=500, stratify=targets, random_state=0, shuffle=True
    )
    chosen = {"train": train, "test": test}.get(split)
    if chosen is None:
        raise ValueError(f"digits has no split {split!r}; it has train and test")
    return tuple(sorted(int(i) for i in chosen))
