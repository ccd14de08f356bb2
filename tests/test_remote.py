"""Runs and data on S3, against a server in this process that throttles and fails."""

from pathlib import Path

import pyarrow as pa
import pytest
from conftest import DIGITS, make_images, run, snapshot, units_here, write_imagefolder, write_parquet, write_webdataset
from idx_files import write_set
from s3_server import s3_server

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.idxclasses import FASHION
from d3hr_ray.datasets.listing import list_images
from d3hr_ray.datasets.splits import to_test_on
from d3hr_ray.filesystems import absolute, is_passing, resolve
from d3hr_ray.lock import driving
from d3hr_ray.runtime.tasks import ray_map
from d3hr_ray.store import Store

IMAGES = make_images(4)
WRITERS = {"imagefolder": write_imagefolder, "webdataset": write_webdataset, "parquet": write_parquet}


@pytest.fixture(scope="module")
def s3():
    with s3_server() as server:
        yield server


@pytest.fixture
def busy(s3):
    """The server while every tenth answer is a 429, 500 or 503."""
    s3.share, s3.failed = 0.1, 0
    yield s3
    s3.share = 0.0


def upload(s3, root, prefix: str) -> str:
    client = s3.client()
    for path in (p for p in root.rglob("*") if p.is_file()):
        client.put_object(Bucket="bucket", Key=f"{prefix}/{path.relative_to(root)}", Body=path.read_bytes())
    return s3.uri(prefix)


def test_a_store_bears_with_busy_storage(busy):
    store = Store(busy.uri("store"))
    for i in range(12):
        store.write_table(f"t/{i:02d}.parquet", pa.table({"x": [i]}))
        store.mark("stage", i, count=i)
    assert store.read_table("t")["x"].to_pylist() == list(range(12))
    assert store.marks("stage") == {i: {"count": i} for i in range(12)}
    store.delete("t")
    assert not store.list("t") and not store.exists("t/00.parquet")
    assert busy.failed >= 3


def test_what_fails_for_good_is_said_at_once(s3):
    with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        Store(s3.uri("x").replace("bucket", "nowhere")).write_bytes("a", b"1")
    with pytest.raises(FileNotFoundError):
        Store(s3.uri("x")).read_bytes("nothing")
    assert not is_passing(OSError("AWS Error ACCESS_DENIED during PutObject operation"))
    assert not is_passing(OSError(28, "No space left on device"))
    broken = "AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: {}, a line"
    assert [is_passing(OSError(broken.format(code))) for code in (28, 56, 6, 7)] == [True, True, False, False]
    assert not is_passing(OSError(broken.format("28, Timeout was reached; Connection timed out after 1003 ms")))
    assert is_passing(OSError("AWS Error UNKNOWN (HTTP status 429) during ListObjectsV2 operation"))


def test_a_reader_never_sees_half_an_object(s3):
    """While 30 MB are written over 1 MB, a reader gets one or the other."""
    store, old, new = Store(s3.uri("half")), b"o" * (1 << 20), b"n" * (30 << 20)
    store.write_bytes("x", old)
    filesystem, path = resolve(store.uri)
    stream = filesystem.open_output_stream(f"{path}/x")
    for at in range(0, len(new), 5 << 20):
        stream.write(new[at : at + (5 << 20)])
        assert store.read_bytes("x") == old
    stream.close()
    assert store.read_bytes("x") == new


@pytest.mark.slow
@pytest.mark.parametrize("form", WRITERS)
def test_every_format_is_read_from_busy_s3(busy, tmp_path, form):
    share, busy.share = busy.share, 0
    uri = upload(busy, tmp_path / "data", form) if WRITERS[form](tmp_path / "data", IMAGES) else ""
    busy.share = share
    found = list_images(DataConfig(uri), 1000, None)
    local = list_images(DataConfig(str(tmp_path / "data")), 1000, None)
    assert found.digest == local.digest
    busy.share, busy.failed = 0.2, 0
    backwards = found.entries.take(list(range(len(IMAGES)))[::-1])
    while busy.failed < 3:
        assert list(found.source.read(backwards)) == [data for _, _, data in IMAGES][::-1]


@pytest.mark.parametrize("form", WRITERS)
def test_ray_tasks_list_s3_as_threads_do(ray_session, s3, tmp_path, form):
    WRITERS[form](tmp_path / "data", IMAGES)
    uri = upload(s3, tmp_path / "data", f"tasks-{form}")
    assert list_images(DataConfig(uri), 1000, None, ray_map).digest == list_images(DataConfig(uri), 1000, None).digest


def test_idx_files_are_read_from_busy_s3(busy, tmp_path):
    share, busy.share = busy.share, 0
    uri = upload(busy, Path(write_set(tmp_path, packed=True)), "FashionMNIST")
    busy.share = share
    found, local = list_images(DataConfig(uri), 10, None), list_images(DataConfig(str(tmp_path), "idx"), 10, None)
    assert found.digest != local.digest  # its folder says which set it is
    assert set(found.classes.sources) == set(FASHION)
    assert list(found.source.read(found.entries)) == list(local.source.read(local.entries))
    test = to_test_on(DataConfig(uri))
    assert test.uri == busy.uri("FashionMNIST/t10k-images-idx3-ubyte.gz")
    assert len(list_images(test, 10, None)) == 10


def test_a_pattern_and_a_single_file_keep_their_endpoint(s3, tmp_path):
    write_parquet(tmp_path, IMAGES, per_file=6)
    upload(s3, tmp_path, "split")
    for name in ("split/data-*.parquet", "split/data-00000.parquet"):
        assert len(list_images(DataConfig(s3.uri(name)), 1000, None)) == (12 if "*" in name else 6)
    assert absolute("s3://b/x/?scheme=http") == "s3://b/x?scheme=http"


def test_a_lock_on_s3_is_held_and_let_go(s3):
    store = Store(s3.uri("locked"))
    with driving(store):
        assert store.exists(".lock")
    assert not store.exists(".lock")


@pytest.mark.slow
def test_the_digits_job_on_busy_s3_gives_the_bytes_of_a_local_run(digits, busy, monkeypatch):
    """Write to S3, lose an image, resume on S3: the same objects as the files of a run in a local folder.

    Begun by Ray's actors, ended in this process.
    """
    uri, busy.share = busy.uri("runs/digits"), 0.03
    run(monkeypatch, f"{DIGITS} --out {uri}")
    store = Store(uri)
    store.delete("distilled/d3hr-moments-t100-ipc1-seed0/train/7/0.png")
    units_here(monkeypatch)
    run(monkeypatch, f"{DIGITS} --out {uri}")
    assert busy.failed >= 5
    remote = {n: store.read_bytes(n) for n in store.list(recursive=True) if n != "run.json"}
    local = snapshot(digits)
    assert remote == {n: local[n] for n in remote}
    folders = ("latents", "gaussians", "subsets", "distilled")
    assert [n for n in remote if n.startswith(folders)] == [n for n in local if n.startswith(folders)]
