"""Tars as byte ranges: what lies where in one, or in one that lies within another, read from its headers alone.

A tar must be uncompressed. One that is cut off is refused, because what is lost cannot be counted.
"""

import io
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, cast

import pyarrow as pa

MAX_HEADER_BYTES = 1 << 20  # of one extended header; tarfile would take any length that a header claims
MAX_LINKS = 8  # that lead from one to the next
# Bytes read at each header. What lies between two is an image, mostly larger: a local disk gives a page as fast as a
# byte, remote storage takes as long for either.
LOCAL_AHEAD, REMOTE_AHEAD = 1 << 13, 1 << 16
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
BROKEN = (tarfile.TarError, EOFError, UnicodeError, RecursionError)


@dataclass(frozen=True)
class Span:
    """A tar: a whole file, or `size` bytes of it from `start` on, where a tar named `inner` lies."""

    file: str
    inner: str = ""
    start: int = 0
    size: int | None = None

    @property
    def name(self) -> str:
        """For people, and the first part of its images' ids."""
        return f"{self.file}/{self.inner}" if self.inner else self.file

    @property
    def stem(self) -> str:
        """The tar's own name without folders and suffix."""
        return posixpath.basename(self.inner or self.file).partition(".")[0]


@dataclass(frozen=True)
class Member:
    """A member and the range of its bytes in the file. `link` is what it stands for; without `is_file` it has none."""

    name: str
    start: int
    size: int
    is_file: bool = True
    link: str | None = None


class Tar:
    """A tar within an open file."""

    def __init__(self, raw: pa.NativeFile, span: Span, remote: bool) -> None:
        self._start = span.start
        size = raw.size() - span.start if span.size is None else span.size
        self._stream = _Headers(_Window(raw, span.start, size), REMOTE_AHEAD if remote else LOCAL_AHEAD)

    def members(self) -> Iterator[Member]:
        """All but folders, by their names as they unpack, in the tar's order. Raises ValueError if it is not whole."""
        with _opened(self._stream) as tar:
            for info in _forward(tar):
                if info.isdir():
                    continue
                name = posixpath.normpath(info.name)
                link = posixpath.normpath(info.linkname) if info.islnk() else None
                if info.issym():
                    link = posixpath.normpath(posixpath.join(posixpath.dirname(name), info.linkname))
                yield Member(name, self._start + info.offset_data, info.size, info.isreg(), link)
            _check_end(self._stream, tar.offset)

    def read(self, member: Member) -> bytes:
        """A small member's bytes."""
        self._stream.seek(member.start - self._start)
        return self._stream.read(member.size)

    def cure(self) -> str | None:
        """What unpacks a compressed file that is called .tar."""
        self._stream.seek(0)
        start = self._stream.read(8)
        return next((cure for magic, cure in COMPRESSED.items() if start.startswith(magic)), None)


def followed(member: Member, named: Mapping[str, Member]) -> Member | None:
    """The file that a member is, or that its links lead to within the tar; None if it is none."""
    for _ in range(MAX_LINKS):
        if member.is_file:
            return member
        if member.link is None or member.link not in named:
            return None
        member = named[member.link]
    return None


def _opened(stream: io.BufferedReader) -> tarfile.TarFile:
    stream.seek(0)
    # Names in other encodings come as lone surrogates.
    return tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:", encoding="utf-8", errors="surrogateescape")


class _Window(io.RawIOBase):
    """A range of a file, as a file."""

    def __init__(self, raw: pa.NativeFile, start: int, size: int) -> None:
        self._raw, self._start, self._size, self._at = raw, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise tarfile.ReadError("a header leads to before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), max(0, self._size - self._at))
        self._raw.seek(min(self._start + self._at, self._raw.size()))
        data = self._raw.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


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
    while (member := tar.next()) is not None:
        vars(tar)["members"].clear()  # it would keep them all
        if member.size < 0 or member.offset <= last:
            raise tarfile.ReadError(f"the header of {member.name!r} leads backwards")
        if member.issparse():
            raise tarfile.ReadError(f"{member.name!r} is a sparse file")
        last = member.offset
        yield member


def _check_end(stream: io.BufferedReader, offset: int) -> None:
    """A whole tar ends in zero blocks and nothing else; data behind them would be lost in silence."""
    stream.seek(offset)
    end = stream.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise ValueError("the tar has no end mark, so it is cut off; copy or pack it again")
    while block := stream.read(MAX_HEADER_BYTES):
        if any(block):
            raise ValueError("data follows the tar's end mark; unpack joined tars and pack them one by one")
