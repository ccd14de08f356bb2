"""Files and models from strangers: nothing they hold is run, followed out of the folder, or believed about its size."""

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PIPELINE, ROOT, WNIDS, encode, make_images, write_imagefolder
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets import decode as decoding
from d3hr_ray.datasets.classes import ClassMap, folder_names
from d3hr_ray.datasets.decode import RejectedImage, decode
from d3hr_ray.datasets.listing import Listing, list_images
from d3hr_ray.models.loading import load_networks

PNG = encode(np.zeros((8, 8, 3), np.uint8))


def listing(path) -> Listing:
    return list_images(DataConfig(str(path)), 1000, None)


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, trace) -> None:
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytearray:
    """A tar header; sizes that octal cannot say are in base 256."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"%011o\0" % min(size, 0o77777777777)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


HEADERS = {
    "leads backwards": header("a.png", 0) + header("a.cls", -1024) + bytes(1024),
    "claims -": header("a.png", -512, tarfile.XHDTYPE) + bytes(1024),
    "claims 1073741824 bytes": header("a", 1 << 30, tarfile.XHDTYPE) + bytes(1024),
    "claims 4294967296 bytes": header("././@LongLink", 1 << 32, tarfile.GNUTYPE_LONGNAME) + bytes(1024),
    "recursion": (header("a", 0, tarfile.XHDTYPE)) * 3000 + bytes(1024),
    "is a sparse file": header("a.png", 0, tarfile.GNUTYPE_SPARSE) + header("a.cls", 0) + bytes(1024),
}


@pytest.mark.parametrize("words", HEADERS)
def test_a_tars_headers_are_not_believed(tmp_path, words):
    (tmp_path / "x.tar").write_bytes(bytes(HEADERS[words]))
    with pytest.raises(ValueError, match=rf"x\.tar: not a whole uncompressed tar .*{words}"):
        listing(tmp_path)


def test_links_and_devices_in_a_tar_are_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, "secret.png"
            tar.addfile(info)
            info = tarfile.TarInfo(f"{kind.decode()}.cls")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    found = listing(tmp_path / "x.tar")
    for data in found.source.read(found.entries):
        with pytest.raises(RejectedImage, match="a link or device that is no file of the tar"):
            decode(data, 8)
    assert len(found) == 4


def test_pickles_in_parquet_are_never_opened(tmp_path):
    """Ray's object columns hold pickles, which looking at a value would run."""
    bombs = ArrowPythonObjectArray.from_objects([Bomb(tmp_path / "ran")])
    nested = pa.StructArray.from_arrays([bombs, pa.array(["x"])], ["bytes", "path"])
    for name, column in (("plain", bombs), ("nested", nested)):
        path = tmp_path / name / "x.parquet"
        path.parent.mkdir()
        pq.write_table(pa.table({"image": column, "label": [1]}), path)
        with pytest.raises(ValueError, match=r"x\.parquet: has columns of an Arrow extension type"):
            listing(path)
    assert not (tmp_path / "ran").exists()


def test_a_pickled_array_in_parquet_is_rejected_bytes(tmp_path):
    pickled = pickle.dumps(Bomb(tmp_path / "ran"))
    pq.write_table(pa.table({"image": [pickled, PNG], "label": [1, 1]}), tmp_path / "x.parquet")
    found = listing(tmp_path)
    first, second = found.source.read(found.entries)
    with pytest.raises(RejectedImage, match="not an image"):
        decode(first, 8)
    assert decode(second, 8).shape == (8, 8, 3)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_one_huge_value_for_many_rows_is_copied_out_one_at_a_time(tmp_path, monkeypatch):
    """30 MB under a dictionary page for 300 rows: 9 GB if a batch of them were read."""
    monkeypatch.setattr(decoding, "MAX_BYTES", 1 << 20)
    column = pa.DictionaryArray.from_arrays([0] * 300, [bytes(30 << 20)])
    pq.write_table(pa.table({"image": column, "label": [1] * 300}), tmp_path / "x.parquet", store_schema=False)
    assert (tmp_path / "x.parquet").stat().st_size < 10 << 20
    before = pa.total_allocated_bytes()
    found = listing(tmp_path)
    for data in found.source.read(found.entries):
        assert pa.total_allocated_bytes() - before < 200 << 20
        with pytest.raises(RejectedImage, match="bytes long"):
            decode(data, 8)


def test_a_pipe_with_an_images_name_is_counted_and_not_waited_for(tmp_path):
    write_imagefolder(tmp_path, make_images(2))
    os.mkfifo(tmp_path / WNIDS[0] / "pipe.png")
    found = listing(tmp_path)
    data = dict(zip(found.entries["image_id"].to_pylist(), found.source.read(found.entries), strict=True))
    assert data[f"{WNIDS[0]}/pipe.png"] == b"" and len(data) == 7


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_absurd_sizes_and_headers_are_rejected():
    head = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    with pytest.raises(RejectedImage, match="decompression bomb"):
        decode(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))), 8)
    text = b"a\0\0" + zlib.compress(bytes(200 << 20))  # 200 MB of comment in 200 KB
    with pytest.raises(RejectedImage, match="broken image"):
        decode(PNG[:33] + chunk(b"zTXt", text) + PNG[33:], 8)


def test_an_image_of_gigabytes_is_read_to_the_limit_only(tmp_path, monkeypatch):
    write_imagefolder(tmp_path, make_images(2))
    with open(tmp_path / WNIDS[0] / "huge.png", "wb") as file:
        file.truncate(1 << 40)
    found = listing(tmp_path)
    sizes = [len(data) for data in found.source.read(found.entries)]
    assert max(sizes) == decoding.MAX_BYTES + 1
    with pytest.raises(RejectedImage, match="bytes long"):
        decode(bytes(max(sizes)), 8)


@pytest.mark.parametrize("name", ["../../etc", "/root/x", "..", "a/../../b", "x\0y", "C:\\x", "~", "-rf", " " * 99])
def test_class_names_never_become_paths(name):
    found = ClassMap((name, "good"), (name, "good"), (None, None), (0, 1))
    for folder in folder_names(found.table()):
        assert "/" not in folder and "\\" not in folder and ".." not in folder and "\0" not in folder
        assert folder.strip() and len(folder) < 80


def test_a_models_pickle_is_not_run_and_its_code_not_loaded(tmp_path):
    """Only weights are read: a .bin under weights_only, and no module that the folder brings."""
    model = tmp_path / "model"
    shutil.copytree(PIPELINE, model)
    (model / "pipeline.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    (model / "transformer" / "modeling.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    config = json.loads((model / "transformer" / "config.json").read_text())
    config |= {"_class_name": "Evil", "auto_map": {"AutoModel": "modeling.Evil"}}
    (model / "transformer" / "config.json").write_text(json.dumps(config))
    (model / "model_index.json").write_text(json.dumps({"_class_name": ["pipeline", "Evil"]}))
    load_networks(str(model), torch.float32, "cpu")
    (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"weight": Bomb(tmp_path / "ran")}, model / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        load_networks(str(model), torch.float32, "cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_ten_thousand_mutated_files_are_read_rejected_or_refused():
    command = [sys.executable, "tests/fuzz.py", "--inputs", "10000"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    fates = json.loads(done.stdout.splitlines()[-1])
    assert sum(sum(fate.values()) for fate in fates.values()) == 10_000
    for kind, fate in fates.items():
        assert fate["accepted"] > 0 and fate.get("rejected", 0) + fate.get("refused", 0) > 500, (kind, fate)
