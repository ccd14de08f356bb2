"""A run folder on any filesystem that pyarrow reaches (local path, s3://, gs://): atomic writes, done marks.

Local files are written under .tmp/ and renamed; object stores show an object only when it is complete.
So a reader never sees half a file, and what exists is whole.
"""

import contextlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from d3hr_ray.filesystems import absolute, patient, resolve, split_query

S = TypeVar("S")
T = TypeVar("T")
AT_ONCE = 16  # requests to remote storage
MARKS, TEMP = ".done", ".tmp"  # folders of done marks, and of files that are being written

__all__ = ["Store", "absolute", "resolve"]


@dataclass
class Written:
    """Bytes that this process has written to any store."""

    total: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, size: int) -> None:
        """Count a file, from any thread."""
        with self.lock:
            self.total += size


written = Written()


@dataclass(frozen=True)
class Store:
    """The files under one root. Names are relative, with forward slashes. Cheap to pickle and to make."""

    uri: str

    def at(self, name: str) -> "Store":
        """A folder within this one, or one above it (`..`), on the same storage: a URI's query stays at its end."""
        base, query = split_query(self.uri)
        for part in name.split("/"):
            base = base.rpartition("/")[0] if part == ".." else f"{base}/{part}"
        return Store(base + query)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return split_query(self.uri)[0].rpartition("/")[2]

    def _open(self, name: str) -> tuple[pafs.FileSystem, str]:
        filesystem, root = resolve(self.uri)
        return filesystem, f"{root.rstrip('/')}/{name}" if name else root

    @patient
    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a whole file at once or not at all, making its folders. Raises OSError naming the file."""
        filesystem, path = self._open(name)
        local = isinstance(filesystem, pafs.LocalFileSystem)
        target = self._open(f"{TEMP}/{uuid.uuid4().hex}")[1] if local else path
        try:
            if local:
                for file in (path, target):
                    os.makedirs(os.path.dirname(file), exist_ok=True)
            with filesystem.open_output_stream(target) as stream:
                stream.write(data)
            written.add(len(data))
            if local:
                _sync(target)
                os.replace(target, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                if local:
                    os.unlink(target)
            raise OSError(f"cannot write {path}: {error}; free space or give another --out, then run again") from error

    def write_many(self, files: Mapping[str, bytes]) -> None:
        """Write whole files side by side where storage is remote and each one waits for an answer."""
        self.side_by_side(lambda file: self.write_bytes(*file), list(files.items()))

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """Whole files in the order asked, read side by side where storage is remote. Raises as `read_bytes` does."""
        return self.side_by_side(self.read_bytes, names)

    def side_by_side(self, work: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """work(item) for each, in order; several at once where storage is remote and each one waits for an answer."""
        with ThreadPoolExecutor(AT_ONCE if "://" in self.uri else 1) as pool:
            return list(pool.map(work, items))

    @patient
    def read_bytes(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError if it is not there."""
        filesystem, path = self._open(name)
        with filesystem.open_input_stream(path) as stream:
            data: bytes = stream.read()
            return data

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON value, indented for people."""
        self.write_bytes(name, (json.dumps(value, indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Read a JSON value. Raises ValueError naming the file if it is not JSON."""
        try:
            return json.loads(self.read_bytes(name))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.uri}/{name} is not valid JSON ({error}); restore it or use --overwrite") from error

    def write_table(self, name: str, table: pa.Table, group: int | None = None) -> None:
        """Write one Parquet file, with `group` rows to a row group if it is read in parts; equal tables, equal bytes.

        Lists of numbers get no dictionary: without one, latents are read four times as fast and written twice as fast.
        """
        sink = pa.BufferOutputStream()
        plain = [f.name for f in table.schema if not pa.types.is_nested(f.type)]
        pq.write_table(table, sink, compression="zstd", use_dictionary=plain, row_group_size=group)
        self.write_bytes(name, sink.getvalue())

    def write_csv(self, name: str, table: pa.Table) -> None:
        """Write one CSV file, for people and spreadsheets."""
        sink = pa.BufferOutputStream()
        pacsv.write_csv(table, sink)
        self.write_bytes(name, sink.getvalue())

    def read_csv(self, name: str, words: Collection[str]) -> pa.Table:
        """Read what `write_csv` wrote; columns of `words` are no numbers, whatever they look like."""
        types = pacsv.ConvertOptions(column_types=dict.fromkeys(words, pa.string()))
        return pacsv.read_csv(pa.BufferReader(self.read_bytes(name)), convert_options=types)

    @patient
    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read one Parquet file, or every Parquet file of a folder in the order of their names."""
        filesystem, path = self._open(name)
        if filesystem.get_file_info(path).type == pafs.FileType.File:
            try:
                return pq.ParquetFile(filesystem.open_input_file(path)).read(columns=columns)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{path} is not a whole Parquet file ({error}); delete it and run again") from error
        names = [n for n in self.list(name) if n.endswith(".parquet")]
        if not names:
            raise FileNotFoundError(f"{self.uri}/{name} holds no Parquet file")
        return self.read_tables([f"{name}/{n}" for n in names], columns)

    def read_tables(self, names: Sequence[str], columns: list[str] | None = None) -> pa.Table:
        """Parquet files as one table, in the order asked, read side by side where storage is remote."""
        return pa.concat_tables(self.side_by_side(lambda name: self.read_table(name, columns), names))

    @patient
    def read_rows(self, name: str, columns: list[str], column: str, among: range) -> pa.Table:
        """Rows of one Parquet file whose integer `column` is in a range; row groups that have none are not read."""
        filesystem, path = self._open(name)
        within = [(column, ">=", among.start), (column, "<", among.stop)]
        try:
            return pq.read_table(path, filesystem=filesystem, columns=columns, filters=within, partitioning=None)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a whole Parquet file ({error}); delete it and run again") from error

    @patient
    def column_names(self, name: str) -> list[str]:
        """Columns of one Parquet file, from its footer."""
        filesystem, path = self._open(name)
        names: list[str] = pq.ParquetFile(filesystem.open_input_file(path)).schema_arrow.names
        return names

    @patient
    def least_and_most(self, name: str, column: str) -> tuple[int, int]:
        """The range of an integer column of one Parquet file that has rows, from its footer."""
        filesystem, path = self._open(name)
        footer = pq.read_metadata(filesystem.open_input_file(path))
        groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        found = [chunk.statistics for chunk in chunks if chunk.path_in_schema == column]
        return min(s.min for s in found), max(s.max for s in found)

    @patient
    def exists(self, name: str) -> bool:
        """True for a file or folder that is there."""
        filesystem, path = self._open(name)
        return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)

    @patient
    def folders(self) -> list[str]:
        """Sorted names of the folders directly under the root."""
        filesystem, path = self._open("")
        infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(i.base_name for i in infos if i.type == pafs.FileType.Directory)

    @patient
    def list(self, name: str = "", recursive: bool = False) -> list[str]:
        """Sorted names of the files in a folder, relative to it; none if there is no such folder."""
        filesystem, path = self._open(name)
        selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
        infos = filesystem.get_file_info(selector)
        names = [i.path[len(path.rstrip("/")) + 1 :] for i in infos if i.type == pafs.FileType.File]
        return sorted(names)

    def files(self, folder: str) -> set[str]:
        """Names of the files in a folder, as this store takes them: one listing, where many are asked for."""
        return {f"{folder}/{name}" for name in self.list(folder)}

    @patient
    def delete(self, name: str) -> None:
        """Delete a file or a whole folder; nothing happens if it is not there."""
        filesystem, path = self._open(name)
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)

    def mark(self, stage: str, unit: int, **counts: int) -> None:
        """Record that a unit of a stage is complete, with its counts, in the name of an empty file."""
        words = [f"{unit:06d}", *(f"{k}={v}" for k, v in sorted(counts.items()))]
        self.write_bytes(f"{MARKS}/{stage}/{'.'.join(words)}", b"")

    def unmark(self, stage: str, units: Set[int]) -> None:
        """Take back the marks of some units, which are made again."""
        for name in self.list(f"{MARKS}/{stage}"):
            if int(name.partition(".")[0]) in units:
                self.delete(f"{MARKS}/{stage}/{name}")

    def marks(self, stage: str) -> dict[int, dict[str, int]]:
        """Unit => counts for every complete unit of a stage; one listing, no file is opened."""
        done = {}
        for name in self.list(f"{MARKS}/{stage}"):
            unit, *counts = name.split(".")
            done[int(unit)] = {k: int(v) for k, v in (c.split("=") for c in counts)}
        return done


def _sync(path: str) -> None:
    """Flush a local file to disk, so that a done mark never outlives the data it vouches for."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
