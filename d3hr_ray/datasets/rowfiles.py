"""The files that a Parquet file's rows name where they hold no bytes, as `datasets` writes an image folder.

A path is followed within the folder of the data only: neither .. nor a link leads out of it.
"""

import hashlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from d3hr_ray.datasets.columns import names_files
from d3hr_ray.datasets.decode import MAX_BYTES, NoImage
from d3hr_ray.datasets.source import file_version
from d3hr_ray.filesystems import patient, resolve

OUTSIDE = "its path leads out of the data's folder"
BYTES = object()
LONGEST = 300  # characters that are shown of a path
LONGEST_NAME = 255  # bytes of a file's name, on any filesystem: text that is longer, such as base64, is no path
SMALLEST = 60  # bytes of an image file: a row group with fewer for each row holds hardly any


@dataclass(frozen=True)
class RowFile:
    """What an image's file is listed by: its size, and a number that changes when it is written again."""

    size: int = 0
    version: int = 0


def version_of(own: int, named: Sequence[RowFile]) -> int:
    """Of a Parquet file with all that its rows name: another number when any of these is written again."""
    versions = [found.version for found in named if found.version]
    if not versions:
        return own
    return int.from_bytes(hashlib.blake2b(repr((own, versions)).encode(), digest_size=8).digest(), "little") >> 1


@patient
def read_named(uri: str, file: str, path: str | None) -> bytes:
    """The image that a row of a Parquet file names, relative to that file or absolute; NoImage if it may not be."""
    place = _place(uri, file, path) if path else None
    if place is None:
        return NoImage(OUTSIDE if path else "neither bytes nor a path")
    filesystem, _ = resolve(uri)
    if filesystem.get_file_info(place).type != pafs.FileType.File:
        return NoImage(f"the file that its path names, {path}, is not there")
    with filesystem.open_input_stream(place) as stream:
        data: bytes = stream.read(MAX_BYTES + 1)
        return data


def _place(uri: str, file: str, path: str) -> str | None:
    """Where a path leads on the data's filesystem, or None if that is outside of the data's folder."""
    filesystem, root = resolve(uri)
    parts = path.split("/")
    if ".." in parts or "\0" in path or max(len(part.encode()) for part in parts) > LONGEST_NAME:
        return None
    place = posixpath.normpath(posixpath.join(root, posixpath.dirname(file), path))
    if isinstance(filesystem, pafs.LocalFileSystem):
        root, place = os.path.realpath(root), os.path.realpath(place)
    return place if place.startswith(f"{root.rstrip('/')}/") else None


def list_named(parquet: pq.ParquetFile, column: str, uri: str, file: str, rows: int) -> list[RowFile]:
    """The files that rows without bytes name, one for each of all rows; those with bytes have none.

    Raises ValueError if one of a row group without a byte is not there or may not be read, naming the first. Beside
    rows with bytes it has none, and is rejected when it is read.
    """
    named = [group for group in range(parquet.num_row_groups) if _names_files(parquet, group, column)]
    if not named:
        return [RowFile()] * rows
    counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    if min(counts) < 0 or sum(counts) != rows:
        raise ValueError(f"--data {uri}/{file}: its row groups claim other than {rows} rows; copy it again")
    files: list[RowFile] = []
    for group, count in enumerate(counts):
        own = _files_of(parquet, group, column, uri, file) if group in named else [RowFile()] * count
        if len(own) != count:
            raise ValueError(f"--data {uri}/{file}: row group {group} has {len(own)} of {count} rows; copy it again")
        files += own
    return files


def _names_files(parquet: pq.ParquetFile, group: int, column: str) -> bool:
    """Whether rows of a group hold no bytes, by the footer: images that are there are not looked at.

    Where it keeps no statistics, a group with some bytes is taken for one with all.
    """
    if names_files(parquet.schema_arrow.field(column).type):
        return True
    found = parquet.metadata.row_group(group)
    chunks = {found.column(i).path_in_schema: found.column(i) for i in range(found.num_columns)}
    chunk = chunks.get(f"{column}.bytes")
    if chunk is None or f"{column}.path" not in chunks:
        return False
    if chunk.statistics is not None and chunk.statistics.has_null_count:
        return bool(chunk.statistics.null_count > 0)
    return bool(chunk.total_uncompressed_size < SMALLEST * found.num_rows)


def _files_of(parquet: pq.ParquetFile, group: int, column: str, uri: str, file: str) -> list[RowFile]:
    named = list(_paths(parquet, group, column))
    places = [_place(uri, file, path) if isinstance(path, str) else None for path in named]
    infos = resolve(uri)[0].get_file_info([place for place in places if place is not None])
    found = {info.path: info for info in infos if info.type == pafs.FileType.File}
    lost = [(path, place) for path, place in zip(named, places, strict=True) if place not in found]
    if lost and BYTES not in named:
        path, place = lost[0]
        why = f"is not in the data's folder {uri}" if place is None else "is not there"
        raise ValueError(
            f"--data {uri}/{file}: holds paths of images and not the images; {len(lost)} of {len(named)} cannot be "
            f"read, and the first, {_shown(path)}, {why}. Move the file to the images' folder, "
            f"or write it with their bytes; or name another column than {column!r} by --image-column"
        )
    return [RowFile(found[place].size, file_version(found[place])) if place in found else RowFile() for place in places]


def _shown(path: str | object | None) -> str:
    """A path as it is typed; of what is none, such as an image in base64, the beginning."""
    text = repr(path)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _paths(parquet: pq.ParquetFile, group: int, column: str) -> Iterator[str | object | None]:
    """What each row of a group names, BYTES where it holds the image itself. One image is in memory at a time."""
    chunks = parquet.metadata.row_group(group)
    if not chunks.num_rows:
        return
    held = [chunks.column(i) for i in range(chunks.num_columns) if chunks.column(i).path_in_schema == f"{column}.bytes"]
    none = all(chunk.is_stats_set and chunk.statistics.null_count == chunks.num_rows for chunk in held)
    wanted = [f"{column}.path"] if held and none else [column]
    for batch in parquet.iter_batches(chunks.num_rows if none else 1, row_groups=[group], columns=wanted):
        yield from map(_named, batch[column].to_pylist())


def _named(cell: Any) -> str | object | None:
    """What a cell names: text is a path."""
    if not isinstance(cell, dict):
        return cell
    return cell["path"] if cell.get("bytes") is None else BYTES
