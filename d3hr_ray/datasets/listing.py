"""A listing: every image of a source once, in a fixed order, with its label and the place of its bytes.

Shards are fixed runs of a listing, so what a shard holds depends on the data alone, never on who reads it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets import digits
from d3hr_ray.datasets.classes import ClassMap, build_class_map, imagenet_wnids
from d3hr_ray.datasets.columns import BY_NAME, Columns
from d3hr_ray.datasets.detect import detect
from d3hr_ray.datasets.files import get_kind, is_pattern
from d3hr_ray.datasets.folders import escaped, is_utf8
from d3hr_ray.datasets.idx import list_idx
from d3hr_ray.datasets.imagefolder import ImageFolder
from d3hr_ray.datasets.imagenet import nfc
from d3hr_ray.datasets.look import SHOWN, Look
from d3hr_ray.datasets.named import open_named
from d3hr_ray.datasets.parquet import list_parquet
from d3hr_ray.datasets.source import Mapper, Source, scan_table, summary, thread_map
from d3hr_ray.datasets.webdataset import list_tars
from d3hr_ray.filesystems import absolute, patient

OTHER_FILES = {  # the way on from files that are not read
    ".csv": "of a list of images docs/own-data.md makes a Parquet file: Labels in a CSV",
    ".zip": "unzip it and give the folder",
    ".7z": "unpack it and give the folder",
}


class ClassMismatch(ValueError):
    """The source's classes are not those asked for. `found` are the source's."""

    def __init__(self, message: str, found: Sequence[str]) -> None:
        super().__init__(message)
        self.found = sorted(found)


@dataclass(frozen=True)
class Listing:
    """`entries`: image_id, label (int32), file, start, length, version; `classes`: what the labels mean; `look`: how an
    evaluation or a pretraining reads the images (a run reads them by its fidelity).

    `notes` are lines for people: what was passed over, and what the source says of itself.
    """

    source: Source
    entries: pa.Table
    classes: ClassMap
    notes: tuple[str, ...] = ()
    look: Look = SHOWN

    def __len__(self) -> int:
        return len(self.entries)

    def shards(self, size: int) -> list[pa.Table]:
        """Consecutive runs of at most `size` entries."""
        return [self.entries.slice(at, size) for at in range(0, len(self), size)]

    def counts(self) -> list[int]:
        """Images per label."""
        found = {r["values"]: r["counts"] for r in pc.value_counts(self.entries["label"]).to_pylist()}
        return [found.get(label, 0) for label in range(len(self.classes))]

    def rows(self) -> list[np.ndarray]:
        """Of each label, its rows in `entries`, ascending."""
        labels = self.entries["label"].to_numpy()
        return np.split(np.argsort(labels, kind="stable"), np.cumsum(self.counts())[:-1])

    @property
    def digest(self) -> str:
        """Changes when any image is added, removed, moved or relabelled."""
        hasher = hashlib.sha256()
        for column in ("image_id", "label", "start", "length"):
            for batch in pa.table([self.entries[column]], [column]).to_batches(max_chunksize=65536):
                hasher.update("\n".join(map(str, batch.column(0).to_pylist())).encode())
        return hasher.hexdigest()[:16]


@patient
def open_source(data: DataConfig) -> Source:
    """Find the source that `data.format` names, or detect it. Raises ValueError if there is none."""
    if not is_utf8(data.uri):
        raise ValueError(f"--data {escaped(data.uri)}: the path is not UTF-8; rename it, or reach it by a link")
    if (named := open_named(data)) is not None:
        return named
    if data.format == "digits":
        raise ValueError(f"--data {data.uri}: --format digits has {' and '.join(digits.NAMES)}")
    uri = absolute(data.uri)
    pattern = is_pattern(uri)
    kind = pafs.FileType.Unknown if pattern else get_kind(uri)
    if kind == pafs.FileType.NotFound:
        raise ValueError(f"--data {data.uri}: no such file or folder")
    form = detect(uri) if data.format == "auto" else data.format
    columns = Columns(data.image_column, data.label_column)
    if form != "parquet" and columns != BY_NAME:
        flag = "--image-column" if columns.image else "--label-column"
        raise ValueError(
            f"--data {data.uri}: {flag} is for Parquet, and this is {form}; leave it out, or give --format parquet if "
            "there are such files, too"
        )
    finders: dict[str, Callable[[str], Source | None]] = {
        "webdataset": list_tars,
        "parquet": partial(list_parquet, columns=columns),
        "idx": list_idx,
    }
    if form in finders:
        source = finders[form](uri)
        if source is None:
            raise ValueError(f"--data {data.uri}: no {form} file in it; check the path or --format")
        return source
    if kind != pafs.FileType.Directory:
        found = "no .tar, .parquet or idx file matches" if pattern else "not a .tar, .parquet or idx file"
        cure = OTHER_FILES.get(uri[uri.rfind(".") :].lower(), "give one of these or an image folder")
        raise ValueError(f"--data {data.uri}: {found}; {cure}")
    return ImageFolder(uri, not data.classes, data.class_depth)


@patient
def is_parquet(data: DataConfig) -> bool:
    """Whether `data.format` says Parquet, or detects it."""
    if data.format != "auto":
        return data.format == "parquet"
    return open_named(data) is None and detect(absolute(data.uri)) == "parquet"


def list_images(
    data: DataConfig, num_classes: int, model_names: Sequence[str] | None, each: Mapper = thread_map
) -> Listing:
    """Scan the source, match its classes and keep the images asked for.

    Raises ValueError for an empty source, ClassMismatch for a class that it does not have.
    """
    source = open_source(data)
    found_there = source.scan(each)
    passed = ", ".join(summary(found_there.passed))
    notes = (*found_there.notes, *([f"--data {data.uri}: not taken as images: {passed}"] if passed else []))
    scan = found_there.images.combine_chunks()
    if len(scan) == 0:
        raise ValueError("; ".join([f"--data {data.uri}: no image in it", *notes]))
    names = scan["class_name"].combine_chunks()
    composed = [nfc(name) for name in names.dictionary.to_pylist()]
    found = list(dict.fromkeys(composed))
    try:
        classes = build_class_map(found, data.classes, num_classes, model_names, data.class_ids)
    except ValueError as error:
        raise ClassMismatch(str(error), found) from error
    label_of = {name: label for label, name in enumerate(classes.sources)}
    lookup = pa.array([label_of.get(name) for name in composed], pa.int32())
    scan = scan.set_column(1, "label", lookup.take(names.indices))
    scan = scan.filter(pc.is_valid(scan["label"]))
    if data.limit_per_class is not None:
        scan = scan.filter(pa.array(first_of_each(scan["label"].to_pylist(), data.limit_per_class)))
    _check_unique(scan["image_id"], data.uri)
    return Listing(source, scan, classes, notes)


def model_listing(data: DataConfig, num_classes: int, model_names: Sequence[str] | None) -> Listing:
    """No image, and the model's own classes (those of `data.classes`): for methods that need no dataset."""
    found = model_names or (imagenet_wnids() if num_classes == 1000 else [str(i) for i in range(num_classes)])
    classes = build_class_map(found, data.classes, num_classes, model_names, data.class_ids)
    empty = scan_table([])
    return Listing(digits.Digits("digits"), empty.set_column(1, "label", pa.array([], pa.int32())), classes)


def require_variance(listing: Listing) -> None:
    """Raise ValueError if a class has fewer than 2 images: its variance is undefined."""
    for source, count in zip(listing.classes.sources, listing.counts(), strict=True):
        if count < 2:
            raise ValueError(
                f"class {source!r} has {count} image; a variance needs 2: add images or leave it out of --classes"
            )


def require_images(listing: Listing, count: int) -> None:
    """Raise ValueError if a class has fewer than `count` images to pick."""
    for source, there in zip(listing.classes.sources, listing.counts(), strict=True):
        if there < count:
            raise ValueError(f"class {source!r} has {there} images, fewer than --ipc {count}; give {there} at most")


def first_of_each(labels: list[int], limit: int) -> Iterator[bool]:
    """True for the first `limit` images of each label."""
    seen: dict[int, int] = {}
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        yield seen[label] <= limit


def _check_unique(ids: pa.ChunkedArray, uri: str) -> None:
    if len(pc.unique(ids)) < len(ids):
        double = next(r["values"] for r in pc.value_counts(ids).to_pylist() if r["counts"] > 1)
        raise ValueError(f"--data {uri}: image id {double!r} comes twice")
