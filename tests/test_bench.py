"""jobs/bench.py at tiny sizes: every benchmark runs, and its JSON is the contract's. Its figures are not looked at."""

import json
import os
import subprocess
import sys
from functools import partial
from typing import get_args

import pytest
import torch
from conftest import ROOT

from d3hr_ray.benchmarks import condense, search
from d3hr_ray.benchmarks.measure import Result, in_turns_apart, peak_mb
from d3hr_ray.runtime.surroundings import start_patiently
from jobs import bench

RATIOS = {
    "search": {"moments_loss_ratio", "moments_skew_ratio", "moments_cost_ratio", "random_speedup_ipc10"},
    "solver": {"evaluations_share", "slope_ddim", "slope_adams"},
    "fit": {"read_ratio", "read_ratio_shuffled"},
    "invert": {"equal_maths_speedup", "peak_share", "default_speedup"},
    "train": {"train_speedup_width32", "train_speedup_dc", "train_bound_dc", "bfloat16_speedup_dc"},
    "guides": {f"seconds_{name}_ipc2" for name in ("modes", "transport", "set", "set-repulsion", "features")},
    "stages": {"real_ipc2", "resized_ipc2", "vae_ipc2", "inverted_ipc2"},
    "condense": {"cpu_hours_ipc1"},
    "gpu": {"equal_maths_speedup", "best_forward_share", "vae_tf32_speedup", "concurrent_students_speedup"},
    "evaluate": {"driver_growth", "driver_growth_mb"},
}
PIPELINE = {"overhead", "efficiency_2", "driver_growth_mb", "object_stores_mb"}


SLOW = {"evaluate": pytest.mark.slow, "gpu": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in RATIOS])
def test_a_benchmark_saves_its_ratios(name, monkeypatch, tmp_path, capsys):
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["bench.py", name, "--quick", "--json", str(out)])
    bench.main()
    saved = check(out, name, RATIOS[name])
    said = capsys.readouterr().out
    assert "ratios:" in said and f"\ncommand: {saved['command']}\n" in said
    if name == "gpu":  # what ran, without a GPU or though there is one
        assert saved["notes"][-1] == "measured on the CPU, with tiny networks: it runs; no figure here is a GPU's"
        assert not any("cuda" in ratio for ratio in saved["ratios"])


def check(out, name, ratios):
    """The contract of a benchmark's JSON. Returns it."""
    saved = json.loads(out.read_text())
    assert saved["name"] == name
    assert set(saved["ratios"]) >= ratios
    assert all(isinstance(value, float) for value in saved["ratios"].values())
    assert saved["machine"]["cores"] >= 1 and "load_average" in saved["machine"]
    assert saved["command"].endswith(f"{name} --quick --json {out}")
    return saved


@pytest.mark.slow
def test_a_benchmark_of_simulated_nodes_saves_its_ratios(tmp_path):
    """It starts a cluster of its own: not in a process that may have a Ray."""
    out = tmp_path / "out.json"
    command = [sys.executable, "jobs/bench.py", "pipeline", "--quick", "--json", str(out)]

    def measure() -> None:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)

    start_patiently(measure, lambda: None)
    check(out, "pipeline", PIPELINE)


def test_no_benchmark_is_forgotten():
    assert {*RATIOS, "pipeline"} == set(get_args(bench.Name))


def test_a_search_is_measured_at_several_numbers_of_candidates():
    rows = [r for r in search.run(quick=True).rows if r["ipc"] == 10 and "mean error" in r and r["seconds"] > 0]
    for method in ("moments", "random"):
        assert len({r["candidates"] for r in rows if r["method"] == method}) >= 2


@pytest.mark.slow
def test_the_memory_of_a_task_does_not_hide_behind_its_parents_peak():
    held = torch.ones(100_000_000)  # 400 MB here, more than the task and its process
    del held
    assert peak_mb() > 400
    assert 10 < search._memory("moments", 4096) < 400  # measured: 48


def test_a_result_has_its_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jobs/bench.py", "x", "--quick"])
    assert "\ncommand: python jobs/bench.py x --quick\n" in str(Result("x", {}, [{"a": 1}]))


def test_an_unknown_benchmark_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", "serch"])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2
    assert "serch" in capsys.readouterr().err


def test_condensing_has_the_published_numbers_of_pieces():
    """A second each: rounds x classes of matching, and epochs over the synthetic images between rounds, not after."""
    second = {"real": 1.0, "synthetic": 1.0, "train": 1.0}
    assert condense.parts(1, second) == {"real images": 10_010, "synthetic images": 10_010, "networks": 0}
    assert condense.parts(10, second) == {"real images": 100_100, "synthetic images": 100_100, "networks": 1001 * 450}
    assert condense.parts(50, second)["networks"] == 1001 * 49 * 10 * 500 / 256


def sign(path):
    """A side of a benchmark, which notes in whose process it ran."""
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")


@pytest.mark.slow
def test_each_side_has_a_process_of_its_own_for_all_turns(tmp_path):
    seconds = in_turns_apart({name: partial(sign, tmp_path / name) for name in "ab"}, 2)
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}
    signed = {name: (tmp_path / name).read_text().split() for name in "ab"}
    assert [len(each) for each in signed.values()] == [3, 3]  # one untimed turn first
    assert len({os.getpid(), *map(int, signed["a"]), *map(int, signed["b"])}) == 3
