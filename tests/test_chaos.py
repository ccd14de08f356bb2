"""Faults that take minutes to stage: `make chaos`. Each run must end with the files of one that nothing disturbed."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import simulated
import yaml
from conftest import CALM, ROOT, assert_same

pytestmark = pytest.mark.chaos


# What is there when a stage has begun and not ended.
BEGUN = {
    "start": "run.json",
    "invert": ".done/invert/*",
    "fit": "gaussians/*",
    "search": "subsets/*/*",
    "synthesize": "distilled/*/train/*/*",
    "publish": "distilled/*/manifest.json",
}


def test_a_driver_killed_in_every_stage_ends_with_the_same_bytes(calm, tmp_path):
    """One folder, a driver killed in each stage in turn, and one that finishes."""
    out, kills = tmp_path / "run", 0
    command = [sys.executable, "jobs/distill.py", *CALM.split(), "--out", str(out)]
    for pattern in BEGUN.values():
        driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 600
        while driver.poll() is None and not list(out.glob(pattern)):
            assert time.monotonic() < end
            time.sleep(0.02)
        if driver.poll() is None:
            driver.send_signal(signal.SIGKILL)
            kills += 1
        driver.wait()
    assert kills == len(BEGUN)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert_same(out, calm)


def test_hangs_and_nodes_that_go_and_come_change_no_byte(calm, tmp_path):
    """A batch hangs until its limit, in both network stages; the only worker node is lost, and another comes."""
    faults, out = tmp_path / "faults", tmp_path / "run"
    faults.mkdir()
    for name in ("invert-hang-0", "invert-node-1", "synthesize-hang-0", "synthesize-die-1"):
        (faults / name).touch()
    flags = [*CALM.split(), "--task-timeout", "60", "--out", str(out)]
    with simulated.cluster(workers=1) as made:
        simulated.attend(made, simulated.start(made, faults, *flags), faults, replace=True)
    assert not list(faults.iterdir())
    assert_same(out, calm)


def test_batches_that_do_not_fit_are_halved_and_change_no_byte(calm, tmp_path):
    """Batches of more than 16 images find no memory, until one of 16 came, in each network stage."""
    faults, out = tmp_path / "faults", tmp_path / "run"
    faults.mkdir()
    for name in ("invert-memory-0", "synthesize-memory-0"):
        (faults / name).touch()
    with simulated.cluster(workers=1) as made:
        simulated.attend(made, simulated.start(made, faults, *CALM.split(), "--out", str(out)), faults, replace=False)
    assert not list(faults.iterdir())
    assert_same(out, calm)


PAGE = "http://127.0.0.1:18099/metrics"  # of a node, as Prometheus reads it


def test_prometheus_can_scrape_all_that_the_board_draws(calm, tmp_path, monkeypatch):
    drawn = set(re.findall(r"ray_d3hr\w+", (ROOT / "cluster/grafana.json").read_text()))
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    found: dict[str, float] = {}
    with simulated.cluster(workers=1, metrics_export_port=18099) as made:
        driver = simulated.start(made, tmp_path, *CALM.split(), "--out", str(tmp_path / "run"))
        while driver.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(PAGE, timeout=5) as page:
                for line in page.read().decode().splitlines():
                    name, _, value = line.rpartition(" ")
                    if name.startswith("ray_d3hr"):
                        found[name] = float(value)
            time.sleep(0.5)
    assert driver.returncode == 0
    assert drawn - {name.partition("{")[0] for name in found} <= {"ray_d3hr_retries_total"}  # there were none
    images = sum(
        v for name, v in found.items() if name.startswith("ray_d3hr_images_total") and 'stage="invert"' in name
    )
    assert images == json.loads((tmp_path / "run" / "run.json").read_text())["counts"]["accepted"]


HEAD = "ray.head.default"  # the fake provider takes its head for a node of this type
AUTOSCALING = {
    "cluster_name": "fake",
    "max_workers": 2,
    "provider": {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True},
    "auth": {},
    "head_node_type": HEAD,
    "available_node_types": {
        HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 2, "GPU": 1, "object_store_memory": 150 << 20},
            "node_config": {},
            "max_workers": 1,
        },
    },
    "idle_timeout_minutes": 0.2,
    "upscaling_speed": 1.0,
    "docker": {},
    "file_mounts_sync_continuously": False,
    "file_mounts": {},
    "cluster_synced_files": [],
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}
FAKE = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}


@pytest.fixture
def fake_cloud(tmp_path):
    """A head that takes no work, as in cluster/, and the autoscaler's fake provider, which starts nodes here.

    It insists on port 6379.
    """
    (tmp_path / "fake.yaml").write_text(yaml.safe_dump(AUTOSCALING))
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--port=6379", "--block", "--num-cpus=0"]
    command += ["--object-store-memory=150000000"]
    command += ["--include-dashboard=false", f"--autoscaling-config={tmp_path}/fake.yaml", "--disable-usage-stats"]
    head = subprocess.Popen(command, env=os.environ | FAKE, start_new_session=True, stdout=subprocess.DEVNULL)
    time.sleep(20)
    yield "127.0.0.1:6379"
    os.killpg(head.pid, signal.SIGTERM)
    head.wait(60)


GPUS = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)
end = time.monotonic() + 120
while any(n["Alive"] and n["Resources"].get("GPU") for n in ray.nodes()) and time.monotonic() < end:
    time.sleep(1)
print([n["Alive"] for n in ray.nodes() if n["NodeID"].endswith("f00001")])
"""


