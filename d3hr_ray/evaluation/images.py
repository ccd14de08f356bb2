"""Images in memory, ready to train on or to test with: pixels, labels, and what the labels mean."""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Images:
    """`pixels` (N, S, S, 3) uint8; `labels` (N,) int64 into `classes`, the names in label order."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def side(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[1])

    @property
    def ipc(self) -> int:
        """Images per class: of the smallest class."""
        return int(np.bincount(self.labels, minlength=len(self.classes)).min())

    @property
    def digest(self) -> str:
        """Changes when any pixel, label or class name does."""
        hasher = hashlib.sha256(repr((self.pixels.shape, self.classes)).encode())
        hasher.update(self.labels.tobytes())
        hasher.update(np.ascontiguousarray(self.pixels).data)
        return hasher.hexdigest()[:16]

    def take(self, rows: np.ndarray) -> "Images":
        """Some of the images, in the order given."""
        return Images(self.pixels[rows], self.labels[rows], self.classes)
