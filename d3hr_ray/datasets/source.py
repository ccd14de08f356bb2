"""What every image source offers: a scan that lists all images without decoding any, and reads by listing entry.

To add one, write its class beside imagefolder.py, name it in config/data.py (Format) and open it in listing.py
(open_source); detect.py tells it from the others without --format.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.fs as pafs
from PIL import Image

from d3hr_ray.datasets.decode import FORMATS

Image.init()  # registers the suffixes of all formats
IMAGE_SUFFIXES = tuple(sorted(suffix for suffix, form in Image.EXTENSION.items() if form in FORMATS))
# Formats of pictures that are not decoded: whoever has such files should hear of it.
UNREAD_SUFFIXES = (".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".dng")

# One row per image: its unique id, its class as the source names it, and where its bytes are. For a tar, start and
# length are a byte range; for Parquet, start is a row. `version` is another number when the file was written again.
SCAN_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("class_name", pa.dictionary(pa.int32(), pa.string())),
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("start", pa.int64()),
        ("length", pa.int64()),
        ("version", pa.int64()),
    ]
)

READERS = 16  # threads, where storage is remote and each file waits for an answer
Passed = Mapping[str, tuple[int, str]]  # what was not taken (".gif", "dead links") => how many, and the first's name
GENERIC = ("train", "training", "val", "validation", "test", "images", "data")  # folders that name no dataset


@dataclass(frozen=True)
class Scan:
    """What a source, or one file or folder of it, holds: `images` as SCAN_SCHEMA, and what people should hear.

    `passed` counts what was not taken as an image, by suffix or by a plural such as "dead links". `notes` are whole
    sentences. Small beside the images: a scan travels from Ray tasks.
    """

    images: pa.Table
    passed: Passed = field(default_factory=dict)
    notes: tuple[str, ...] = ()


# Applies a function to every item, keeping order: threads here, Ray tasks on a cluster.
Mapper = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]


class Source(Protocol):
    """A listable, readable set of images. Implementations are small frozen dataclasses that pickle."""

    def scan(self, each: Mapper) -> Scan:
        """All images in a fixed order. Raises ValueError naming a file that cannot be used."""

    def read(self, entries: pa.Table) -> Iterator[bytes]:
        """The encoded bytes of the entries, in their order."""


def thread_map(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
    """Map in 8 threads, in order; enough for listing, which waits on storage."""
    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(function, items)


def scan_table(rows: Sequence[tuple[str, str, str, int, int]], version: int | Sequence[int] = 0) -> pa.Table:
    """Rows (image_id, class_name, file, start, length), and one version for all or one each => SCAN_SCHEMA."""
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [[]] * 5
    columns.append([version] * len(rows) if isinstance(version, int) else version)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCAN_SCHEMA, strict=True)], schema=SCAN_SCHEMA)


def join_scans(scans: Iterable[Scan]) -> Scan:
    """The scans of a source's parts, in order => the source's: images joined, what was passed over added up."""
    parts = list(scans)
    passed: dict[str, tuple[int, str]] = {}
    for part in parts:
        add_passed(passed, part.passed)
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    return Scan(pa.concat_tables([part.images for part in parts]).unify_dictionaries(), passed, notes)


def add_passed(passed: dict[str, tuple[int, str]], more: Passed) -> None:
    """Count more of what was passed over."""
    for kind, (count, first) in more.items():
        before = passed.get(kind, (0, first))
        passed[kind] = (before[0] + count, before[1])


def summary(passed: Passed) -> Iterator[str]:
    """'3 .gif (first: a/x.gif)' for each kind of what was passed over, the most frequent first."""
    for kind, (count, first) in sorted(passed.items(), key=lambda item: (-item[1][0], item[0])):
        yield f"{count:,} {kind} (first: {first})"


def data_name(uri: str) -> str:
    """What pages and cards call a dataset: the last folder of its path that is not called train, data or the like."""
    parts = [part for part in uri.partition("?")[0].rpartition("://")[2].split("/") if part]
    return next((part for part in reversed(parts) if part.lower() not in GENERIC), "".join(parts[-1:]))


def suffix_of(name: str) -> str:
    """What a file that is no image is counted under: its suffix in lower case."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem else "without suffix"


def file_version(info: pafs.FileInfo, content: bytes = b"") -> int:
    """A number that changes when a file is written again: of its size, its modification time and, maybe, a digest.

    A copy of a file has another version, too: a version that differs says that the bytes must be compared.
    """
    stamp = f"{info.size} {info.mtime_ns} ".encode()
    return int.from_bytes(hashlib.blake2b(stamp + content, digest_size=8).digest(), "little") >> 1
