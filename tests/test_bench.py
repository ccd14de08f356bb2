"""jobs/bench.py at tiny sizes: every benchmark runs, and its JSON is the contract's. Its figures are not looked at."""

import json
import sys

import bench
import pytest

RATIOS = {
    "search": {"moments_loss_ratio", "moments_skew_ratio", "moments_cost_ratio", "random_speedup_ipc10"},
    "solver": {"evaluations_share", "slope_ddim", "slope_adams"},
    "fit": {"read_ratio", "read_ratio_shuffled"},
    "invert": {"equal_maths_speedup", "peak_share", "default_speedup"},
    "train": {"train_speedup_width32"},
}


@pytest.mark.parametrize("name", RATIOS)
def test_a_benchmark_saves_its_ratios(name, monkeypatch, tmp_path, capsys):
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["bench.py", name, "--quick", "--json", str(out)])
    bench.main()
    saved = json.loads(out.read_text())
    assert saved["name"] == name
    assert set(saved["ratios"]) >= RATIOS[name]
    assert all(isinstance(value, float) for value in saved["ratios"].values())
    assert saved["machine"]["cores"] >= 1 and "load_average" in saved["machine"]
    assert saved["command"].endswith(f"{name} --quick --json {out}")
    assert "ratios:" in capsys.readouterr().out


def test_an_unknown_benchmark_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", "serch"])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2
    assert "serch" in capsys.readouterr().err