def test_a_run_that_asks_for_gpus_grows_a_cluster_from_none(calm, fake_cloud, tmp_path):
    """The GPU is none, so the networks run on the CPU. A node comes, the run ends, and the idle node goes."""
    env = os.environ | {"D3HR_FAULTS": str(tmp_path), "D3HR_CPU": "1", "RAY_ADDRESS": fake_cloud}
    env["PYTHONPATH"] = os.pathsep.join(str(ROOT / name) for name in ("", "tests"))
    flags = [*CALM.split(), "--dtype", "float32", "--gpus-per-actor", "1"]
    command = [sys.executable, "tests/faulty.py", *flags, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path / "run", calm)
    left = subprocess.run([sys.executable, "-c", GPUS, fake_cloud], capture_output=True, text=True, timeout=300)
    assert left.stdout.strip() == "[False]", left.stderr[-3000:]


def test_students_and_sweeps_grow_a_cluster_from_none(calm, fake_cloud, tmp_path):
    """The GPU is none: a student of Ray Train that asks for one is trained on its node's CPU. The sweep takes CPUs."""
    root = shutil.copytree(calm, tmp_path / "run")
    env = os.environ | {"RAY_ADDRESS": fake_cloud, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    evaluate = f"tests/gpuless.py --distilled {root} --baselines none --gpus-per-worker 1"
    sweep = f"jobs/sweep.py --run {root} --ipc 2 --seeds 0 1 --gpus-per-actor 0 --gpus-per-trial 0"
    for job in (evaluate, sweep):
        command = [sys.executable, *job.split(), "--arch", "convnet-d3-w32", "--repeats", "1", "--epochs", "2"]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "convnet-d3-w32" in done.stdout
    assert not (root / "inversions").exists()  # the images were inverted when the run was made


def test_what_no_node_type_has_is_said_within_a_minute(fake_cloud, tmp_path):
    start = time.monotonic()
    command = [
        sys.executable,
        "jobs/distill.py",
        *CALM.split(),
        "--gpus-per-actor",
        "8",
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run([*command, "--address", fake_cloud], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--gpus-per-actor 8: the cluster has room for 0 (one 8 GPU each" in done.stderr
    assert "its autoscaler began to add none" in done.stderr
    assert time.monotonic() - start < 60 + 60  # a minute, and the imports of a loaded machine


def test_a_submitted_job_can_be_stopped_and_resumed(calm, tmp_path):
    """With a token: without it nobody is let in. A stopped job leaves a run that resumes; then evaluate and sweep."""
    out, programs = tmp_path / "run", Path(sys.executable).parent
    ray = str(programs / "ray")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "chaos" * 8}
    address = "http://127.0.0.1:20265"
    env = os.environ | token | {"RAY_API_SERVER_ADDRESS": address}
    env["PATH"] = f"{programs}:{env['PATH']}"  # a job's `python` is the head's
    # Ports that Ray does not give to its workers, which have 10002 to 19999.
    start = [ray, "start", "--head", "--port=20379", "--block", "--num-cpus=4", "--disable-usage-stats"]
    start += [
        "--dashboard-host=127.0.0.1",
        "--dashboard-port=20265",
        "--dashboard-agent-listen-port=20365",
        "--object-store-memory=300000000",
    ]
    head = subprocess.Popen(start, env=env, start_new_session=True, stdout=subprocess.DEVNULL)
    submit = [ray, "job", "submit", "--working-dir", ".", "--submission-id"]
    job = ["--", "python", "jobs/distill.py", *CALM.split(), "--out", str(out)]

    def submitted(name: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        words = [*submit, name, *command]
        return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)

    try:
        end = time.monotonic() + 200
        while submitted(f"ready-{time.time()}", ["--", "python", "-V"]).returncode:  # until the head takes jobs
            assert head.poll() is None and time.monotonic() < end
            time.sleep(2)
        stranger = os.environ | {"RAY_API_SERVER_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
        refused = subprocess.run(
            [*submit, "x", *job], cwd=ROOT, env=stranger, capture_output=True, text=True, timeout=200
        )
        assert refused.returncode != 0 and not out.exists()
        assert "token" in (refused.stdout + refused.stderr).lower()
        first = subprocess.Popen([*submit, "first", *job], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        while first.poll() is None and not list(out.glob(".done/invert/*")):
            time.sleep(0.2)
        subprocess.run([ray, "job", "stop", "first"], env=env, check=True, capture_output=True, timeout=200)
        first.communicate(timeout=200)
        assert not (out / "run.json").exists() or not json.loads((out / "run.json").read_text())["finished"]
        second = submitted("second", job)
        assert second.returncode == 0, second.stdout[-3000:]
        assert "images/s on 1 worker(s)" in second.stdout  # the summary is in the job's log
        assert_same(out, calm)
        flags = {"evaluate": f"--distilled {out} --repeats 1", "sweep": f"--run {out} --ipc 2 --seeds 0 1"}
        for name, words in flags.items():
            command = ["--", "python", f"jobs/{name}.py", *words.split(), "--arch", "convnet-d3-w32"]
            done = submitted(name, command)
            assert done.returncode == 0, done.stdout[-3000:]
            assert "convnet-d3-w32" in done.stdout  # the table is in the job's log
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
