"""Parquet with images: Hugging Face's image struct {bytes, path} or plain bytes, and a label column."""

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from d3hr_ray.datasets.decode import MAX_BYTES
from d3hr_ray.datasets.files import list_files
from d3hr_ray.datasets.imagenet import distinct
from d3hr_ray.datasets.source import SCAN_SCHEMA, Mapper, Scan, file_version, join_scans
from d3hr_ray.filesystems import patient, resolve

SUFFIXES = (".parquet", ".pq", ".parq")
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
READ_ROWS = 1  # a dictionary page may hold one huge image for many rows, which any batch of them would copy out
HELD_BYTES = 1 << 29  # of images that are read before their turn
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label", "target", "class_name", "wnid")


@dataclass(frozen=True)
class ParquetImages:
    """`files` are Parquet names under `uri`, in order."""

    uri: str
    files: tuple[str, ...]

    def scan(self, each: Mapper) -> Scan:
        """Rows in file order; only the label column is read. Raises ValueError naming the file that lacks one."""
        return join_scans(each(partial(_scan_file, self.uri), self.files))

    def read(self, entries: pa.Table) -> Iterator[bytes]:
        """Reads each row group that holds an entry once, in whatever order they come, if what has to wait fits."""
        asked = list(zip(entries["file"].to_pylist(), entries["start"].to_pylist(), strict=True))
        while asked:
            done = 0
            for data in _read_once(self.uri, asked):
                yield data
                done += 1
            asked = asked[done:]


def _open(uri: str, file: str) -> pq.ParquetFile:
    filesystem, root = resolve(uri)
    try:
        raw = filesystem.open_input_file(f"{root}/{file}")
        _refuse_extensions(pq.read_metadata(raw), f"{uri}/{file}")
        return pq.ParquetFile(raw)
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


@patient
def _scan_file(uri: str, file: str) -> Scan:
    parquet = _open(uri, file)
    where, schema = f"{uri}/{file}", parquet.schema_arrow
    _image_column(schema, where)
    column = next((c for c in LABEL_COLUMNS if c in schema.names), None)
    if column is None:
        raise ValueError(
            f"--data {where}: no label column; call it one of {', '.join(LABEL_COLUMNS)} "
            f"(the file has {', '.join(schema.names)})"
        )
    labels = parquet.read(columns=[column])[column].combine_chunks()
    if labels.null_count:
        row = labels.is_null().index(True).as_py()
        raise ValueError(f"--data {where}: row {row} has no {column!r}; every image needs a label")
    kind = labels.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"--data {where}: label column {column!r} is {kind}; it must hold integers or strings")
    names = _class_names(schema, column, where)
    if names is not None and pa.types.is_integer(kind):
        outside = pc.or_(pc.less(labels, 0), pc.greater_equal(labels, len(names)))
        if pc.any(outside).as_py():
            raise ValueError(f"--data {where}: a {column!r} lies outside its {len(names)} class names")
        labels = pa.array(names).take(labels)
    rows = parquet.metadata.num_rows
    if rows != len(labels):
        raise ValueError(f"--data {where}: claims {rows} rows and has {len(labels)}; copy it again")
    ids = pc.binary_join_element_wise(file, pa.array(range(rows)).cast(pa.string()), "#")
    files = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([file]))
    images = pa.table(
        [
            ids,
            labels.cast(pa.string()).dictionary_encode().cast(SCAN_SCHEMA.field("class_name").type),
            files,
            pa.array(range(rows), pa.int64()),
            pa.array([0] * rows, pa.int64()),
            pa.array([_version(uri, file)] * rows, pa.int64()),
        ],
        schema=SCAN_SCHEMA,
    )
    return Scan(images)


def _version(uri: str, file: str) -> int:
    """Of a file, by its footer, too, where the places and sizes of all its pages stand."""
    filesystem, root = resolve(uri)
    info = filesystem.get_file_info(f"{root}/{file}")
    with filesystem.open_input_file(f"{root}/{file}") as raw:
        raw.seek(info.size - 8)
        length = int.from_bytes(raw.read(4), "little")
        raw.seek(max(0, info.size - 8 - length))
        return file_version(info, raw.read(length))


def _image_column(schema: pa.Schema, where: str) -> str:
    for name in IMAGE_COLUMNS:
        if name in schema.names:
            kind = schema.field(name).type
            if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind = kind.field("bytes").type
            if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                return name
    raise ValueError(
        f"--data {where}: no image column; it must be bytes or Hugging Face's struct with bytes, and be called one of "
        f"{', '.join(IMAGE_COLUMNS)} (the file has {', '.join(schema.names)})"
    )


def _class_names(schema: pa.Schema, column: str, where: str) -> list[str] | None:
    """Hugging Face's ClassLabel names, if the file's metadata holds them; those that come twice are kept apart."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    try:
        features: dict[str, Any] = json.loads(metadata)["info"]["features"]
        names = features[column].get("names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--data {where}: its huggingface metadata cannot be read ({error!r}); drop or mend it"
        ) from error
    return distinct(names) if names else None


def _read_once(uri: str, asked: list[tuple[str, int]]) -> Iterator[bytes]:
    """One pass over the files => as many of the places (file, row) as HELD_BYTES allow, in the order asked: 1 or more.

    An image that comes before its turn waits. If those that wait are too many, the last ones are left to another pass.
    """
    turns: dict[tuple[str, int], list[int]] = {}
    for turn, place in enumerate(asked):
        turns.setdefault(place, []).append(turn)
    waiting: dict[int, bytes] = {}
    now, end, held = 0, len(asked), 0
    for place, data in _read_sorted(uri, sorted(turns)):
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


def _read_sorted(uri: str, places: list[tuple[str, int]]) -> Iterator[tuple[tuple[str, int], bytes]]:
    """Places (file, row), ascending and each once => each with its image."""
    for file, group in groupby(places, key=lambda place: place[0]):
        own = list(group)
        yield from zip(own, _read_rows(uri, file, [row for _, row in own]), strict=True)


def _read_rows(uri: str, file: str, wanted: list[int]) -> Iterator[bytes]:
    """Rows of one file, ascending. A null image is empty bytes, which decoding rejects."""
    parquet = _open(uri, file)
    column = _image_column(parquet.schema_arrow, f"{uri}/{file}")
    first, at = 0, 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        end = next((i for i in range(at, len(wanted)) if wanted[i] >= first + rows), len(wanted))
        if end > at:
            yield from _read_group(parquet, group, column, [row - first for row in wanted[at:end]])
        first, at = first + rows, end


def _read_group(parquet: pq.ParquetFile, group: int, column: str, wanted: list[int]) -> Iterator[bytes]:
    """Rows of one row group, which is streamed: it may be as big as the file."""
    first, at = 0, 0
    for batch in parquet.iter_batches(READ_ROWS, row_groups=[group], columns=[column]):
        while at < len(wanted) and wanted[at] < first + len(batch):
            value = batch[column][wanted[at] - first].as_py()
            yield ((value.get("bytes") if isinstance(value, dict) else value) or b"")[: MAX_BYTES + 1]
            at += 1
        if at == len(wanted):
            return
        first += len(batch)
    raise ValueError(f"row group {group} has fewer {column!r} than rows; copy the file again")


def list_parquet(uri: str) -> ParquetImages | None:
    """The Parquet files of a folder, of a pattern such as DIR/train-*.parquet, or a single file; None without any."""
    found = list_files(uri, SUFFIXES)
    return ParquetImages(*found) if found else None
