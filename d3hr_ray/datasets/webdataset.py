"""WebDataset shards: tar files whose members share a key, such as 0001.jpg + 0001.cls or 0001.json.

A scan reads headers and labels only and records where each image's bytes lie, so that any run of images can later be
read on its own. The tar must be uncompressed; one that is cut off is refused, because what is lost cannot be counted.
"""

import io
import json
import shlex
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import IO, Any, cast

import pyarrow as pa

from d3hr_ray.datasets.decode import MAX_BYTES
from d3hr_ray.datasets.files import list_files
from d3hr_ray.datasets.source import (
    IMAGE_SUFFIXES,
    UNREAD_SUFFIXES,
    Mapper,
    Scan,
    file_version,
    join_scans,
    scan_table,
)
from d3hr_ray.filesystems import patient, resolve

TAR = ".tar"
CURES = {  # what makes a .tar of a compressed one
    ".tar.gz": "gunzip",
    ".tgz": "gunzip",
    ".tar.bz2": "bunzip2",
    ".tar.xz": "unxz",
    ".tar.zst": "unzstd",
}
TARS = (TAR, *CURES)
SUFFIXES = tuple(s.removeprefix(".") for s in (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES))
JSON_KEYS = ("label", "cls", "class", "class_id", "class_name")
MAX_LABEL_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20  # of one extended header; tarfile would take any length that a header claims
READ_AHEAD = 1 << 16


@dataclass(frozen=True)
class WebDataset:
    """`files` are tar names under `uri`, in order."""

    uri: str
    files: tuple[str, ...]

    def scan(self, each: Mapper) -> Scan:
        """Images in tar order. Raises ValueError naming the tar that is cut off, and the sample without a label."""
        return join_scans(each(partial(_scan_tar, self.uri), self.files))

    def read(self, entries: pa.Table) -> Iterator[bytes]:
        """Byte ranges of the tars; entries in order make it one forward pass."""
        filesystem, root = resolve(self.uri)
        rows = zip(*(entries[c].to_pylist() for c in ("file", "start", "length")), strict=True)
        for file, group in groupby(rows, key=lambda row: row[0]):
            with filesystem.open_input_file(f"{root}/{file}") as stream:
                for _, start, length in group:
                    stream.seek(start)
                    yield stream.read(min(length, MAX_BYTES + 1))


@patient
def _scan_tar(uri: str, file: str) -> Scan:
    filesystem, root = resolve(uri)
    where = f"{uri.rstrip('/')}/{file}" if file else uri
    with filesystem.open_input_file(f"{root}/{file}") as raw:
        stream = _Headers(cast(Any, pa.PythonFile(raw, mode="r")), READ_AHEAD)
        try:
            with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as tar:
                rows = list(_samples(tar, file, where))
                _check_end(stream, tar.offset, where)
        except (tarfile.TarError, EOFError, UnicodeError, RecursionError) as error:
            raise ValueError(
                f"--data {where}: not a whole uncompressed tar ({error}); it may be cut off: copy or pack it again"
            ) from error
    return Scan(scan_table(rows, file_version(filesystem.get_file_info(f"{root}/{file}"))))


class _Headers(io.BufferedReader):
    """A tar's stream that gives no piece longer than a header may be."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read `size` bytes. Raises tarfile.ReadError if that is too many, or no number."""
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size)


def _forward(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members. Raises tarfile.ReadError where a header leads backwards, which tarfile follows for ever."""
    last = -1
    for member in tar:
        if member.size < 0 or member.offset <= last:
            raise tarfile.ReadError(f"the header of {member.name!r} leads backwards")
        if member.issparse():
            raise tarfile.ReadError(f"{member.name!r} is a sparse file")
        last = member.offset
        yield member


def _samples(tar: tarfile.TarFile, file: str, where: str) -> Iterator[tuple[str, str, str, int, int]]:
    """(image_id, class_name, file, start, length) of every sample that holds an image."""
    seen: set[str] = set()
    members = (m for m in _forward(tar) if m.isfile() and not m.name.rpartition("/")[2].startswith("."))
    for key, group in groupby(members, key=lambda m: _split(m.name)[0]):
        image, label = None, None
        for member in group:
            suffix = _split(member.name)[1]
            if suffix in SUFFIXES:
                if image is not None:
                    raise ValueError(f"--data {where}: sample {key!r} has two images; give each its own key")
                image = member
            elif suffix in ("cls", "json") and label is None:
                label = _label(tar, member, where)
        if image is None:
            continue
        if label is None:
            raise ValueError(f"--data {where}: sample {key!r} has no .cls and no .json with a label")
        if key in seen:
            raise ValueError(f"--data {where}: key {key!r} comes twice; members of a sample must be adjacent")
        seen.add(key)
        yield f"{file}/{key}", label, file, image.offset_data, image.size


def _split(name: str) -> tuple[str, str]:
    """Member name => (key, suffix): the key ends at the base name's first dot, as WebDataset has it."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> str | None:
    stream = tar.extractfile(member)
    if stream is None or member.size > MAX_LABEL_BYTES:
        raise ValueError(f"--data {where}: label {member.name!r} is {member.size} bytes long")
    text = stream.read()
    try:
        if member.name.lower().endswith(".cls"):
            return text.decode().strip() or None
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--data {where}: label {member.name!r} cannot be read ({error})") from error
    found = [value[k] for k in JSON_KEYS if k in value] if isinstance(value, dict) else [value]
    return str(found[0]) if found and isinstance(found[0], int | str) else None


def _check_end(stream: IO[bytes], offset: int, where: str) -> None:
    """A whole tar ends in zero blocks and nothing else; data behind them would be lost in silence."""
    stream.seek(offset)
    end = stream.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise ValueError(f"--data {where}: the tar has no end mark, so it is cut off; copy or pack it again")
    while block := stream.read(1 << 20):
        if any(block):
            raise ValueError(
                f"--data {where}: data follows the tar's end mark; unpack joined tars and pack them one by one"
            )


def list_tars(uri: str) -> WebDataset | None:
    """The tars of a folder, of a pattern such as DIR/train-*.tar, or a single tar; None if there are none."""
    found = list_files(uri, TARS)
    if found is None:
        return None
    for name in found[1]:
        if not name.lower().endswith(TAR):
            cure = next(cure for suffix, cure in CURES.items() if name.lower().endswith(suffix))
            raise ValueError(
                f"--data {uri}: {name} is compressed, and an image in it cannot be read on its own; "
                f"unpack it: {cure} {shlex.quote(name)}"
            )
    return WebDataset(*found)
