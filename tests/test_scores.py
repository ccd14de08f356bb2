"""Scores without training: distances in closed form, and the table of a small run's sets."""

import shutil
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv as pacsv

from d3hr_ray.evaluation.sets import find_sets, load_set
from d3hr_ray.numerics.distances import coverage, diversity, frechet, kernel_distance
from d3hr_ray.report.scores import COLUMNS, Measured, feature_scores, measure, moment_scores, rank_correlations
from d3hr_ray.report.scoring import Accuracy, base_of, format_scores, read_accuracy
from d3hr_ray.stages.judge import Judge
from d3hr_ray.stages.search import subset_table
from d3hr_ray.store import Store


def normals(n: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) * std + mean


def test_frechet_of_gaussians_is_its_closed_form():
    """|m - m'|^2 + sum (s - s')^2 for diagonal ones; exact for the samples' own moments when one is scaled."""
    x = normals(500)
    assert frechet(x, x) == pytest.approx(0, abs=1e-8)
    assert frechet(x, x + 2) == pytest.approx(6 * 4, rel=1e-6)
    assert frechet(x, 3 * x) == pytest.approx(
        float((2 * x.double().mean(0)).square().sum() + 4 * torch.cov(x.double().T).trace()), rel=1e-6
    )


def test_kernel_distance_is_near_zero_for_one_distribution_and_its_definition_for_any():
    x, y = normals(40), normals(30, seed=1, mean=0.5)
    k = lambda a, b: (float(a @ b) / 6 + 1) ** 3  # noqa: E731
    xs, ys = x.double(), y.double()
    plain = (
        np.mean([k(a, b) for i, a in enumerate(xs) for j, b in enumerate(xs) if i != j])
        + np.mean([k(a, b) for i, a in enumerate(ys) for j, b in enumerate(ys) if i != j])
        - 2 * np.mean([k(a, b) for a in xs for b in ys])
    )
    assert kernel_distance(x, y) == pytest.approx(plain, rel=1e-9)
    assert abs(kernel_distance(normals(800), normals(800, seed=1))) < 0.05 < kernel_distance(x, y)


def test_coverage_and_diversity():
    real = normals(200)
    assert coverage(real, real) == 1.0
    assert coverage(real, real[:1].expand(50, 6) + 100) == 0.0
    assert coverage(real, real[:5]) < 0.5
    assert diversity(torch.tensor([[0.0], [1.0], [3.0]])) == pytest.approx(2.0)


def test_feature_scores_tell_a_good_set_from_a_collapsed_one():
    labels = torch.arange(100) % 2
    probabilities = torch.nn.functional.one_hot(labels, 2).float() * 0.8 + 0.1
    real = Measured(normals(100) + 4.0 * labels[:, None], probabilities, labels)
    good = Measured(normals(100, seed=1) + 4.0 * labels[:, None], probabilities, labels)
    one = Measured(4.0 * labels[:, None] + torch.zeros(100, 6), 1 - probabilities, labels)
    a, b = feature_scores(real, good), feature_scores(real, one)
    assert a["frechet"] < b["frechet"] and a["coverage"] > b["coverage"] and a["diversity"] > b["diversity"] == 0
    assert (a["on_class"], b["on_class"]) == (1.0, 0.0) and a["confidence"] == pytest.approx(0.9)


def test_features_are_the_last_layers_inputs():
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    pixels = np.full((5, 8, 8, 3), 255, np.uint8)
    seen = measure(Judge(net, 8, "cpu"), pixels, np.zeros(5, np.int64))
    assert torch.allclose(seen.features_NF, torch.ones(5, 3)) and seen.probabilities_NK.shape == (5, 2)


def test_moment_errors_are_norms_against_the_stored_gaussian(tmp_path):
    from d3hr_ray.numerics.moments import Moments
    from d3hr_ray.stages.fit import gaussian_table

    store, z = Store(str(tmp_path)), normals(20)
    store.write_table("gaussians/t0600.parquet", gaussian_table({0: Moments.of(z)}, 600, ["a"], 20))
    store.write_table("subsets/v/part-000000.parquet", subset_table([(0, z + 1, 0.0)], 0))
    found = moment_scores(store, "v", 600)
    assert found["mean_error"] == pytest.approx(6**0.5, rel=1e-5)
    assert found["std_error"] == pytest.approx(0, abs=1e-5)
    assert np.isnan(moment_scores(store, "v", None)["mean_error"])


