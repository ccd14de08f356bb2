"""Reading on CPU tasks: a shard's entries => its pixels, what was accepted and what was rejected.

Between tasks a shard travels as one row of plain bytes, which Ray Data can neither split nor regroup.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from d3hr_ray.datasets.decode import RejectedImage, decode_seen
from d3hr_ray.datasets.look import COLUMNS, SHOWN, Look
from d3hr_ray.datasets.source import Source
from d3hr_ray.numerics.seeds import digest

REJECTED_SCHEMA = pa.schema([("image_id", pa.string()), ("label", pa.int32()), ("reason", pa.string())])
KEY = pa.field("key", pa.int64())  # names an image by its encoded bytes
MESSAGE_SCHEMA = pa.schema(
    [
        ("shard", pa.int64()),
        ("side", pa.int64()),
        ("pixels", pa.large_binary()),
        ("accepted", pa.binary()),
        ("rejected", pa.binary()),
        ("error", pa.string()),
    ]
)


def shard_unit(shard: int, entries: pa.Table) -> dict[str, Any]:
    """A shard's entries => the row that ReadShard takes, without the whole set's dictionary of file names."""
    at = entries.schema.get_field_index("file")
    return {"shard": shard, "entries": _pack(entries.set_column(at, "file", entries["file"].cast(pa.string())))}


@dataclass(frozen=True)
class ReadShard:
    """CPU task: a shard's entries => its pixels, and what was rejected and why."""

    source: Source
    size: int
    look: Look = SHOWN

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row {shard, entries} => {shard, pixels, accepted, rejected, error}."""
        row = batch.to_pylist()[0]
        try:
            pixels, accepted, rejected = read_shard(self.source, _unpack(row["entries"]), self.size, self.look)
        except (OSError, ValueError) as error:
            first = _unpack(row["entries"])["image_id"][0]
            return _message(row["shard"], error=f"cannot read the images from {first} on: {error}")
        return _message(row["shard"], pixels, _pack(accepted), _pack(rejected))


def read_shard(
    source: Source, entries: pa.Table, size: int, look: Look = SHOWN
) -> tuple[np.ndarray, pa.Table, pa.Table]:
    """Entries => pixels (N, size, size, 3) uint8, the accepted entries, with what was seen in them (look.COLUMNS), and
    the rejected ones, all with their keys.

    Keys name an image by its encoded bytes, so that the same image has the same noise in every file format.
    """
    rows = entries.select(["image_id", "label", "probe"]).to_pylist()
    pixels, accepted, rejected = [], [], []
    for row, data in zip(rows, source.read(entries), strict=True):
        try:
            image, seen = decode_seen(data, size, look)
            pixels.append(image)
            accepted.append(row | {"key": digest(data)} | seen.plain())
        except RejectedImage as error:
            own = {"image_id": row["image_id"], "label": row["label"]}
            rejected.append(own | {"reason": str(error), "key": digest(data)})
    schema = entries.select(["image_id", "label", "probe"]).schema.append(KEY)
    for name in COLUMNS:
        schema = schema.append(pa.field(name, pa.int64()))
    stacked = np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.uint8)
    return stacked, pa.Table.from_pylist(accepted, schema), pa.Table.from_pylist(rejected, REJECTED_SCHEMA.append(KEY))


def content_of(*images: pa.Table) -> int:
    """Tables of image_id and key => one number for the bytes of all these images, in whatever order they come."""
    rows = [
        row for table in images for row in zip(table["image_id"].to_pylist(), table["key"].to_pylist(), strict=True)
    ]
    return digest(repr(sorted(rows)).encode())


def read_keys(unit: tuple[Source, bytes]) -> pa.Table:
    """A source and some entries, as shard_unit packs them => their image_id and key, of their bytes as they are now."""
    source, packed = unit
    entries = _unpack(packed)
    keys = pa.array([digest(data) for data in source.read(entries)], pa.int64())
    return pa.table({"image_id": entries["image_id"], "key": keys})


def read_content(unit: tuple[Source, bytes]) -> int:
    """A source and a shard's entries, as shard_unit packs them => the content of their images as they are now."""
    return content_of(read_keys(unit))


def _pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _unpack(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def _message(
    shard: int,
    pixels: np.ndarray | None = None,
    accepted: bytes | None = None,
    rejected: bytes | None = None,
    error: str | None = None,
) -> pa.Table:
    side = 0 if pixels is None else pixels.shape[1]
    data = b"" if pixels is None else pixels.tobytes()
    values = [[shard], [side], [data], [accepted], [rejected], [error]]
    return pa.table(values, schema=MESSAGE_SCHEMA)


def open_message(batch: pa.Table) -> tuple[np.ndarray, pa.Table, pa.Table]:
    """What ReadShard made => pixels (N, H, W, 3) uint8 without a copy, accepted and rejected entries."""
    side = batch["side"][0].as_py()
    pixels = np.frombuffer(batch["pixels"][0].as_buffer(), np.uint8).reshape(-1, side, side, 3)
    return pixels, _unpack(batch["accepted"][0].as_py()), _unpack(batch["rejected"][0].as_py())
