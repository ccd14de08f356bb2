"""MNIST-like sets of idx files: grey images and labels as unsigned bytes, named by the set's own class names."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from d3hr_ray.datasets.idxclasses import is_transposed, recognise
from d3hr_ray.datasets.idxfiles import read_idx
from d3hr_ray.datasets.idxfolders import find_split, join
from d3hr_ray.datasets.source import SCAN_SCHEMA, Mapper, Scan, file_version, join_scans
from d3hr_ray.filesystems import patient, resolve, split_query


@dataclass(frozen=True)
class IdxImages:
    """One split of one set: the names of its two files under `uri`. `prefix` is what the set puts before its splits."""

    uri: str
    images: str
    labels: str
    prefix: str = ""

    @property
    def images_uri(self) -> str:
        """A --data that names this split."""
        return join(self.uri, self.images)

    def scan(self, each: Mapper) -> Scan:
        """Images in file order; both files are read whole, so that what is wrong with them is said at the start.

        Raises ValueError naming the file that is no whole idx file, that has other images than labels, or a label
        that the set does not have.
        """
        return join_scans(each(_scan, [self]))

    def read(self, entries: pa.Table) -> Iterator[bytes]:
        """PGM files of the stored bytes, upright. Raises ValueError for images that are there no more."""
        images, rows = read_idx(self.uri, self.images, 3), entries["start"].to_pylist()
        if rows and max(rows) >= len(images):
            raise ValueError(
                f"--data {self.uri}: {self.images} had more than {len(images):,} images when it was listed; start again"
            )
        _, height, width = images.shape
        if is_transposed(self.prefix):
            images, height, width = images.transpose(0, 2, 1), width, height
        header = f"P5 {width} {height} 255\n".encode()
        for row in rows:
            yield header + images[row].tobytes()


@patient
def _scan(source: IdxImages) -> Scan:
    images, labels = read_idx(source.uri, source.images, 3), read_idx(source.uri, source.labels, 1)
    if len(images) != len(labels):
        raise ValueError(
            f"--data {source.uri}: {source.images} has {len(images):,} images and {source.labels} {len(labels):,} "
            "labels, so they do not belong together; copy both again"
        )
    rows, pixels = len(images), images.shape[1] * images.shape[2]
    name = source.images.removesuffix(".gz")  # the same ids, be it packed or not
    table = [
        pc.binary_join_element_wise(name, pa.array(range(rows)).cast(pa.string()), "#"),
        _class_names(source, labels),
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([source.images])),
        pa.array(range(rows), pa.int64()),
        pa.array(np.full(rows, pixels, np.int64)),
        pa.array(np.full(rows, _version(source), np.int64)),
    ]
    return Scan(pa.table(table, schema=SCAN_SCHEMA))


def _class_names(source: IdxImages, labels: np.ndarray) -> pa.DictionaryArray:
    known = recognise(labels, source.prefix, split_query(source.uri)[0])
    outside = ~np.isin(labels, list(known.classes))
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(
            f"--data {source.uri}: {source.labels} gives image {row} the label {labels[row]}, and the classes of "
            f"{known.title} are {min(known.classes)} to {max(known.classes)}; copy it again, or, if it is a set with "
            "other classes, put its name before those of its files: NAME-train-images-idx3-ubyte"
        )
    there = sorted(set(labels.tolist()))
    places = np.zeros(256, np.int32)
    places[there] = np.arange(len(there))
    names = pa.array([known.classes[label] for label in there], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(places[labels]), names)


def _version(source: IdxImages) -> int:
    filesystem, root = resolve(source.uri)
    images, labels = filesystem.get_file_info([f"{root}/{source.images}", f"{root}/{source.labels}"])
    return file_version(images) ^ file_version(labels)


def list_idx(uri: str, test: bool = False) -> IdxImages | None:
    """The split that a file or pattern names, or a folder's: the training split, or the `test` one; None without any.

    Raises ValueError as `find_split` does.
    """
    found = find_split(uri, test)
    return IdxImages(*found) if found else None
