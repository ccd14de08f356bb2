"""What every image source offers: a scan that lists all images without decoding any, and reads by listing entry."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import pyarrow as pa

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

# One row per image: its unique id, its class as the source names it, and where its bytes are. For a tar, start and
# length are a byte range; for Parquet, start is a row.
SCAN_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("class_name", pa.dictionary(pa.int32(), pa.string())),
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("start", pa.int64()),
        ("length", pa.int64()),
    ]
)

# Applies a function to every item, keeping order: threads here, Ray tasks on a cluster.
Mapper = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


class Source(Protocol):
    """A listable, readable set of images. Implementations are small frozen dataclasses that pickle."""

    def scan(self, each: Mapper) -> pa.Table:
        """All images in a fixed order, as SCAN_SCHEMA. Raises ValueError naming a file that cannot be used."""

    def read(self, entries: pa.Table) -> Iterator[bytes]:
        """The encoded bytes of the entries, in their order."""


def thread_map(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
    """Map in 8 threads, in order; enough for listing, which waits on storage."""
    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(function, items)


def scan_table(rows: Sequence[tuple[str, str, str, int, int]]) -> pa.Table:
    """Rows (image_id, class_name, file, start, length) => SCAN_SCHEMA."""
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [[]] * 5
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCAN_SCHEMA, strict=True)], schema=SCAN_SCHEMA)
