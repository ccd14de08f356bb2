"""The idx format of MNIST and its kin: two zeros, a type, the number of sizes, the sizes, then the elements.

A file is plain or gzipped, which its first bytes tell, not its name. It is read whole, once per process.
"""

from functools import lru_cache
from threading import Lock

import numpy as np
import pyarrow as pa

from d3hr_ray.filesystems import patient, resolve

GZIP = b"\x1f\x8b"
MOST_PACKED = 1032  # bytes that gzip makes of one at most
MAX_BYTES = 2 << 30  # of one file, unpacked; the largest known, EMNIST byclass, has 0.55 GB
UNSIGNED_BYTES = 0x08
OTHER_TYPES = {0x09: "signed bytes", 0x0B: "16-bit", 0x0C: "32-bit integers", 0x0D: "floats", 0x0E: "doubles"}
MEANINGS = {1: "labels (number)", 3: "grey images (number, height, width)"}
KEPT = 4  # files per process: images and labels of two splits
_reading = Lock()  # threads read one set side by side: the first of them unpacks it


@patient
def read_idx(uri: str, file: str, sizes: int) -> np.ndarray:
    """A file of unsigned bytes => its array of `sizes` dimensions, read-only.

    Raises ValueError for another type or number of sizes, and for a file that is not whole.
    """
    filesystem, root = resolve(uri)
    info = filesystem.get_file_info(f"{root}/{file}")
    with _reading:
        return _read(uri, file, sizes, info.size, info.mtime_ns)


@lru_cache(KEPT)
def _read(uri: str, file: str, sizes: int, *written: int) -> np.ndarray:
    """`written` is another size or time when the file was written again."""
    try:
        return parse(_bytes_of(uri, file), sizes)
    except ValueError as error:
        raise ValueError(f"--data {uri}: {file} {error}") from error


def _bytes_of(uri: str, file: str) -> pa.Buffer:
    filesystem, root = resolve(uri)
    with filesystem.open_input_file(f"{root}/{file}") as raw:
        return raw.read_buffer()


def parse(packed: pa.Buffer, sizes: int) -> np.ndarray:
    """A file's bytes => its array. Raises ValueError with what is wrong, to follow the file's name."""
    stream = pa.BufferReader(packed)
    if packed[:2].to_pybytes() == GZIP:
        stream = pa.CompressedInputStream(stream, "gzip")
    try:
        _check_magic(stream.read(4), sizes)
        shape = np.frombuffer(_all_of(stream, 4 * sizes), ">u4").astype(int).tolist()
        count = _count(shape, packed.size)
        elements = np.frombuffer(_all_of(stream, count), np.uint8)
        more = stream.read(1)
    except OSError as error:  # of zlib: nothing here touches storage
        raise ValueError(f"cannot be unpacked, so it is cut off or damaged ({error}); copy it again") from error
    if more:
        raise ValueError(f"goes on after the {_times(shape)} bytes that its header tells of; copy it again")
    return elements.reshape(shape)


def _check_magic(magic: bytes, sizes: int) -> None:
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in (UNSIGNED_BYTES, *OTHER_TYPES):
        raise ValueError(f"is no idx file, it begins with {magic!r}; download it again")
    if magic[2] != UNSIGNED_BYTES:
        raise ValueError(f"holds {OTHER_TYPES[magic[2]]}; only unsigned bytes are read: convert it")
    if magic[3] != sizes:
        raise ValueError(
            f"has {magic[3]} size(s) in its header, and {MEANINGS[sizes]} have {sizes}; check that the file is not "
            "another under this name"
        )


def _count(shape: list[int], packed: int) -> int:
    """The elements of an array. Raises ValueError for more than the file can hold, before memory is taken for them."""
    count = int(np.prod(np.array(shape, object)))
    if 0 in shape[1:]:
        raise ValueError(f"holds images of {_times(shape[1:])} pixels; download it again")
    if count > packed * MOST_PACKED:
        raise ValueError(f"is cut off: its header tells of {_times(shape)} bytes; copy it again")
    if count > MAX_BYTES:
        raise ValueError(f"holds {_times(shape)} bytes, more than the {MAX_BYTES:,} that are read at once; split it")
    return count


def _all_of(stream: pa.NativeFile, count: int) -> bytes:
    data: bytes = stream.read(count)
    if len(data) < count:
        raise ValueError(f"is cut off: it ends {count - len(data):,} bytes too early; copy it again")
    return data


def _times(shape: list[int]) -> str:
    return " x ".join(map(str, shape))
