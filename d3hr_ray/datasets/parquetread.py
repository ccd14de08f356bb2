"""Reading Parquet: the images of any rows of any files, in any order, in bounded memory."""

import base64
import binascii
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from d3hr_ray.datasets.columns import Columns, image_column
from d3hr_ray.datasets.decode import MAX_BYTES
from d3hr_ray.datasets.rowfiles import read_named
from d3hr_ray.filesystems import patient, resolve

READ_BYTES = 8 << 20  # at once: pyarrow would read a row group whole, which may be as big as the file
READ_ROWS = 1  # a dictionary page may hold one huge image for many rows, which any batch of them would copy out
HELD_BYTES = 1 << 29  # of images that are read before their turn
Place = tuple[str, int]  # a file and a row of it


def open_parquet(uri: str, file: str) -> pq.ParquetFile:
    """A Parquet file. Raises ValueError if it is cut off, or has columns that could run code."""
    filesystem, root = resolve(uri)
    try:
        raw = filesystem.open_input_file(f"{root}/{file}")
        _refuse_extensions(pq.read_metadata(raw), f"{uri}/{file}")
        return pq.ParquetFile(raw, buffer_size=READ_BYTES)
    except pa.ArrowInvalid as error:
        raise ValueError(f"--data {uri}/{file}: not a whole Parquet file ({error}); copy it again") from error


def _refuse_extensions(metadata: pq.FileMetaData, where: str) -> None:
    """Raise ValueError for columns of Arrow extension types, before pyarrow makes them.

    Ray registers one whose values are pickles, which run code when they are looked at; images need none.
    """
    try:
        schema = base64.b64decode((metadata.metadata or {}).get(b"ARROW:schema", b""))
    except binascii.Error as error:
        raise ValueError(f"--data {where}: its Arrow schema cannot be read ({error}); write it again") from error
    if b"ARROW:extension:name" in schema:
        raise ValueError(f"--data {where}: has columns of an Arrow extension type; write plain bytes and labels")


def read_places(uri: str, columns: Columns, asked: list[Place]) -> Iterator[bytes]:
    """The images at the places asked for, in that order, each row group read once if what has to wait fits."""
    reader: Iterator[bytes] = iter(())

    @patient
    def read_next(turn: int) -> bytes:
        nonlocal reader
        data = next(reader, None)  # None before the first pass, and after one that is over or that storage broke off
        if data is None:
            reader = _read_once(uri, columns, asked[turn:])
            data = next(reader)
        return data

    for turn in range(len(asked)):
        yield read_next(turn)


def _read_once(uri: str, columns: Columns, asked: list[Place]) -> Iterator[bytes]:
    """One pass over the files => as many of the images as HELD_BYTES allow, in the order asked: 1 or more.

    An image that comes before its turn waits. If those that wait are too many, the last ones are left to another pass.
    """
    turns: dict[Place, list[int]] = {}
    for turn, place in enumerate(asked):
        turns.setdefault(place, []).append(turn)
    waiting: dict[int, bytes] = {}
    now, end, held = 0, len(asked), 0
    for place, data in _read_sorted(uri, columns, sorted(turns)):
        waiting |= {turn: data for turn in turns[place] if turn < end}
        held += len(data) * sum(turn < end for turn in turns[place])
        while now in waiting:
            held -= len(waiting[now])
            yield waiting.pop(now)
            now += 1
        while held > HELD_BYTES:
            end = max(waiting)
            held -= len(waiting.pop(end))
        if now == end:
            return


def _read_sorted(uri: str, columns: Columns, places: list[Place]) -> Iterator[tuple[Place, bytes]]:
    """Places, ascending and each once => each with its image."""
    for file, group in groupby(places, key=lambda place: place[0]):
        own = list(group)
        for place, value in zip(own, _read_rows(uri, file, columns, [row for _, row in own]), strict=True):
            yield place, _image(uri, file, value)


def _image(uri: str, file: str, value: Any) -> bytes:
    """A cell => its image's bytes, from the file that it names if it has none. Null is empty: decoding rejects it."""
    if isinstance(value, str):
        return read_named(uri, file, value)
    data: bytes | None = value.get("bytes") if isinstance(value, dict) else value
    if data is None and isinstance(value, dict):
        return read_named(uri, file, value.get("path"))
    return (data or b"")[: MAX_BYTES + 1]


def _read_rows(uri: str, file: str, columns: Columns, wanted: list[int]) -> Iterator[Any]:
    """Cells of one file, by ascending rows."""
    parquet = open_parquet(uri, file)
    column = image_column(parquet.schema_arrow, columns, f"{uri}/{file}")
    first, at = 0, 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        end = next((i for i in range(at, len(wanted)) if wanted[i] >= first + rows), len(wanted))
        if end > at:
            yield from _read_group(parquet, group, column, [row - first for row in wanted[at:end]])
        first, at = first + rows, end


def _read_group(parquet: pq.ParquetFile, group: int, column: str, wanted: list[int]) -> Iterator[Any]:
    """Cells of one row group, which is streamed."""
    first, at = 0, 0
    for batch in parquet.iter_batches(READ_ROWS, row_groups=[group], columns=[column]):
        while at < len(wanted) and wanted[at] < first + len(batch):
            yield batch[column][wanted[at] - first].as_py()
            at += 1
        if at == len(wanted):
            return
        first += len(batch)
    raise ValueError(f"row group {group} has fewer {column!r} than rows; copy the file again")
