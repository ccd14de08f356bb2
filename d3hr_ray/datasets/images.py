"""Images to train on or to test with: pixels, labels, and what the labels mean; in memory, or ready to be loaded."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

GLANCE = (20, 10)  # classes, and images of each, that a contact sheet shows


class Loadable(Protocol):
    """Images that are known but perhaps not held: a worker loads them, or a driver a glance of them."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in label order."""

    @property
    def side(self) -> int:
        """Pixels."""

    def __len__(self) -> int: ...

    def load(self, glance: bool = False) -> "Images":
        """All of them, in a fixed order; or the first few of the first classes."""


@dataclass(frozen=True)
class Images:
    """`pixels` (N, S, S, 3) uint8; `labels` (N,) int64 into `classes`, the names in label order.

    `notes` are what people should hear of how they were read. `weights` (N,) float32 are what each counts in a loss,
    above 0; None: all alike.
    """

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    weights: np.ndarray | None = None

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
        """Changes when any pixel, label or class name does; not with weights."""
        return digest_of(self.side, self.labels, self.classes, [self.pixels])

    def load(self, glance: bool = False) -> "Images":
        """Themselves."""
        return self.take(glance_rows(self.labels)) if glance else self

    def take(self, rows: np.ndarray) -> "Images":
        """Some of the images, in the order given."""
        weights = None if self.weights is None else self.weights[rows]
        return Images(self.pixels[rows], self.labels[rows], self.classes, weights=weights)


def digest_of(side: int, labels: np.ndarray, classes: tuple[str, ...], parts: Iterable[np.ndarray]) -> str:
    """The digest of images whose pixels come in parts, of which no two need be held at a time."""
    hasher = hashlib.sha256(repr(((len(labels), side, side, 3), classes)).encode())
    hasher.update(labels.tobytes())
    for pixels in parts:
        hasher.update(np.ascontiguousarray(pixels).data)
    return hasher.hexdigest()[:16]


def assemble(
    side: int,
    labels: np.ndarray,
    classes: tuple[str, ...],
    parts: Iterable[np.ndarray],
    places: np.ndarray | None = None,
) -> Images:
    """Images whose pixels come in parts, copied to their `places` (N,) as they come: held once, not twice."""
    pixels, at = np.empty((len(labels), side, side, 3), np.uint8), 0
    for part in parts:
        to = slice(at, at + len(part))
        pixels[to if places is None else places[to]] = part
        at += len(part)
    return Images(pixels, labels, classes)


def glance_rows(labels: np.ndarray) -> np.ndarray:
    """The rows that a glance shows, in order."""
    classes, each = GLANCE
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[:each] for k in range(classes)]))


def nbytes(images: Loadable) -> int:
    """What they take in memory."""
    return len(images) * images.side**2 * 3
