"""Shared fixtures: one local Ray for the session, the authors' golden data, and little datasets made here."""

import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_BACKEND_LOG_LEVEL="fatal",
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    AWS_ACCESS_KEY_ID="test",
    AWS_SECRET_ACCESS_KEY="test",
    AWS_EC2_METADATA_DISABLED="true",
)

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from PIL import Image

from d3hr_ray.config import RunError
from d3hr_ray.runtime.surroundings import start_patiently

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "official"
PIPELINE = str(GOLDEN / "pipeline")  # a DiTPipeline with random weights: 1000 classes, latents 4x8x8, images 32x32
DIGITS = "--preset digits --limit-per-class 12 --timesteps 100 200 --ipc 1 5 --actors 1 1"
WNIDS = ("n01443537", "n02099601", "n15075141")  # ImageNet classes 1, 207 and 999, those of the golden data


@pytest.fixture(scope="session")
def ray_session():
    """One Ray for all tests; 3 slots on any machine: two actors and a reader, and few processes that import torch."""
    import ray

    settings = {"num_cpus": 3, "object_store_memory": 300 << 20, "include_dashboard": False, "log_to_driver": False}
    kept = {"idle_worker_killing_time_threshold_ms": 600_000}  # with the torch that each has imported
    start_patiently(
        lambda: ray.init(address="local", logging_level="ERROR", _system_config=kept, **settings), ray.shutdown
    )
    yield ray
    ray.shutdown()


def run(monkeypatch, command: str) -> None:
    """jobs/distill.py in this process."""
    from jobs import distill

    run_job(distill, monkeypatch, command)


def run_job(job, monkeypatch, command: str) -> None:
    """A job in this process."""
    monkeypatch.setattr(sys, "argv", [f"{job.__name__.removeprefix('jobs.')}.py", *shlex.split(command)])
    job.main()


def snapshot(root: Path) -> dict[str, bytes]:
    """All files but run.json, whose times differ."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and p.name != "run.json")
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


@pytest.fixture(scope="session")
def digits(ray_session, tmp_path_factory, worker_id):
    """One small run; tests look at it and add to it, but leave its parts as they are.

    It is made in this process: that Ray's actors give the same bytes is what tests compare with it. Each of pytest's
    workers has a copy of its own; the first that wants one makes it.
    """
    own = tmp_path_factory.mktemp("runs")
    shared = own if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    with FileLock(shared / "digits.lock"):
        if not (shared / "digits").exists():
            with pytest.MonkeyPatch.context() as monkeypatch:
                units_here(monkeypatch)
                run(monkeypatch, f"{DIGITS} --out {shared}/making")
            (shared / "making").rename(shared / "digits")
    return shared / "digits" if shared == own else Path(shutil.copytree(shared / "digits", own / "digits"))


def units_here(monkeypatch) -> None:
    """From now on units of work are done in this process, by the very objects that Ray's actors and tasks would hold.

    Each stage on Ray starts an actor, and each actor imports torch and diffusers anew: 10 s of a core, for less than a
    second of work on these small runs. Where Ray is what is tested it stays: killed drivers, layouts, S3.
    """
    from d3hr_ray.runtime import actors, summary
    from d3hr_ray.stages import blocks, class_means, invert

    def run_here(units, steps, title, unit_name, total, done):
        limit = actors.time_limit(options for _, options in steps)
        measured = [actors._measured(function, options, title, limit) for function, options in steps]
        works = [
            work(*options["fn_constructor_args"]) if isinstance(work, type) else work for work, options in measured
        ]
        with summary.costing(title, 1) as cost:
            for unit in units:
                table = pa.Table.from_pylist([unit])
                for work in works:
                    table = work(table)
                (row,) = table.to_pylist()
                if row["error"]:
                    raise RunError(f"{title}: {row['error']}")
                cost.add(row)
                yield row

    for module in (invert, blocks, class_means):
        monkeypatch.setattr(module, "run_units", run_here)


@pytest.fixture
def here(monkeypatch) -> None:
    """For a test that looks at what units make, not at how Ray brings them to actors."""
    units_here(monkeypatch)


@pytest.fixture(scope="session")
def golden():
    return dict(np.load(GOLDEN / "golden.npz"))


@pytest.fixture(scope="session")
def networks():
    from d3hr_ray.models.loading import load_networks

    return load_networks(PIPELINE, torch.float32, "cpu")


def encode(pixels: np.ndarray, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def make_images(per_class: int, side: int = 32, seed: int = 0) -> list[tuple[str, str, bytes]]:
    """(wnid, name, PNG bytes) of smooth random images, sorted by class and name."""
    draw = np.random.default_rng(seed)
    images = []
    for wnid in WNIDS:
        for k in range(per_class):
            small = Image.fromarray(draw.integers(0, 256, (4, 4, 3), np.uint8))
            pixels = np.asarray(small.resize((side, side + k % 3 * 4), Image.Resampling.BICUBIC))
            images.append((wnid, f"{k:04d}", encode(pixels)))
    return images


def write_imagefolder(root: Path, images) -> str:
    for wnid, name, data in images:
        (root / wnid).mkdir(parents=True, exist_ok=True)
        (root / wnid / f"{name}.png").write_bytes(data)
    return str(root)


def write_webdataset(root: Path, images, per_tar: int = 10, label: str = "cls") -> str:
    root.mkdir(parents=True, exist_ok=True)
    for at in range(0, len(images), per_tar):
        with tarfile.open(root / f"shard-{at:05d}.tar", "w") as tar:
            for wnid, name, data in images[at : at + per_tar]:
                text = wnid.encode() if label == "cls" else f'{{"label": "{wnid}"}}'.encode()
                for suffix, content in (("png", data), (label, text)):
                    info = tarfile.TarInfo(f"{wnid}_{name}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return str(root)


def write_parquet(root: Path, images, per_file: int = 20, group: int = 7) -> str:
    root.mkdir(parents=True, exist_ok=True)
    for at in range(0, len(images), per_file):
        rows = images[at : at + per_file]
        table = pa.table(
            {
                "image": [{"bytes": data, "path": f"{name}.png"} for _, name, data in rows],
                "label": [wnid for wnid, _, _ in rows],
            }
        )
        pq.write_table(table, root / f"data-{at:05d}.parquet", row_group_size=group)
    return str(root)


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float) -> None:
    """Wait until something is so, and fail if the process ends before or it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "too slow"
        time.sleep(0.05)


CALM = "--preset digits --timesteps 200 --ipc 2 30 --batch-size 32 --actors 1 1"


@pytest.fixture(scope="session")
def calm(ray_session, tmp_path_factory) -> Path:
    """The run that nothing disturbs."""
    out = tmp_path_factory.mktemp("calm") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        units_here(monkeypatch)
        run(monkeypatch, f"{CALM} --out {out}")
    return out


def assert_same(folder: Path, calm: Path) -> None:
    """Every file is as in the undisturbed run, and every image is there once."""
    assert snapshot(folder) == snapshot(calm)
    ids = pq.read_table(folder / "latents")["image_id"].to_pylist()
    assert len(ids) == len(set(ids)) == 1297


@pytest.fixture
def cats_and_dogs(tmp_path):
    """Two classes of 40 images each, told apart by brightness; the third of each class is broken."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(40):
            path = tmp_path / label / f"{i:02d}.png"
            Image.fromarray(np.full((20, 24, 3), i + (100 if label == "dog" else 0), np.uint8)).save(path)
            if i == 2:
                path.write_bytes(b"no image")
    return str(tmp_path)
