"""Parquet with images: Hugging Face's image struct {bytes, path}, bytes or paths, and a label column or folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from d3hr_ray.datasets.columns import BY_NAME, Columns, image_column, read_labels
from d3hr_ray.datasets.files import list_files
from d3hr_ray.datasets.parquetread import open_parquet, read_places
from d3hr_ray.datasets.rowfiles import list_named, version_of
from d3hr_ray.datasets.sidecars import without_sidecars
from d3hr_ray.datasets.source import SCAN_SCHEMA, Mapper, Scan, file_version, join_scans, scan_table
from d3hr_ray.filesystems import patient, resolve

SUFFIXES = (".parquet", ".pq", ".parq")
SIDECARS = "files of metadata"


@dataclass(frozen=True)
class ParquetImages:
    """`files` are Parquet names under `uri`, in order; `columns` are those that the user names.

    `beside` are files that say something of the images, and hold none.
    """

    uri: str
    files: tuple[str, ...]
    columns: Columns = BY_NAME
    beside: tuple[str, ...] = ()

    def scan(self, each: Mapper) -> Scan:
        """Rows in file order; only the label column is read. Raises ValueError naming the file that lacks one."""
        scans = each(partial(_scan_file, self.uri, self.columns), self.files)
        passed = {SIDECARS: (len(self.beside), self.beside[0])} if self.beside else {}
        return join_scans([*scans, Scan(scan_table([]), passed)])

    def read(self, entries: pa.Table) -> Iterator[bytes]:
        """Reads each row group that holds an entry once, in whatever order they come."""
        places = zip(entries["file"].to_pylist(), entries["start"].to_pylist(), strict=True)
        return read_places(self.uri, self.columns, list(places))


@patient
def _scan_file(uri: str, columns: Columns, file: str) -> Scan:
    parquet, where = open_parquet(uri, file), f"{uri}/{file}"
    column = image_column(parquet.schema_arrow, columns, where)
    labels = read_labels(parquet, columns, where)
    rows, own = len(labels), _version(uri, file)
    named = list_named(parquet, column, uri, file, rows)
    images = pa.table(
        [
            pc.binary_join_element_wise(file, pa.array(range(rows)).cast(pa.string()), "#"),
            labels.dictionary_encode().cast(SCAN_SCHEMA.field("class_name").type),
            pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([file])),
            pa.array(range(rows), pa.int64()),
            # No length of a row, but it lets the listing's digest see a file that was replaced.
            pa.array([found.size for found in named], pa.int64()),
            pa.array([version_of(own, named)] * rows, pa.int64()),
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


def list_parquet(uri: str, columns: Columns = BY_NAME) -> ParquetImages | None:
    """The Parquet files of a folder, of a pattern such as DIR/train-*.parquet, or a single file; None without any."""
    found = list_files(uri, SUFFIXES)
    if found is None:
        return None
    folder, names = found
    files = without_sidecars(names) or names
    return ParquetImages(folder, tuple(files), columns, tuple(name for name in names if name not in files))
