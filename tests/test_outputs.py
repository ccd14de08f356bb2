"""Where jobs write: not among the data, not over what they read; and what is one place, however it is written."""

import shutil
import sys
from dataclasses import replace

import pytest
from conftest import PIPELINE, WNIDS, make_images, write_imagefolder

from d3hr_ray.cli.distill_config import build_config
from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.outputs import check_out
from d3hr_ray.cli.parsing import read
from d3hr_ray.cli.resolve import resolve_auto
from d3hr_ray.config import as_dict
from d3hr_ray.runs import open_run, stored_config
from d3hr_ray.store import Store
from jobs import distill, pretrain


@pytest.mark.parametrize("job", [distill, pretrain])
def test_what_is_made_never_lies_among_the_data(tmp_path, monkeypatch, capsys, job):
    data = write_imagefolder(tmp_path / "my data", make_images(2))
    own = ["--model", PIPELINE] if job is distill else ["--preset", "custom"]
    for out in (data, f"{data}/run", f"{data}/{WNIDS[0]}/runs/x", f"{data}/"):
        monkeypatch.setattr(sys, "argv", ["job.py", *own, "--data", data, "--out", out])
        with pytest.raises(SystemExit) as stop:
            job.main()
        assert stop.value.code == 2
        assert f"lies in --data {data}: what is made would be counted among its images" in capsys.readouterr().err
    beside = read(DistillFlags, ["--data", data, "--out", f"{data}-runs"])
    check_out(beside, f"{data}-runs")


@pytest.mark.parametrize("flag", ["--extend", "--model", "--classifier", "--data"])
def test_overwrite_deletes_nothing_that_is_read(tmp_path, flag):
    run = str(tmp_path / "run")
    typed = [flag, f"{run}/evaluations/teachers/x", "--overwrite", "--out", run]
    with pytest.raises(ValueError, match=f"--overwrite would delete {flag} .*, which lies in --out .*; copy it away"):
        check_out(read(DistillFlags, typed), run)
    check_out(read(DistillFlags, [flag, f"{tmp_path}/model", *typed[2:]]), run)


def test_overwrite_leaves_a_file_of_ones_own_beside_the_run_and_begins_anew(tmp_path):
    begun = Store(str(tmp_path))
    open_run(begun, resolve_auto(build_config(DistillFlags(limit_per_class=12)), None, None), {})
    begun.write_bytes("log.txt", b"mine")
    config = resolve_auto(build_config(DistillFlags(limit_per_class=11)), None, None)
    for _ in range(2):
        open_run(begun, config, {}, overwrite=True)
        assert begun.list() == ["log.txt", "run.json"] and stored_config(begun) == as_dict(config)
    begun.delete("run.json")
    with pytest.raises(ValueError, match=r"holds log.txt but no run.json"):
        open_run(begun, config, {})


def test_a_model_is_one_place_however_it_is_written(tmp_path, monkeypatch):
    """A run that knows it by a path from where it began is resumed from there, and by a whole path from anywhere."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(PIPELINE, tmp_path / "model")
    data = write_imagefolder(tmp_path / "data", make_images(2))
    for spelling in ("model", "./model/", str(tmp_path / "model")):
        config = build_config(DistillFlags(data=data, model=spelling))
        assert config.model.name == str(tmp_path / "model")
        older = as_dict(replace(config, model=replace(config.model, name="model")))
        assert resolve_auto(config, older, None).model.name == "model"
    assert build_config(DistillFlags(model="digits")).model.name == "digits"
