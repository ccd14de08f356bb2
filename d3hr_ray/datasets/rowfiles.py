"""The files that a Parquet file's rows name where they hold no bytes, as `datasets` writes an image folder.

A path is followed within the folder of the data only: neither .. nor a link leads out of it.
"""

import os
import posixpath
from dataclasses import dataclass

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from d3hr_ray.datasets.columns import names_files
from d3hr_ray.datasets.decode import MAX_BYTES, NoImage
from d3hr_ray.datasets.source import file_version
from d3hr_ray.filesystems import patient, resolve

OUTSIDE, MISSING = "its path leads out of the data's folder", "the file that its path names is not there"


@dataclass(frozen=True)
class RowFile:
    """What an image's file is listed by: its size, and a number that changes when it is written again."""

    size: int = 0
    version: int = 0


@patient
def read_named(uri: str, file: str, path: str | None) -> bytes:
    """The image that a row of a Parquet file names, relative to that file or absolute; NoImage if it may not be."""
    place = _place(uri, file, path) if path else None
    if place is None:
        return NoImage(OUTSIDE if path else "neither bytes nor a path")
    filesystem, _ = resolve(uri)
    if filesystem.get_file_info(place).type != pafs.FileType.File:
        return NoImage(MISSING)
    with filesystem.open_input_stream(place) as stream:
        data: bytes = stream.read(MAX_BYTES + 1)
        return data


def _place(uri: str, file: str, path: str) -> str | None:
    """Where a path leads on the data's filesystem, or None if that is outside of the data's folder."""
    filesystem, root = resolve(uri)
    if ".." in path.split("/") or "\0" in path:
        return None
    place = posixpath.normpath(posixpath.join(root, posixpath.dirname(file), path))
    if isinstance(filesystem, pafs.LocalFileSystem):
        root, place = os.path.realpath(root), os.path.realpath(place)
    return place if place.startswith(f"{root.rstrip('/')}/") else None


def list_named(parquet: pq.ParquetFile, column: str, uri: str, file: str, rows: int) -> list[RowFile]:
    """The files that the rows of row groups without a byte name, one for each of all rows; those with bytes have none.

    Raises ValueError if one of them is not there or may not be read, naming the first.
    """
    named = [group for group in range(parquet.num_row_groups) if _has_no_bytes(parquet, group, column)]
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


def _has_no_bytes(parquet: pq.ParquetFile, group: int, column: str) -> bool:
    """Whether the footer says so: the images themselves are not looked at."""
    if names_files(parquet.schema_arrow.field(column).type):
        return True
    found = parquet.metadata.row_group(group)
    chunks = {found.column(i).path_in_schema: found.column(i) for i in range(found.num_columns)}
    chunk = chunks.get(f"{column}.bytes")
    if chunk is None or f"{column}.path" not in chunks or chunk.statistics is None:
        return False
    return bool(chunk.statistics.has_null_count and chunk.statistics.null_count == found.num_rows > 0)


def _files_of(parquet: pq.ParquetFile, group: int, column: str, uri: str, file: str) -> list[RowFile]:
    table = parquet.read_row_group(group, columns=[f"{column}.path"])
    paths = [row["path"] if row else None for row in table[column].to_pylist()]
    places = [_place(uri, file, path) if isinstance(path, str) else None for path in paths]
    infos = resolve(uri)[0].get_file_info([place for place in places if place is not None])
    found = {info.path: info for info in infos if info.type == pafs.FileType.File}
    lost = [(path, place) for path, place in zip(paths, places, strict=True) if place not in found]
    if lost:
        path, place = lost[0]
        why = f"is not in the data's folder {uri}" if place is None else "is not there"
        raise ValueError(
            f"--data {uri}/{file}: holds paths of images and not the images; {len(lost)} of {len(paths)} cannot be "
            f"read, and the first, {path!r}, {why}. Move the file to the images' folder, or write it with their bytes"
        )
    return [RowFile(found[place].size, file_version(found[place])) for place in places if place is not None]
