"""The command line: one line per mistake, naming the flag and the fix, before anything is started."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import get_args

import pytest
from conftest import PIPELINE, ROOT, make_images, write_imagefolder
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel

from d3hr_ray.cli.distill_config import build_config
from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.exits import guard
from d3hr_ray.cli.flags import with_settings
from d3hr_ray.cli.parsing import nearest, parse
from d3hr_ray.cli.presets import PRESETS
from d3hr_ray.cli.proposing import again
from d3hr_ray.cli.resolve import resolve_auto
from d3hr_ray.config import ModelConfig, Quirk, RunError, as_dict, setting
from d3hr_ray.config.fields import GROUPS, MATCHING, METHOD
from d3hr_ray.methods.inputs import read_model
from d3hr_ray.models.card import locate, read_card, sampling_grid
from d3hr_ray.models.loading import load_schedule
from d3hr_ray.runs import open_run
from d3hr_ray.store import Store
from jobs import distill


def main(monkeypatch, capsys, command: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["jobs/distill.py", *shlex.split(command)])
    with pytest.raises(SystemExit) as stop:
        guard(distill.main)
    return int(stop.value.code or 0), capsys.readouterr().err


MISTAKES = {
    "--ipx 3": "Unrecognized options: --ipx, 3; perhaps you meant --ipc",
    "--ipc": "--ipc has no value",
    "--ipc 0": "--ipc 0 makes no image",
    "--ipc 1 --ipc=10": "--ipc is given twice; give it once, with all its values",
    "--ipc 10,50": "values are separated by spaces, not commas",
    "--resume": "Unrecognized options: --resume; it is not needed: the same command resumes",
    "--tflops 3": "--tflops is for the times of --dry-run",
    "--ipc -1": "--ipc",
    "--ipc ten": "Error parsing --ipc",
    "--preset imagenet": "cifar100; perhaps you meant imagenet1k, imagenette or imagenet100",
    "--method cao3": "invalid choice 'cao3'",
    "--timesteps 601": "--timesteps 601 is not on the 50-step grid; its neighbours are 600 and 620",
    "--components 2 --cluster-timestep 601": "--cluster-timestep 601 is not on the 50-step grid; its neighbours",
    "--components 2 --cluster-timestep 0": "--cluster-timestep 0 is before the first inversion step",
    "--timesteps 1000": "--timesteps 1000 is outside the schedule",
    "--refine-steps 3": "--refine-steps does nothing without --refine match",
    "--method dit --refine match": "--refine does nothing with --method dit",
    "--components 2 --cluster-pool 3": "--cluster-pool 3 does not divide the model's latents of 4x4",
    "--timesteps 0": "--timesteps 0 is before the first inversion step",
    "--ddim-steps 5000": "--ddim-steps 5000 is more than the model's 1000",
    "--fidelity official --search moments": "--search random",
    "--fidelity official --ipc 1 10": "--ipc 1",
    "--fidelity official --timesteps 980": "starts one above",
    "--preset imagenet1k": "--data is needed",
    "--preset cifar10 --data x": "--model is needed",
    "--data /nowhere": "the default model knows only digits. Train one of your classes with jobs/pretrain.py --preset",
    "--data /nowhere --model digits": "--data /nowhere: no such file or folder",
    "--data ftp://x/y --model digits": "cannot open this URI",
    "--model /nowhere": "--model /nowhere: no such folder",
    "--classes 11": "--classes 11: the data has no such class",
    "--limit-per-class 1": "--limit-per-class 1 leaves no variance",
    "--from-gaussians /nowhere": "no run there",
    "--from-gaussians /nowhere --data x": "--data contradicts --from-gaussians",
    "--from-gaussians /nowhere --dry-run": "--dry-run cannot go with",
    "--from-gaussians /nowhere --preset digits": "--preset contradicts",
    "--search random --spread radius": "--spread is of exact matching",
    "--method random --candidates 5": "--candidates does nothing with --method random",
    "--status /nowhere": "--status /nowhere: no run there",
    "--status ~nosuchuser9/x": "~nosuchuser9/x: ",
    "--out=": "--out has an empty value; is a variable of the shell not set?",
    "--status x --ipc 3": "--status goes alone; leave out --ipc",
    "--data s3://key:secret@bucket/x --model digits": "use the environment",
    "--tflops 0": "--tflops 0 must be above 0",
}
OF_PARSING = (
    "--ipx 3", "--ipc", "--ipc ten", "--method cao3", "--out=", "--ipc 1 --ipc=10", "--ipc 10,50", "--resume",
)  # fmt: skip


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(monkeypatch, capsys, command):
    code, said = main(monkeypatch, capsys, command)
    assert code == 2
    assert MISTAKES[command] in said
    assert said.startswith("distill: ") and len(said.strip().splitlines()) == 1
    assert ("see --help" in said) == (command in OF_PARSING)


OF_OTHER_JOBS = {
    "bench serach": "'serach' is unknown; perhaps you meant search; give one of: search, solver",
    "bench": "name is missing; give one of: search, solver",
    "bench search --json": "Missing value for argument '--json'",
    "bench search extra": "Unrecognized options: extra",
    "bench search --json /nowhere/x": "--json /nowhere/x: give a file in a folder that is there",
    "pretrain --data {folder}": "--preset is needed with --data {folder}: custom for images of your own",
    "pretrain --threads 0": "--threads 0 must be at least 1",
    "pretrain --gpus-per-worker 1": "--gpus-per-worker 1 is idle without --workers",
    "pretrain --check {folder}/none": "--check {folder}/none: no such folder",
    "pretrain --preset custom --data digits --init {folder}/none": "--init {folder}/none: no such folder",
    "pretrain --out {folder}/file": "--out {folder}/file is a file; give a folder",
    "evaluate --distilled {folder}/file": "--distilled {folder}/file is a file; give the folder of a set",
    "evaluate --distilled x --epochs 0": "--epochs 0 must be above 0",
    "sweep --run {folder}/file --preset digits": "--run {folder}/file is a file; give a folder",
    "sweep --run x --lr 0.1 -1": "--lr -1 must be above 0",
    "sweep --run x --cluster-timestep 100": "it is of jobs/distill.py",
    "sweep --run x --variants component=ipc": "component=ipc is no flag=value; perhaps you meant components; flags are",
}


@pytest.mark.parametrize("command", OF_OTHER_JOBS)
def test_a_mistake_of_another_job_is_one_line_too(monkeypatch, capsys, tmp_path, command):
    (tmp_path / "file").touch()
    job, *words = shlex.split(command.format(folder=tmp_path))
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", *words])
    with pytest.raises(SystemExit) as stop:
        guard(importlib.import_module(f"jobs.{job}").main)
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and said.startswith(f"{job}: ")
    assert OF_OTHER_JOBS[command].format(folder=tmp_path) in said


EARLY = """
import contextlib, shlex, sys
from jobs import distill
for command in sys.argv[1:]:
    sys.argv = ["jobs/distill.py", *shlex.split(command)]
    with contextlib.suppress(SystemExit):
        distill.main()
