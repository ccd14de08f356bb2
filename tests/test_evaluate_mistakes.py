"""Mistakes of jobs/evaluate.py and jobs/sweep.py: each is refused in one line that names the flag or the path."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_job
from stripes import stripes, write_set

from d3hr_ray.cli import evaluate_inputs
from d3hr_ray.cli.evaluate_checks import real_data
from d3hr_ray.cli.evaluate_flags import EvaluateFlags
from d3hr_ray.config import DataConfig, RunError, as_dict
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.lock import driving
from d3hr_ray.store import Store
from jobs import evaluate, sweep


def refusal(job, monkeypatch, capsys, command: str) -> list[str]:
    """What a job says on standard error of a command that it refuses."""
    with pytest.raises(SystemExit) as stop:
        run_job(job, monkeypatch, command)
    assert stop.value.code == 2
    said: list[str] = capsys.readouterr().err.strip().splitlines()
    return said


@pytest.fixture
def paths(tmp_path):
    """A set, class folders that are one too, a folder without any, and a path where nothing is."""
    (tmp_path / "empty").mkdir()
    found = write_set(tmp_path / "set", stripes(2))
    return {"set": found, "flat": f"{found}/train", "none": tmp_path / "none", "empty": tmp_path / "empty"}


NEEDED = (
    "needs more: --out FOLDER, for the results: the set lies in no run folder; --data URI, real test images of its "
    "classes: only those of digits and idx sets are known"
)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--distilled is needed"),
        ("--distilled {none}", "--distilled {none}: no set in it"),
        ("--distilled {empty}", "--distilled {empty}: no set in it"),
        ("--distilled {set} --protocol soft", "--protocol"),
        ("--distilled {set} --protocol fixed-soft", "--protocol fixed-soft needs --teacher"),
        ("--distilled {set} --teacher train resnet18", "--teacher train stands alone"),
        ("--distilled {set} --teacher-arch resnet18", "--teacher-arch is of --teacher train"),
        ("--distilled {set} --teacher-epochs 9", "--teacher-epochs is of --teacher train"),
        ("--distilled {set} --teacher train --teacher-epochs 0", "--teacher-epochs 0 must be at least 1"),
        ("--distilled {set} --temperature 4", "--temperature is of soft labels"),
        ("--distilled {set} --repeats 0", "--repeats 0"),
        ("--distilled {flat}", NEEDED),
        ("--distilled {set} --teacher train", f"{NEEDED}; --train-data URI, real training images, for --teacher train"),
        (
            "--distilled {set} --out {none} --data {set} --baselines herding",
            "training images, for --baselines herding",
        ),
        (
            "--distilled {flat} --out {flat}/x --data digits/test",
            "--out {flat}/x lies among the images of --distilled {flat}",
        ),
        ("--distilled {set} --out {flat} --data {flat}", "--out {flat} lies among the images of --data {flat}"),
        ("--distilled {set} --out {none} --data {none}", "--data {none}: no such file or folder"),
        (
            "--distilled {set} --out {none} --data {flat} --train-data {none}",
            "--train-data {none}: no such file",
        ),
    ],
)
def test_paths_and_what_is_missing_are_refused_at_once(paths, monkeypatch, capsys, flags, message):
    """All of it in one line, before Ray starts."""
    monkeypatch.setattr(evaluate, "connect", lambda *args: pytest.fail("Ray is started"))
    said = refusal(evaluate, monkeypatch, capsys, flags.format(**paths))
    assert len(said) == 1 and message.format(**paths) in said[0]


def test_a_path_is_refused_before_torch_is_imported(paths):
    """In a process of its own: importing torch, timm and Ray would take 15 s before the message."""
    script = "import sys; from jobs import evaluate\n"
    script += "sys.argv[1:] = ['--distilled', sys.argv[1], '--out', 'x', '--data', sys.argv[2]]\n"
    script += "try: evaluate.main()\nfinally: print(sorted({'torch', 'ray', 'timm'} & set(sys.modules)))"
    command = [sys.executable, "-c", script, paths["set"], str(paths["none"])]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "[]\n"), found.stderr


def test_without_training_images_the_default_baseline_is_left_out_and_said(paths, capsys):
    def lacks(about, **flags):
        found = DistilledSet("s", stripes(2), "hash", 0, about)
        asked = EvaluateFlags(distilled=("mine",), **flags)
        return evaluate_inputs._lacks_training(asked, SimpleNamespace(sets=(found,)), real_data(asked)[1])

    gone = {"data": as_dict(DataConfig(str(paths["none"]), classes=("a",)))}
    assert lacks({}) and lacks(gone)
    said = capsys.readouterr().err.splitlines()
    assert "no random real images beside the sets (mine does not say what it was distilled from); give" in said[0]
    assert f"(the images it was distilled from, {paths['none']}: no such file or folder); give --train-data" in said[1]
    assert not lacks({}, train_data=paths["set"]) and not lacks({"data": as_dict(DataConfig("digits/train"))})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data {flat} --arch resnet81", "--arch resnet81: no such architecture; near it: resnet18"),
        ("--data {empty}", "no class folders in it"),
        ("--data digits/test", "the set has a, b, c, the data 0, 1, 2, ..., 9 (10 classes)"),
        ("--data {flat} --workers 64", "--workers 64: the cluster has room"),
        ("--data {flat} --arch convnet-d6", "use a smaller depth"),
        ("--data {flat} --arch resnet18 --batch-size 1", "batches of one image"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(ray_session, paths, monkeypatch, capsys, flags, message):
    command = f"--distilled {{set}} --out {{none}} {flags} --baselines none".format(**paths)
    assert message in refusal(evaluate, monkeypatch, capsys, command)[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--run is needed"),
        ("--run {none} --resume", "no sweep named 'sweep'"),
        ("--run {none} --ipc 1 10 --scheduler asha", "give one --ipc"),
        ("--run {none} --matched --guidance 1", "--matched contradicts --guidance"),
        ("--run {none} --preset digit", "perhaps you meant digits"),
        ("--run {none} --seeds 1 1", "--seeds names a value twice"),
    ],
)
def test_a_sweeps_mistake_is_one_line_that_names_it(ray_session, tmp_path, monkeypatch, capsys, flags, message):
    assert message in refusal(sweep, monkeypatch, capsys, flags.format(none=tmp_path / "none"))[-1]


def test_a_sweep_calls_its_folder_by_its_own_flag(ray_session, tmp_path, monkeypatch):
    folder = str(tmp_path / "run")
    busy = f"--run {folder} is in use by process .* or give another --run"
    with driving(Store(folder)), pytest.raises(RunError, match=busy):
        run_job(sweep, monkeypatch, f"--run {folder} --preset digits")