def test_rank_correlations_are_over_sets_with_both():
    rows = [
        {"set_hash": str(i), **dict.fromkeys(COLUMNS, float("nan")), "frechet": -i, "coverage": 1.0} for i in range(5)
    ]
    found = rank_correlations(rows, {str(i): i / 10 for i in range(4)} | {"other": 1.0})
    assert found.keys() == {"frechet"} and found["frechet"][0] == pytest.approx(-1)


def test_the_job_scores_every_set_of_a_run_and_correlates_with_its_accuracies(digits, tmp_path, monkeypatch, capsys):
    import scores

    run = tmp_path / "run"
    shutil.copytree(digits, run)
    sets = find_sets((str(run),))
    accuracy = [{"set_hash": load_set(s, 16).set_hash, "protocol": "hard", "arch": "a", "data": "test"} for s in sets]
    rows = [row | {"top1_last": 0.1 * i} for i, row in enumerate(accuracy)]
    Store(str(run)).write_table("evaluations/results.parquet", pa.Table.from_pylist(rows))
    monkeypatch.setattr(sys, "argv", ["scores.py", "--distilled", str(run), "--per-class", "12"])
    scores.main()
    said = capsys.readouterr().out
    table = pacsv.read_csv(run / "report" / "scores.csv").to_pylist()
    assert sorted((row["ipc"], row["seed"]) for row in table) == [(1, 0), (1, 0), (5, 0), (5, 0)]
    assert all(0 <= row["coverage"] <= 1 and row["round_trip"] > 15 and row["mean_error"] < 1e-3 for row in table)
    assert "d3hr-moments-t100-ipc5" in said and " 30.0" in said
    assert str(run / "report" / "scores.csv") in said


def test_correlations_are_told_per_ipc():
    rows = [
        {"set": "s", "fidelity": "fixed", "settings": "x", "ipc": ipc, "set_hash": f"{ipc}-{i}"}
        | dict.fromkeys(COLUMNS, float(i))
        for ipc in (1, 10)
        for i in range(4)
    ]
    known = {row["set_hash"]: row["coverage"] * (1 if row["ipc"] == 1 else -1) for row in rows}
    text = format_scores(rows, Accuracy(known, "x/test"))
    assert "top-1: on x/test" in text
    first, second = text.splitlines()[-2:]
    assert first.startswith("Spearman's rho, IPC 1 ") and first.split()[-1] == "+1.00"
    assert second.startswith("Spearman's rho, IPC 10") and second.split()[-1] == "-1.00"


def test_a_sweeps_sets_belong_to_the_run_that_evaluated_them():
    assert base_of(Store("/x/run/sets/w2-c256")).uri == "/x/run"
    assert base_of(Store("/x/run")).uri == "/x/run"


def test_accuracies_on_different_images_are_not_mixed(tmp_path):
    store, row = Store(str(tmp_path)), {"protocol": "hard", "arch": "a"}
    rows = [row | {"data": "test", "set_hash": f"s{i}", "top1_last": 0.5} for i in range(3)]
    rows += [row | {"data": "train", "set_hash": "s0", "top1_last": top1} for top1 in (0.8, 1.0)]
    store.write_table("evaluations/results.parquet", pa.Table.from_pylist(rows))
    assert read_accuracy([store], None, "hard", None) == Accuracy({f"s{i}": 0.5 for i in range(3)}, "test")
    assert read_accuracy([store], "a", "hard", "train").top1 == pytest.approx({"s0": 0.9})
    assert read_accuracy([store], "b", "hard", None).top1 == {}
    with pytest.raises(ValueError, match=r"--data tset: no set was tested .* there is \['test', 'train'\]"):
        read_accuracy([store], None, "hard", "tset")
