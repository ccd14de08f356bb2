"""What every image source offers: a scan that lists all images without decoding any, and reads by listing entry."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.fs as pafs

from d3hr_ray.filesystems import patient, resolve, split_query

# What is listed as an image. GIF and TIFF are not decoded: they are counted as rejected instead of overlooked.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff")

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


@patient
def list_files(uri: str, suffix: str) -> tuple[str, tuple[str, ...]] | None:
    """A file, a pattern in the last part of a path, or a folder => (folder, sorted names in it); None without any.

    Raises ValueError if the names tell of several splits: mixing them would leak test images.
    """
    base, query = split_query(uri)
    parent, _, last = base.rpartition("/")
    filesystem, root = resolve(uri)
    if "*" in last:
        base, root = parent, root.rpartition("/")[0]
    elif filesystem.get_file_info(root).type == pafs.FileType.File:
        return (parent + query, (last,)) if base.endswith(suffix) else None
    infos = filesystem.get_file_info(pafs.FileSelector(root, recursive="*" not in last, allow_not_found=True))
    found = (i.path[len(root.rstrip("/")) + 1 :] for i in infos if i.path.endswith(suffix))
    names = sorted(n for n in found if "*" not in last or fnmatch(n, last))
    splits = {s for n in names for s in re.findall(r"(?:^|[/_.-])(train|test|val)(?=[a-z]*[/_.-])", n.lower())}
    if len(splits) > 1:
        raise ValueError(
            f"--data {uri}: its files are of several splits ({', '.join(sorted(splits))}); name one of them with a "
            f"pattern, such as {base}/train*{suffix}"
        )
    return (base + query, tuple(names)) if names else None


def thread_map(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
    """Map in 8 threads, in order; enough for listing, which waits on storage."""
    with ThreadPoolExecutor(8) as pool:
        yield from pool.map(function, items)


def scan_table(rows: Sequence[tuple[str, str, str, int, int]]) -> pa.Table:
    """Rows (image_id, class_name, file, start, length) => SCAN_SCHEMA."""
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [[]] * 5
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCAN_SCHEMA, strict=True)], schema=SCAN_SCHEMA)
