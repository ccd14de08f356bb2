"""Images of a listing, real ones or a set that others made, known by their entries until they are read."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from d3hr_ray.config import RunError
from d3hr_ray.datasets.decode import RejectedImage, decode_seen
from d3hr_ray.datasets.images import Images, assemble, digest_of, glance_rows
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.look import SHOWN, Look, Seen
from d3hr_ray.datasets.source import Mapper, Source, thread_map

READ_AT_ONCE, READ_BYTES = 512, 20 << 20  # images, or fewer of large ones
SMALL = 64  # pixels: data of less is tested on whole images, as its papers do; 28 // 7 * 8 would enlarge Fashion-MNIST


@dataclass(frozen=True)
class Reading:
    """Entries of a listing as images of `side` pixels: loading raises RunError if one of them is no image.

    A test set that loses images is another test set. `entries` stand as they are read, each file once and front to
    back; `places` (N,) says where each goes, as it stands if None. `context`: the field's test transform, the centre of
    images that are resized to side // 7 * 8 (224: 256); below 64 pixels, images as they are.
    """

    source: Source
    entries: pa.Table
    classes: tuple[str, ...]
    side: int
    look: Look = SHOWN
    context: bool = False
    places: np.ndarray | None = None

    @staticmethod
    def of(listing: Listing, classes: tuple[str, ...], side: int, rows: np.ndarray | None = None) -> "Reading":
        """Some images of a listing in the order of `rows`, all if None; `classes` names its labels."""
        if rows is None:
            return Reading(listing.source, listing.entries, classes, side, listing.look)
        places = np.argsort(rows, kind="stable")
        entries = _some(listing.entries, rows[places])
        return Reading(listing.source, entries, classes, side, listing.look, places=places)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64, known without reading an image."""
        read: np.ndarray = self.entries["label"].to_numpy().astype(np.int64)
        return read if self.places is None else read[np.argsort(self.places)]

    def load(self, glance: bool = False, each: Mapper = thread_map) -> Images:
        """Read them, in parts by `each`."""
        if glance:
            rows = glance_rows(self.labels)
            read = rows if self.places is None else np.argsort(self.places)[rows]
            return replace(self, entries=_some(self.entries, read), places=None).load()
        met: list[dict[str, int]] = []
        images = assemble(self.side, self.labels, self.classes, self._parts(each, met), self.places)
        return replace(images, notes=self._describe(met))

    def survey(self) -> tuple[str, tuple[str, ...]]:
        """The digest and the notes of the loaded images; few are held at a time if they are read in order."""
        if self.places is not None:
            images = self.load()
            return images.digest, images.notes
        met: list[dict[str, int]] = []
        return digest_of(self.side, self.labels, self.classes, self._parts(thread_map, met)), self._describe(met)

    def _describe(self, met: list[dict[str, int]]) -> tuple[str, ...]:
        return tuple(f"of {len(self):,} real images, {line}" for line in Seen.total(met).describe(self.look))

    def _parts(self, each: Mapper, met: list[dict[str, int]]) -> Iterator[np.ndarray]:
        larger = self.side // 7 * 8 if self.context and self.side >= SMALL else self.side
        size = min(READ_AT_ONCE, max(1, READ_BYTES // (self.side**2 * 3)))
        cuts = [self.entries.slice(at, size) for at in range(0, len(self), size)]
        for pixels, seen in each(_read_part, [(self.source, cut, self.side, larger, self.look) for cut in cuts]):
            met.append(seen)
            yield pixels


def _some(entries: pa.Table, rows: np.ndarray) -> pa.Table:
    """Rows of a table that name no file of other rows: a dictionary of a million files would go wherever they go."""
    taken = entries.take(rows)
    for at, field in enumerate(taken.schema):
        if pa.types.is_dictionary(field.type):
            plain = taken.column(at).cast(field.type.value_type)
            taken = taken.set_column(at, field, plain.dictionary_encode().cast(field.type))
    return taken


def _read_part(part: tuple[Source, pa.Table, int, int, Look]) -> tuple[np.ndarray, dict[str, int]]:
    source, entries, side, larger, look = part
    edge = (larger - side) // 2
    pixels, met = [], []
    for image_id, data in zip(entries["image_id"].to_pylist(), source.read(entries), strict=True):
        try:
            image, seen = decode_seen(data, larger, look)
        except RejectedImage as error:
            raise RunError(f"image {image_id}: {error}; mend or remove it") from error
        pixels.append(image[edge : edge + side, edge : edge + side])
        met.append(seen.plain())
    return np.stack(pixels), Seen.total(met).plain()
