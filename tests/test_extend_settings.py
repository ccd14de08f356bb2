"""--extend: the settings of the earlier run, and the flags that contradict them. Nothing is inverted."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from d3hr_ray.cli.distill_config import build_config
from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.parsing import parse
from d3hr_ray.cli.presets import PRESETS
from d3hr_ray.config import RunConfig, as_dict, from_dict
from d3hr_ray.layout import RUN
from d3hr_ray.runs import read_run
from d3hr_ray.store import Store


def settled(root: Path, **changes) -> str:
    """A folder with the run.json of a run of the digits, which has inverted nothing."""
    made = PRESETS["digits"]()
    made = replace(
        made,
        model=replace(made.model, dtype=changes.pop("dtype", "float32")),
        inversion=replace(made.inversion, batch_size=64),
        **changes,
    )
    record = {"config": as_dict(made), "inputs": {"images": 1297}, "started": "", "finished": None}
    Store(str(root)).write_json(RUN, record)
    return str(root)


def asked(*argv: str) -> RunConfig:
    return build_config(parse(DistillFlags, "", list(argv)))


def test_settings_are_those_of_the_run_but_for_what_is_said(tmp_path):
    run = settled(tmp_path / "run", method="gaussian")
    of_run = from_dict(read_run(Store(run))["config"])
    assert asked("--extend", run, "--out", "new") == of_run
    told = asked("--extend", run, "--out", "new", "--data", "digits-affine", "--solver", "ddim", "--ipc", "3")
    assert told.data.uri == "digits-affine" and told.search.ipc == (3,) and told.inversion == of_run.inversion


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--preset digits", "--preset contradicts --extend: the settings are those of that run"),
        ("--from-gaussians RUN", "--from-gaussians contradicts --extend"),
        (
            "--solver adams",
            "--solver adams: that run inverted its images with ddim; leave it out, or leave --extend RUN",
        ),
        ("--ddim-steps 25", "--ddim-steps 25: that run inverted its images with 50"),
        ("--inversion-guidance 1.5", "--inversion-guidance 1.5: that run inverted its images with"),
        ("--posterior mode", "--posterior mode: that run inverted its images with sample"),
        ("--fidelity official", "--fidelity official contradicts --extend: that run is fixed"),
        ("--seed 3", "--seed 3: that run inverted its images with 0"),
        ("--dtype bfloat16", "--dtype bfloat16: that run inverted its images with float32"),
        ("--method dit", "--method dit inverts no images"),
        ("--method random", "--method random inverts no images"),
    ],
)
def test_what_would_invert_otherwise_is_refused_with_its_flag(tmp_path, flags, said):
    run = settled(tmp_path / "run")
    with pytest.raises(ValueError, match=re.escape(said.replace("RUN", run))):
        asked("--extend", run, "--out", "new", *flags.replace("RUN", run).split())


def test_what_is_missing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--extend \S*none: no run there \(it has no run.json\)"):
        asked("--extend", str(tmp_path / "none"), "--out", "new")
    gone = str(tmp_path / "gone")
    took = settled(tmp_path / "took")
    record = read_run(Store(took))
    Store(took).write_json(RUN, record | {"inputs": record["inputs"] | {"extends": {"run": gone}}})
    with pytest.raises(ValueError, match=r"no run there .*took has taken images from it: leave --extend out"):
        asked("--extend", gone, "--out", took)
    with pytest.raises(ValueError, match="--out is needed with --extend: another folder than"):
        asked("--extend", settled(tmp_path / "run"))
    half = settled(tmp_path / "half", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"needs float32, and .*then make these sets --from-gaussians new"):
        asked(
            "--extend", half, "--out", "new", "--method", "d3hr+cao2", "--optimise", "10", "--classifier", "prototypes"
        )
