"""Small sets of idx files, as MNIST and its kin are distributed."""

import gzip
import struct
from pathlib import Path

import numpy as np

SIZES = {"train": 20, "t10k": 10}


def pack(array: np.ndarray, kind: int = 8) -> bytes:
    """An array of bytes as an idx file."""
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def pixels(count: int, shape: tuple[int, int] = (4, 3)) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def write_split(folder: Path, split: str, count: int, packed: bool = False, labels: np.ndarray | None = None) -> None:
    """Images and labels of a split; labels are 0 to 9 over and over."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(count) % 10 if labels is None else labels
    for kind, array in (("images-idx3", pixels(count)), ("labels-idx1", labels.astype(np.uint8))):
        data = pack(array)
        path = folder / f"{split}-{kind}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data) if packed else data)


def write_set(folder: Path, packed: bool = False) -> str:
    for split, count in SIZES.items():
        write_split(folder, split, count, packed)
    return str(folder)
