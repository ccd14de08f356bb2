"""ImageNet's own layout: ROOT/<class>/**/<image>."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.fs as pafs

from d3hr_ray.datasets.decode import MAX_BYTES
from d3hr_ray.datasets.source import IMAGE_SUFFIXES, Mapper, Scan, add_passed, join_scans, scan_table, suffix_of
from d3hr_ray.filesystems import patient, resolve

READERS = 16
NO_FILE = -1  # the length of a pipe or socket with an image's name: reading it could wait for ever


@dataclass(frozen=True)
class ImageFolder:
    """A folder with one folder per class, on any filesystem. `strict`: every folder is a class and must hold images."""

    uri: str
    strict: bool = True

    def scan(self, each: Mapper) -> Scan:
        """Images sorted by class folder, then path. Files without an image suffix are not images."""
        names = _class_folders(self.uri)
        if not names:
            raise ValueError(f"--data {self.uri}: no class folders in it; the layout is FOLDER/<class>/<image>")
        return join_scans(each(partial(_scan_class, self.uri, self.strict), names))

    def read(self, entries: pa.Table) -> Iterator[bytes]:
        """One file per image, read ahead by threads where storage is remote and each read waits."""
        read = partial(_read_file, self.uri)
        rows = (entries["image_id"].to_pylist(), entries["length"].to_pylist())
        if "://" not in self.uri:
            yield from map(read, *rows)
            return
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(read, *rows)


@patient
def _class_folders(uri: str) -> list[str]:
    filesystem, root = resolve(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(root))
    names = sorted(i.base_name for i in infos if i.type == pafs.FileType.Directory)
    return [n for n in names if not n.startswith(".")]


@patient
def _read_file(uri: str, image_id: str, length: int) -> bytes:
    if length == NO_FILE:
        return b""
    filesystem, root = resolve(uri)
    with filesystem.open_input_stream(f"{root}/{image_id}") as stream:
        data: bytes = stream.read(MAX_BYTES + 1)
        return data


@patient
def _scan_class(uri: str, strict: bool, name: str) -> Scan:
    filesystem, root = resolve(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(f"{root}/{name}", recursive=True))
    files = [i for i in infos if i.type != pafs.FileType.Directory and not i.base_name.startswith(".")]
    images = [i for i in files if _is_image(i.base_name)]
    if strict and not images:
        raise ValueError(f"--data {uri}: class folder {name!r} holds no image; fill it, remove it, or choose --classes")
    start = len(root.rstrip("/")) + 1
    passed: dict[str, tuple[int, str]] = {}
    for path in sorted(i.path for i in files if not _is_image(i.base_name)):
        add_passed(passed, {suffix_of(path): (1, path[start:])})
    # The size is no place, but it lets the listing's digest see an image that was replaced.
    sizes = ((i, (i.size or 0) if i.type == pafs.FileType.File else NO_FILE) for i in images)
    rows = sorted((i.path[start:], name, "", 0, size, i.mtime_ns or 0) for i, size in sizes)
    return Scan(scan_table([row[:5] for row in rows], [row[5] for row in rows]), passed)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)
