"""Where jobs write: not among the data, not over what they read; and what is one place, however it is written."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PIPELINE, WNIDS, make_images, write_imagefolder

from d3hr_ray.cli.distill_config import build_config
from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.outputs import check_out
from d3hr_ray.cli.parsing import read
from d3hr_ray.cli.resolve import resolve_auto
from d3hr_ray.config import as_dict
from d3hr_ray.filesystems import is_within
from d3hr_ray.layout import OWN
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
    check_out(beside, f"{data}-runs", OWN)


def test_a_run_beside_the_data_is_one_by_way_of_dots_and_links_too(tmp_path, monkeypatch):
    data = Path(write_imagefolder(tmp_path / "photos", make_images(2)))
    (tmp_path / "link").symlink_to(data)
    monkeypatch.chdir(data)
    for out in ("../runs/x", f"{data}/../runs"):
        check_out(read(DistillFlags, ["--data", "."]), out, OWN)
    for out in ("run", f"{tmp_path}/link/run", f"{tmp_path}/other/../photos/run"):
        with pytest.raises(ValueError, match="lies in --data"):
            check_out(read(DistillFlags, ["--data", "../photos"]), out, OWN)
    Store("run").write_json("run.json", {})  # begun by an older version, and its format does not look into folders
    check_out(read(DistillFlags, ["--data", "."]), "run", OWN)
    store = "endpoint_override=host:9000&scheme=http"
    assert is_within(f"s3://b/train/run?{store}", f"s3://b/train?{store}") and not is_within(
        "s3://b/train2", "s3://b/train"
    )


@pytest.mark.parametrize("flag", ["--extend", "--model", "--classifier", "--data"])
def test_overwrite_deletes_nothing_that_is_read(tmp_path, flag):
    run = str(tmp_path / "run")
    for value in (f"{run}/evaluations/teachers/x", f"resnet18={run}/evaluations/x.pt"):
        typed = [flag, value, "--overwrite", "--out", run]
        with pytest.raises(ValueError, match=f"--overwrite would delete {flag} .*; copy it out of --out"):
            check_out(read(DistillFlags, typed), run, OWN)
    check_out(read(DistillFlags, typed), run, ("training.json",))
    check_out(read(DistillFlags, [flag, f"{tmp_path}/model", *typed[2:]]), run, OWN)


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
    """A run that knows it by one spelling of its path is resumed by any other; an embedded one is no folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(PIPELINE, tmp_path / "model")
    data = write_imagefolder(tmp_path / "data", make_images(2))
    for spelling in ("model", "./model/", str(tmp_path / "model")):
        config = build_config(DistillFlags(data=data, model=spelling))
        older = as_dict(replace(config, model=replace(config.model, name="model")))
        assert resolve_auto(config, older, None).model.name == "model"
    embedded = build_config(DistillFlags(model="digits"))
    folder = replace(embedded, model=replace(embedded.model, name="./digits"))
    assert resolve_auto(embedded, as_dict(folder), None).model.name == "digits"
