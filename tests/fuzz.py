"""Throw mutated files at the readers: `python tests/fuzz.py --inputs 12000 --seed 0` prints their fates as JSON.

Every input is accepted, counted as rejected, or refused with a ValueError or OSError. Anything else (another
exception, a crash, a hang of over LIMIT seconds, a file outside the inputs' folder) fails.
"""

import argparse
import faulthandler
import gzip
import io
import json
import resource
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from idx_files import pack
from PIL import Image

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.decode import RejectedImage, decode
from d3hr_ray.datasets.imagenet import imagenet
from d3hr_ray.datasets.listing import list_images
from d3hr_ray.datasets.source import thread_map

LIMIT = 20.0  # seconds for one input
MEMORY = 6 << 30  # bytes of address space: what asks for more fails here as it would on a small node
NAMES = {"tar": "x.tar", "parquet": "x.parquet", "idx": "train-images-idx3-ubyte"}  # of what is listed
IDX_IMAGES = 3


def image(draw: np.random.Generator, form: str) -> bytes:
    buffer, side = io.BytesIO(), int(draw.integers(1, 40))
    pixels = draw.integers(0, 256, (side, int(draw.integers(1, 40)), 3), np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def tar(draw: np.random.Generator) -> bytes:
    """A small WebDataset, some of it with names that would escape."""
    buffer = io.BytesIO()
    form = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)[int(draw.integers(3))]
    with tarfile.open(fileobj=buffer, mode="w", format=form) as made:
        for k in range(int(draw.integers(1, 4))):
            folder = ("", "../../", "/tmp/", "a/" * 60)[int(draw.integers(4))]
            for suffix, data in (("png", image(draw, "PNG")), ("cls", b"%d" % (k % 2))):
                info = tarfile.TarInfo(f"{folder}{k}.{suffix}"[-90 if form == tarfile.USTAR_FORMAT else 0 :])
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def parquet(draw: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    images = [image(draw, "PNG") for _ in range(int(draw.integers(1, 5)))]
    column = [{"bytes": data, "path": "../x.png"} for data in images] if draw.integers(2) else images
    table = pa.table({"image": column, "label": [k % 2 for k in range(len(images))]})
    pq.write_table(table, buffer, compression=("none", "snappy", "zstd", "gzip")[int(draw.integers(4))])
    return buffer.getvalue()


def idx(draw: np.random.Generator) -> bytes:
    """Images of a set of idx files, packed or not; whatever becomes of them, their labels are sound."""
    data = pack(draw.integers(0, 256, (IDX_IMAGES, *draw.integers(1, 30, 2)), np.uint8))
    return gzip.compress(data) if draw.integers(2) else data


MAKERS: dict[str, Callable[[np.random.Generator], bytes]] = {
    "jpeg": lambda draw: image(draw, "JPEG"),
    "png": lambda draw: image(draw, "PNG"),
    "webp": lambda draw: image(draw, "WEBP"),
    "tar": tar,
    "parquet": parquet,
    "idx": idx,
}
NUMBERS = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\x80", b"\xff" * 8, b"777777777777"]


def mutate(good: bytes, draw: np.random.Generator) -> bytes:
    """Flip, cut, repeat, swap, overwrite with telling numbers: once, or up to eight times."""
    data = bytearray(good)
    for _ in range(int(draw.integers(1, 1 + 2 ** draw.integers(4)))):
        at = int(draw.integers(0, max(1, len(data))))
        to = min(len(data), at + int(draw.integers(1, 64)))
        match int(draw.integers(7)):
            case 0 if data:
                data[at % len(data)] ^= 1 << int(draw.integers(8))
            case 1:
                data[at : at + 1] = draw.integers(0, 256, 1, np.uint8).tobytes()
            case 2:
                number = NUMBERS[int(draw.integers(len(NUMBERS)))]
                data[at : at + len(number)] = number
            case 3:
                del data[at:to]
            case 4:
                data[at:at] = data[at:to]
            case 5 if draw.integers(4) == 0:
                del data[at:]
            case _:
                data[at:to] = draw.integers(0, 256, to - at, np.uint8).tobytes()
    return bytes(data)


def meet(kind: str, data: bytes, folder: Path) -> str:
    """Read one input as a run would. Returns accepted, rejected or refused."""
    if kind not in NAMES:
        return "accepted" if taken(data) else "rejected"
    path = folder / NAMES[kind]
    path.write_bytes(data)
    (folder / "train-labels-idx1-ubyte").write_bytes(pack(np.arange(IDX_IMAGES, dtype=np.uint8)))
    try:
        found = list_images(DataConfig(str(path)), 1000, None, thread_map)
        read = list(found.source.read(found.entries))
    except (ValueError, OSError) as error:
        assert str(error)
        return "refused"
    assert len(read) == len(found)
    return "accepted" if all([taken(data) for data in read]) else "rejected"


def taken(data: bytes) -> bool:
    try:
        assert decode(data, 16).shape == (16, 16, 3)
    except RejectedImage as error:
        assert str(error)
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    imagenet()  # imports torch, which may take longer on a busy machine than one input may
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    imagenet()  # imports torch, which no input is to blame for
    fates: dict[str, Counter[str]] = {kind: Counter() for kind in MAKERS}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "a" / "b" / "inputs"
        folder.mkdir(parents=True)
        for number in range(flags.inputs):
            draw = np.random.default_rng((flags.seed, number))
            kind = list(MAKERS)[number % len(MAKERS)]
            data = mutate(MAKERS[kind](draw), draw)
            faulthandler.dump_traceback_later(LIMIT, exit=True)
            fates[kind][meet(kind, data, folder)] += 1
        faulthandler.cancel_dump_traceback_later()
        strays = [str(p) for p in Path(root).rglob("*") if p.is_file() and p.parent != folder]
    assert not strays, strays
    print(json.dumps({kind: dict(fate) for kind, fate in fates.items()}))


if __name__ == "__main__":
    main()