print(sorted({"torch", "ray", "diffusers", "timm", "sklearn"} & sys.modules.keys()))
"""


def test_a_driver_imports_no_network():
    """diffusers, timm and torchvision take 10 s each; those who hold networks import them: actors and students."""
    script = "import sys, d3hr_ray.methods.d3hr, d3hr_ray.evaluation.schedule\n"
    script += "print(sorted({'diffusers', 'timm', 'torchvision', 'sklearn', 'torch._dynamo'} & sys.modules.keys()))"
    asked = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert asked.stdout == "[]\n"


def test_what_needs_no_torch_is_told_before_it_is_imported(tmp_path):
    """torch, Ray and diffusers take 15 s to import; a path, a timestep, a class and --status need none of them."""
    data = write_imagefolder(tmp_path / "data", make_images(2))
    config = {"config": as_dict(PRESETS["digits"]()), "inputs": {"images": 1297}, "started": "", "finished": None}
    Store(str(tmp_path / "run")).write_json("run.json", config)
    own = f"--preset imagenet1k --data {data} --model {PIPELINE}"
    commands = {
        "--preset imagenet": "no such preset",
        "--data /nowhere --preset imagenet1k": "no such file",
        "--model /nowhere": "no such folder",
        "--timesteps 601": "its neighbours are 600 and 620",
        f"{own} --classes goldfish carp": "--classes carp: the data has no such class",
        f"--status {tmp_path}/run": "left: invert 1,297 images",
    }
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", EARLY, *commands], capture_output=True, text=True, env=where, check=True
    )
    for command, said in commands.items():
        assert said in ran.stderr + ran.stdout, (command, ran.stderr)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("job", ["distill", "evaluate", "sweep", "scores", "pretrain", "bench"])
def test_a_job_runs_from_any_folder(job):
    asked = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "--help"]
    ran = subprocess.run(asked, cwd="/", capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and f"{job}.py [-h]" in ran.stdout, ran.stderr


def test_a_models_card_and_grid_are_what_diffusers_reads():
    for name in ("digits", PIPELINE):
        card, folder = read_card(name), locate(name)
        assert card.transformer == DiTTransformer2DModel.load_config(folder, subfolder="transformer")
        assert card.vae == AutoencoderKL.load_config(folder, subfolder="vae")
        for steps in (50, 30, 7):
            scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
            scheduler.set_timesteps(steps)
            assert sampling_grid(name, steps) == tuple(sorted(scheduler.timesteps.tolist()))


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_a_grid_that_diffusers_alone_knows_comes_from_it(spacing, tmp_path):
    folder = shutil.copytree(PIPELINE, tmp_path / "model")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"timestep_spacing": spacing}))
    assert sampling_grid(str(folder), 50) is None
    config = replace(PRESETS["digits"](), model=ModelConfig(str(folder)))
    grid = read_model(config, planning=False)[1]
    assert grid == load_schedule(str(folder), 50).grid and len(grid) == 50 and grid[-1] == 999


FLAGS = [name.replace("_", "-") for name in DistillFlags.__dataclass_fields__]
TYPOS = {
    "timestep": "timesteps", "ipx": "ipc", "image": "image-size", "batchsize": "batch-size",
    "batch_sizes": "batch-size", "output": "out", "dataset": "data", "model-name": "model", "lr": "refine-lr",
    "gpus": "gpus-per-actor", "steps": "ddim-steps", "dryrun": "dry-run", "optimize": "optimise", "cfg": None,
}  # fmt: skip


@pytest.mark.parametrize("typed", TYPOS)
def test_a_mistyped_flag_is_answered_with_the_one_that_was_meant(typed):
    assert next(iter(nearest(typed, FLAGS)), None) == TYPOS[typed]


PRESET_TYPOS = {
    "imagenet": ["imagenet1k", "imagenette", "imagenet100"],
    "cifar": ["cifar10", "cifar100"],
    "digit": ["digits", "digits-affine"],
    "imagewof": ["imagewoof"],
    "mnist": ["fashion-mnist"],
    "coco": [],
}


@pytest.mark.parametrize("typed", PRESET_TYPOS)
def test_a_mistyped_preset_is_answered_with_those_that_were_meant(typed):
    assert nearest(typed, PRESETS) == PRESET_TYPOS[typed]


def test_help_is_pointed_at_for_flags_alone(capsys):
    """--help explains a flag; of a folder that is not there it says nothing."""
    for argv, ends in (
        (["--timestep", "600"], "perhaps you meant --timesteps (see --help)\n"),
        (["--ipc"], "(see --help)\n"),
    ):
        with pytest.raises(SystemExit):
            parse(DistillFlags, "", argv)
        assert capsys.readouterr().err.endswith(ends)


def test_a_model_with_fewer_classes_than_the_data_is_refused(monkeypatch, capsys, tmp_path):
    for k in range(11):
        (tmp_path / f"c{k}").mkdir()
        (tmp_path / f"c{k}" / "a.png").write_bytes(b"x")
    code, said = main(monkeypatch, capsys, f"--data {tmp_path} --format imagefolder --model digits")
    assert code == 2
    assert "--model has 10 classes, fewer than the data's 11" in said


@pytest.fixture
def begun(tmp_path, monkeypatch) -> Store:
    """runs/x, begun with 12 digits per class, and Gaussians in it."""
    monkeypatch.chdir(tmp_path)
    store, config = Store(str(tmp_path / "runs" / "x")), build_config(DistillFlags(limit_per_class=12))
    open_run(store, resolve_auto(config, None, None), {})
    store.write_bytes("gaussians/t0600.parquet", b"")
    return store


def test_a_folder_with_another_run_is_refused_with_the_commands_that_work(begun, monkeypatch, capsys):
    """Before Ray starts, harmless ways first; what --overwrite loses is said last."""
    told = {
        "--ipc 50": "Type: python jobs/distill.py --ipc 50 --from-gaussians runs/x (more sets of that run, nothing is "
        "inverted again), or: python jobs/distill.py --limit-per-class 12 --ipc 50 --out runs/x-2. --overwrite would "
        "delete the run in runs/x\n",
        "--timesteps 200": "Type: python jobs/distill.py --limit-per-class 12 --timesteps 200 --out runs/x-2. --over",
        "--method dit": "Type: python jobs/distill.py --limit-per-class 12 --method dit --out runs/x-2. --over",
        "--guidance 3": "--guidance 3 --from-gaussians runs/x --out runs/x-2 (more sets of that run",
    }
    for changed, ways in told.items():
        code, said = main(monkeypatch, capsys, f"--limit-per-class 12 --out runs/x {changed}")
        assert code == 2 and ways in said, said
    begun.at("../x-2").write_bytes("a", b"")
    code, said = main(monkeypatch, capsys, "--out runs/x --limit-per-class 11")
    assert "--out runs/x-3. --over" in said
    code, said = main(monkeypatch, capsys, "--out runs/x-2")
    assert "runs/x-2 holds a but no run.json; give an empty or new folder" in said


def test_a_command_is_typed_again_with_other_flags():
    typed = ["a.py", "--ipc", "1", "10", "--out=x y", "--data", "a b", "--limit_per_class", "2"]
    assert again(typed, ("--out", "--limit-per-class"), "--out", "z") == "python a.py --ipc 1 10 --data 'a b' --out z"


def test_help_names_every_flag(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jobs/distill.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        distill.main()
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for flag in DistillFlags.__dataclass_fields__:
        assert "--" + flag.replace("_", "-") in text
    assert re.findall(r"(\w+) options\b", text) == [group for group in GROUPS if group != "training"]
    assert "None" not in text


@dataclass(frozen=True)
class Toy:
    """Settings as a config has them."""

    heat: float = setting(0.5, "How warm.", MATCHING, methods=("d3hr",), varies=True)
    word: str | None = setting(None, "A word.", METHOD, name="spoken", shown="none")


def test_a_setting_is_a_field_and_its_flag_comes_of_it(capsys):
    @with_settings(Toy)
    @dataclass(frozen=True)
    class ToyFlags:
        """No flags but those of settings."""

    assert parse(ToyFlags, "", []) == ToyFlags(heat=None, spoken=None)
    assert parse(ToyFlags, "", ["--heat", "2", "--spoken", "x"]) == ToyFlags(heat=2.0, spoken="x")
    with pytest.raises(SystemExit):
        parse(ToyFlags, "", ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--heat FLOAT How warm. (default: 0.5)" in said and "--spoken STR A word. (default: none)" in said


@pytest.mark.parametrize("error", [RunError("stage x"), OSError("disk full")])
def test_a_failed_run_exits_1_with_one_line(error, capsys, monkeypatch):
    def fail() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["jobs/distill.py"])
    with pytest.raises(SystemExit) as stop:
        guard(fail)
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"distill: failed: {error} (what is finished is kept: the same command resumes)\n"
    monkeypatch.setattr(sys, "argv", ["jobs/distill.py", "--overwrite"])  # again, it would delete what is finished
    with pytest.raises(SystemExit):
        guard(fail)
    assert "the same command without --overwrite resumes" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named(monkeypatch, capsys, ray_session, tmp_path):
    (tmp_path / "file").write_text("x")
    data = write_imagefolder(tmp_path / "data", make_images(2))
    flags = f"--preset imagenet1k --data {data} --model {PIPELINE} --ipc 1 --out {tmp_path}/file/run"
    code, said = main(monkeypatch, capsys, flags)
    assert code == 1
    assert f"cannot write {tmp_path}/file/run/" in said and "--out" in said


@pytest.mark.parametrize(("method", "quirk"), [("d3hr", "bank"), ("cao2", "start"), ("cao2", "seeds")])
def test_a_quirk_of_another_method_is_refused(method, quirk):
    with pytest.raises(ValueError, match="--mend does nothing"):
        build_config(DistillFlags(method=method, fidelity="official", ipc=(5,), mend=(quirk,)))


def test_each_of_d3hrs_quirks_can_be_named_and_its_help_says_what_it_is(monkeypatch, capsys):
    made = build_config(DistillFlags(fidelity="official", ipc=(5,), mend=("skewness", "start", "seeds")))
    assert made.mended == ("seeds", "skewness", "start")
    monkeypatch.setattr(sys, "argv", ["jobs/distill.py", "--help"])
    with pytest.raises(SystemExit):
        distill.main()
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(f"{quirk} (" in text for quirk in get_args(Quirk))
