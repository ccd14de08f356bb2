"""An endless, seeded, resumable stream of training images from any source, in bounded memory.

Position p of the stream is the same image on every run: epochs are shuffled by (seed, epoch), as whole shards first and
then image by image within a window of shards. So a rerun can start at any position and reads one window at most again.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pyarrow as pa

from d3hr_ray.config import RunError
from d3hr_ray.datasets.decode import RejectedImage, decode
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.numerics.seeds import generator
from d3hr_ray.pretraining.state import State, Tell, silent

SHARD, WINDOW = 64, 64  # images per shard and shards per window: 4,096 encoded images, 0.5 GB of ImageNet, are held
CACHE_BYTES = 1 << 28  # decoded sets up to this size are kept whole
RUN = 8  # images in a row of a spread: each costs the reading of a row group, in Parquet
READ = 256  # images of such a set that are read and decoded at a time


@dataclass(frozen=True)
class Batch:
    """`pixels` (B, S, S, 3) uint8, `labels` (B,) int64 and `indices` (B,): the images' rows in the listing."""

    pixels: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


@dataclass
class ImageStream:
    """The share of a listing that belongs to worker `rank` of `world`; `rejected` grows as broken images are met."""

    listing: Listing
    size: int
    seed: int
    rank: int = 0
    world: int = 1
    rejected: dict[str, str] = field(default_factory=dict)
    tell: Tell = silent

    def __post_init__(self) -> None:
        self._labels = np.asarray(self.listing.entries["label"].to_pylist(), np.int64)
        shards = [np.arange(at, min(at + SHARD, len(self))) for at in range(0, len(self), SHARD)]
        self._shards = shards[self.rank :: self.world]
        if not self._shards:
            raise ValueError(f"--workers {self.world} is more than the data's {len(shards)} shards of {SHARD} images")
        self._cache: tuple[np.ndarray, np.ndarray] | None = None  # the decoded set, if it is small

    def __len__(self) -> int:
        return len(self.listing)

    @property
    def small(self) -> bool:
        """Whether the decoded set fits into memory."""
        return len(self) * self.size**2 * 3 <= CACHE_BYTES

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Batches from number `start` on, without end; the next one is made while this one is used."""
        positions = self._positions(start * batch_size)
        made = self._read(positions, batch_size)
        with ThreadPoolExecutor(1) as pool:
            upcoming = pool.submit(next, made)
            while True:
                ready = upcoming.result()
                upcoming = pool.submit(next, made)
                yield ready

    def fixed(self, batch_size: int, rows: np.ndarray) -> Iterator[Batch]:
        """Those of some rows of the listing, ascending, that can be read, once each, whoever asks: for statistics.

        Raises RunError if none can.
        """
        any_sound = False
        for at in range(0, len(rows), batch_size):
            indices = rows[at : at + batch_size]
            pixels, sound = self._pixels(indices, self._encoded(indices))
            if sound.any():
                any_sound = True
                yield Batch(pixels[sound], self._labels[indices[sound]], indices[sound])
        if not any_sound:
            raise self._none_of(len(rows))

    def spread(self, count: int) -> np.ndarray:
        """At most `count` rows: the listing's first, if they show every class, as shuffled data do; else even runs."""
        first = np.arange(min(count, len(self)))
        if len(np.unique(self._labels[first])) == len(np.unique(self._labels)):
            return first
        starts = np.linspace(0, max(0, len(self) - RUN), max(1, len(first) // RUN)).round().astype(int)
        return np.unique((starts[:, None] + np.arange(RUN)).clip(max=len(self) - 1))

    def _positions(self, start: int) -> Iterator[np.ndarray]:
        """Windows of listing rows in training order, from position `start` on."""
        epoch, skip = divmod(start, sum(map(len, self._shards)))
        while True:
            order = generator("shards", self.seed, epoch, self.rank).permutation(len(self._shards))
            for first in range(0, len(order), WINDOW):
                window = np.concatenate([self._shards[i] for i in order[first : first + WINDOW]])
                window = generator("window", self.seed, epoch, self.rank, first).permutation(window)
                if skip < len(window):
                    yield window[skip:]
                skip = max(0, skip - len(window))
            epoch += 1

    def _read(self, windows: Iterator[np.ndarray], batch_size: int) -> Iterator[Batch]:
        """Windows => batches of one size; a batch may span two windows or epochs."""
        stream = ((row, data) for window in windows for row, data in zip(window, self._encoded(window), strict=True))
        while True:
            rows, data = zip(*islice(stream, batch_size), strict=True)
            yield self._batch(np.asarray(rows), list(data))

    def _encoded(self, indices: np.ndarray) -> list[bytes]:
        """The files' bytes in the order of `indices`, read in the source's order; empty where pixels are cached."""
        if self.small:
            return [b""] * len(indices)
        rows = np.sort(indices)
        data = self.listing.source.read(self.listing.entries.take(pa.array(rows)))
        found = dict(zip(rows.tolist(), data, strict=True))
        return [found[i] for i in indices.tolist()]

    def _batch(self, indices: np.ndarray, data: list[bytes]) -> Batch:
        """A broken image's place is taken by a sound one of the same batch, so that positions never shift."""
        pixels, sound = self._pixels(indices, data)
        if not sound.any():
            raise self._none_of(len(indices))
        chosen = np.where(sound, np.arange(len(sound)), np.resize(np.flatnonzero(sound), len(sound)))
        return Batch(pixels[chosen], self._labels[indices[chosen]], indices[chosen])

    def _pixels(self, indices: np.ndarray, data: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the listing => their pixels (N, S, S, 3), and whether each could be read (N,)."""
        if not self.small:
            return self._decode(indices.tolist(), data)
        self._cache = self._cache or self._read_all()
        pixels, sound = self._cache
        return pixels[indices], sound[indices]

    def _read_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Every image's pixels (N, S, S, 3), and whether it could be read (N,)."""
        parts = []
        for at in range(0, len(self), READ):
            entries = self.listing.entries.slice(at, READ)
            parts.append(self._decode(range(at, at + len(entries)), list(self.listing.source.read(entries))))
            self.tell(reading(at + len(entries), len(self)))
        pixels, sound = (np.concatenate(part) for part in zip(*parts, strict=True))
        return pixels, sound

    def _decode(self, rows: Sequence[int], data: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Encoded images => pixels (N, S, S, 3), and whether each could be read (N,)."""
        pixels = np.zeros((len(rows), self.size, self.size, 3), np.uint8)
        sound = np.ones(len(rows), bool)

        def place(i: int) -> None:
            try:
                pixels[i] = decode(data[i], self.size, self.listing.look)
            except RejectedImage as error:
                sound[i] = False
                self.rejected[self.listing.entries["image_id"][rows[i]].as_py()] = str(error)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(place, range(len(rows))))
        return pixels, sound

    def _none_of(self, count: int) -> RunError:
        image_id, reason = min(self.rejected.items())
        return RunError(f"pretraining: none of {count} images can be read; see {image_id} ({reason})")


def reading(done: int, total: int) -> State:
    """That images of a set are read and decoded."""
    return State(f"reading {total:,} images", min(done, total), total, "image")
