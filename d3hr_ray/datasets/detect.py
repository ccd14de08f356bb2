"""Which format a source has, from a few of its names: a whole listing would take minutes on object storage."""

from collections.abc import Iterable

import pyarrow.fs as pafs

from d3hr_ray.config import Format
from d3hr_ray.datasets import idxfolders, parquet, webdataset
from d3hr_ray.datasets.files import find_files, get_kind, is_pattern
from d3hr_ray.datasets.folders import Entry, list_folder
from d3hr_ray.datasets.sidecars import without_sidecars
from d3hr_ray.datasets.source import IMAGE_SUFFIXES
from d3hr_ray.filesystems import split_query

SUFFIXES: dict[Format, tuple[str, ...]] = {
    "webdataset": webdataset.TARS,
    "parquet": parquet.SUFFIXES,
    "idx": idxfolders.SUFFIXES,
}
LOOKED_AT = 5  # folders


def detect(uri: str) -> Format:
    """The format of a file, a pattern or a folder.

    Folders of images, two or more, win over a tar or Parquet file beside them: it is what they were unpacked from, or
    something said of them. A single one may hold the files that the rows of a Parquet file name.
    """
    if is_pattern(uri):
        return _by_suffix(find_files(uri, sum(SUFFIXES.values(), ()))[1]) or "imagefolder"
    if get_kind(uri) != pafs.FileType.Directory:
        return _by_suffix([split_query(uri)[0]]) or "imagefolder"
    here = [entry for entry in list_folder(uri) if not entry.is_hidden]
    folders = [entry.name for entry in here if entry.is_folder][:LOOKED_AT]
    inside = {folder: list_folder(uri, folder) for folder in folders}
    if sum(_has_images(uri, folder, entries) for folder, entries in inside.items()) > 1:
        return "imagefolder"
    raw = idxfolders.raw_folders(uri, inside)
    names = [_files(entries) for entries in (here, *inside.values(), *raw.values())]
    return next((form for form in map(_by_suffix, names) if form), "imagefolder")


def _has_images(uri: str, folder: str, entries: list[Entry]) -> bool:
    """Whether images lie in a folder, or in its first one, as they do in Tiny-ImageNet's."""
    inner = next((entry.name for entry in entries if entry.is_folder and not entry.is_hidden), None)
    names = _files(entries) or (_files(list_folder(uri, f"{folder}/{inner}")) if inner else [])
    return any(name.lower().endswith(IMAGE_SUFFIXES) for name in names)


def _files(entries: Iterable[Entry]) -> list[str]:
    return without_sidecars([e.name for e in entries if not (e.is_folder or e.is_hidden)])


def _by_suffix(names: Iterable[str]) -> Format | None:
    return next(
        (form for name in names for form, suffixes in SUFFIXES.items() if name.lower().endswith(suffixes)), None
    )
