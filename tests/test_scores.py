"""Scores without training: distances in closed form, and the table of a small run's sets."""

import hashlib
import shutil
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import encode
from pyarrow import csv as pacsv

from d3hr_ray.cli.scores_flags import ScoreFlags, check_flags
from d3hr_ray.config import CaO2Config, DataConfig, ModelConfig, RunConfig, SearchConfig, SynthesisConfig
from d3hr_ray.datasets.images import Images
from d3hr_ray.evaluation.ranking import Accuracy, rank_correlations, read_accuracy
from d3hr_ray.evaluation.scores import COLUMNS, Measured, Scoring, columns_of, feature_scores, measure, redundancy
from d3hr_ray.evaluation.sets import find_sets, image_side, load_set
from d3hr_ray.models.autoencoder import to_images
from d3hr_ray.models.card import read_card
from d3hr_ray.numerics.distances import coverage, diversity, frechet, kernel_distance
from d3hr_ray.numerics.solvers import SAMPLE
from d3hr_ray.report.tables import format_scores, write_scores
from d3hr_ray.runs import base_of
from d3hr_ray.sets import sets_of, spec_of
from d3hr_ray.stages.card import Origin
from d3hr_ray.stages.images import IMAGE_SCHEMA
from d3hr_ray.stages.judge import Judge, load_judge
from d3hr_ray.stages.measures import moment_scores
from d3hr_ray.stages.networks import open_model
from d3hr_ray.stages.publish import run_publish
from d3hr_ray.stages.sampling import sampling_walk
from d3hr_ray.stages.search import subset_table
from d3hr_ray.store import Store


def normals(n: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) * std + mean


DIGITS = RunConfig(DataConfig("digits"), ModelConfig("digits"), method="dit")


def publish(root, config: RunConfig = DIGITS, classes: str = "0123456789", side: int = 16) -> str:
    """A run folder with one set of noise, as far as scoring reads it. Returns the set's path."""
    store, (spec,) = Store(str(root)), sets_of(replace(config, search=replace(config.search, ipc=(1,))))
    table = pa.table(
        {"label": range(len(classes)), "name": list(classes), "wnid": pa.nulls(len(classes), pa.string())}
        | {"model_class": [int(name) for name in classes]}
    )
    rows = []
    for label, name in enumerate(classes):
        data = encode(np.random.default_rng(label).integers(0, 256, (side, side, 3), np.uint8))
        store.write_bytes(f"distilled/{spec.name}/train/{name}/0.png", data)
        rows.append(
            {"file_name": f"train/{name}/0.png", "label": label, "class_name": name, "index": 0, "seed": 0}
            | {"score": None, "sha256": hashlib.sha256(data).hexdigest()}
        )
    store.write_table("classes.parquet", table)
    inputs = {"images": 1, "listing": "0", "classes": "0", "model": read_card(config.model.name).digest}
    run_publish(store, spec, table, inputs, pa.Table.from_pylist(rows, IMAGE_SCHEMA), Origin())
    return f"{store.uri}/distilled/{spec.name}"


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


def test_a_single_image_has_no_distance_of_distributions():
    assert np.isnan(frechet(normals(20), normals(1))) and np.isnan(frechet(normals(1), normals(20)))
    assert np.isnan(kernel_distance(normals(20), normals(1)))


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
    config = replace(DIGITS, method="d3hr", search=SearchConfig(ipc=(20,)))
    (spec,) = sets_of(config)
    store.write_table(f"subsets/{spec.name}/part-000000.parquet", subset_table([(0, z + 1, 0.0)], 0))
    found = moment_scores(store, spec)
    assert found["mean_error"] == pytest.approx(6**0.5, rel=1e-5)
    assert found["std_error"] == pytest.approx(0, abs=1e-5)
    # Clean latents are none of the noised Gaussian's, and without a timestep there is no Gaussian.
    for method in ("d3hr+cao2", "dit"):
        (other,) = sets_of(replace(config, method=method, cao2=CaO2Config(rematch=False)))
        assert np.isnan(list(moment_scores(store, other).values())).all()


@pytest.mark.parametrize(
    ("method", "rematch", "clean"), [("d3hr+cao2", True, False), ("d3hr+cao2", False, True), ("cao2", True, True)]
)
def test_a_manifest_tells_whether_its_latents_are_clean(method, rematch, clean):
    config = replace(DIGITS, method=method, cao2=CaO2Config(rematch=rematch))
    (spec,) = sets_of(config)
    assert spec_of(spec.recipe({})["config"]) == spec
    assert spec.is_clean == clean


def test_the_round_trip_of_an_official_set_is_the_walk_it_was_made_by():
    schedule = open_model(replace(DIGITS, model=replace(DIGITS.model, dtype="float32")), "cpu")[0]
    t = schedule.grid[10]
    assert sampling_walk(DIGITS, schedule, t) == (SAMPLE["ddim"], t)
    walk, start = sampling_walk(replace(DIGITS, fidelity="official"), schedule, t)
    assert start == schedule.above(t) > t and walk.keywords == {"floor": 1}
    assert sampling_walk(DIGITS, schedule, None) == (SAMPLE["ddim"], schedule.grid[-1])


def test_rank_correlations_are_over_sets_with_both():
    rows = [
        {"set_hash": str(i), **dict.fromkeys(COLUMNS, float("nan")), "frechet": -i, "coverage": 1.0} for i in range(5)
    ]
    found = rank_correlations(rows, {str(i): i / 10 for i in range(4)} | {"other": 1.0}, COLUMNS)
    assert found.keys() == {"frechet"} and found["frechet"].rho == pytest.approx(-1)
    assert found["frechet"].sets == 4 and found["frechet"].p == pytest.approx(0, abs=1e-9)


def test_equal_sets_count_once_in_a_correlation():
    """Five seeds of a set that no seed changes, such as the mean at IPC 1, are one set: two of those tell nothing."""
    rows = [{"set_hash": name, "frechet": score} for name, score in (("a", 1.0), ("b", 2.0)) for _ in range(5)]
    assert rank_correlations(rows, {"a": 0.5, "b": 0.6}, ("frechet",)) == {}
    more = [*rows, {"set_hash": "c", "frechet": 3.0}]
    assert rank_correlations(more, {"a": 0.5, "b": 0.6, "c": 0.7}, ("frechet",))["frechet"].sets == 3


def test_the_classifier_normalises_whatever_set_is_listed_first(tmp_path):
    official = replace(DIGITS, fidelity="official")
    paths = publish(tmp_path / "a"), publish(tmp_path / "b", official)
    images = to_images(torch.from_numpy(load_set(Store(paths[0]), 16).images.load().pixels))
    first, second = (Scoring.open(order, None).judge.probabilities(images) for order in (paths, paths[::-1]))
    assert torch.equal(first, second)
    authors = load_judge(official, Store(str(tmp_path / "b")).read_table("classes.parquet"), "cpu")
    assert not torch.allclose(authors.probabilities(images), first)


def test_sets_of_one_run_are_scored_together(tmp_path):
    """Its own, and those of its sweeps, which differ in settings, at the size of the first."""
    smaller = replace(DIGITS, synthesis=SynthesisConfig(guidance=2.0, image_size=8), seed=1)
    paths = publish(tmp_path / "run"), publish(tmp_path / "run/sets/w2", smaller, side=8)
    also = publish(tmp_path / "run/inversions/w1/sets/w2", replace(DIGITS, seed=2))
    scoring = Scoring.open((*paths, also), None)
    assert [found.images.side for found in scoring.sets] == [16, 16, 16]
    assert image_side(Store(paths[1])) == 8


@pytest.mark.parametrize(
    ("config", "classes", "said"),
    [
        (DIGITS, "01234", "other classes"),
        (replace(DIGITS, data=DataConfig("digits/test")), "0123456789", "other real images"),
        (replace(DIGITS, data=DataConfig("digits", limit_per_class=2)), "0123456789", "other real images"),
        (replace(DIGITS, model=ModelConfig("digits-affine")), "0123456789", "another model"),
    ],
)
def test_sets_of_different_runs_are_refused(tmp_path, config, classes, said):
    own, other = publish(tmp_path / "a"), publish(tmp_path / "b", config, classes)
    with pytest.raises(ValueError, match=f"--distilled {other} has {said} than {own}; score them in separate calls"):
        Scoring.open((own, other), None)


@pytest.mark.slow
def test_the_job_scores_every_set_of_a_run_and_correlates_with_its_accuracies(digits, tmp_path, monkeypatch, capsys):
    from jobs import scores

    run = tmp_path / "run"
    shutil.copytree(digits, run)
    sets = find_sets((str(run),))
    tested = {"protocol": "hard", "protocol_version": "1", "arch": "a", "data": "test", "teacher": None}
    accuracy = [tested | {"set_hash": load_set(s, 16).set_hash} for s in sets]
    rows = [row | {"top1_last": 0.1 * i} for i, row in enumerate(accuracy)]
    Store(str(run)).write_table("evaluations/results.parquet", pa.Table.from_pylist(rows))
    monkeypatch.setattr(sys, "argv", ["scores.py", "--distilled", str(run), "--per-class", "12"])
    scores.main()
    said = capsys.readouterr().out
    table = pacsv.read_csv(run / "report" / "scores.csv").to_pylist()
    assert sorted((row["ipc"], row["seed"]) for row in table) == [(1, 0), (1, 0), (5, 0), (5, 0)]
    assert all(0 <= row["coverage"] <= 1 and row["round_trip"] > 15 and row["mean_error"] < 1e-3 for row in table)
    assert sorted(row["top1"] for row in table) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert (run / "report" / "scores-correlations.csv").read_text() == '"ipc","sets","score","rho","p"\n'
    assert "d3hr-moments-t100-ipc5" in said and " 30.0" in said
    assert str(run / "report" / "scores.csv") in said


@pytest.fixture
def rows():
    """Four sets of each IPC; all scores rise from set to set."""
    return [
        {"set": "s", "fidelity": "fixed", "settings": "x", "ipc": ipc, "set_hash": f"{ipc}-{i}"}
        | dict.fromkeys(COLUMNS, float(i))
        for ipc in (1, 10)
        for i in range(4)
    ]


def test_correlations_are_told_per_ipc(rows):
    known = {row["set_hash"]: row["coverage"] * (1 if row["ipc"] == 1 else -1) for row in rows}
    text = format_scores(rows, Accuracy(known, "x/test", "a", "2", "net@0f"))
    assert "\ntop-1: a on x/test, protocol version 2, teacher net@0f\n" in text
    assert "\ntop-1: a on x/test, protocol version 2\n" in format_scores(rows, Accuracy(known, "x/test", "a", "2"))
    first, second = text.splitlines()[-2:]
    assert first.startswith("Spearman's rho, IPC 1 ") and first.split()[-1] == "+1.00"
    assert second.startswith("Spearman's rho, IPC 10") and second.split()[-1] == "-1.00"


def test_correlations_and_the_accuracy_they_are_with_are_written(rows, tmp_path):
    rows[0]["kernel"] = float("nan")
    store, known = Store(str(tmp_path)), {row["set_hash"]: row["coverage"] / 4 for row in rows if row["ipc"] == 1}
    assert write_scores(store.at("sets/w2"), rows, Accuracy(known)) == f"{store.uri}/report/scores.csv"
    assert pacsv.read_csv(tmp_path / "report/scores.csv")["top1"].to_pylist() == [0, 0.25, 0.5, 0.75, *[None] * 4]
    table = pacsv.read_csv(tmp_path / "report/scores-correlations.csv")
    assert table.column_names == ["ipc", "sets", "score", "rho", "p"]
    found = {row["score"]: row for row in table.to_pylist()}
    assert found.keys() == set(COLUMNS) and {row["ipc"] for row in found.values()} == {1}
    assert [found[c]["sets"] for c in ("kernel", "frechet")] == [3, 4] and found["frechet"]["rho"] == 1
    write_scores(store, rows, Accuracy({}))  # what an earlier call wrote does not stay
    assert len(pacsv.read_csv(tmp_path / "report/scores-correlations.csv")) == 0
    assert pacsv.read_csv(tmp_path / "report/scores.csv")["top1"].null_count == 8


def test_a_sweeps_sets_belong_to_the_run_that_evaluated_them(tmp_path):
    assert base_of(Store("/x/run/sets/w2-c256")).uri == "/x/run"
    assert base_of(Store("/x/run")).uri == "/x/run"
    for inner in ("sets", "inversions"):  # of the user's own
        run = Store(f"{tmp_path}/{inner}/digits")
        run.write_json("run.json", {})
        assert base_of(run).uri == run.uri and base_of(run.at("sets/w2-c256")).uri == run.uri
        run.at("inversions/w1").write_json("run.json", {})
        assert base_of(run.at("inversions/w1/sets/w2-c256")).uri == run.uri


def result(set_hash: str, top1: float, **changes) -> dict:
    """A row of results.parquet, as far as scoring reads it."""
    row = {"protocol": "hard", "protocol_version": "1", "arch": "a", "data": "test", "teacher": None}
    return row | {"set_hash": set_hash, "top1_last": top1} | changes


def test_accuracies_on_test_images_of_two_sizes_are_not_mixed(tmp_path):
    rows = [result(f"s{i}", 0.5, test="a") for i in range(3)] + [result("s0", 1.0, test="b")]
    found = read_accuracy([write_results(tmp_path, rows)], ("s0", "s1", "s2"), None, "hard", None)
    assert found.top1 == dict.fromkeys(("s0", "s1", "s2"), 0.5)


def write_results(root, rows: list[dict]) -> Store:
    store = Store(str(root))
    store.write_table("evaluations/results.parquet", pa.Table.from_pylist(rows))
    return store


def test_accuracies_on_different_images_and_of_different_students_are_not_mixed(tmp_path):
    rows = [result(f"s{i}", 0.5) for i in range(3)] + [result("s0", top1, data="train") for top1 in (0.8, 1.0)]
    store, ours = write_results(tmp_path, rows), ("s0", "s1", "s2")
    assert read_accuracy([store], ours, None, "hard", None) == Accuracy(dict.fromkeys(ours, 0.5), "test", "a", "1")
    assert read_accuracy([store], ours, "a", "hard", "train").top1 == pytest.approx({"s0": 0.9})
    assert read_accuracy([Store(str(tmp_path / "none"))], ours, None, None, None).top1 == {}
    for arch, protocol in (("b", "hard"), ("b", None), (None, "soft")):
        with pytest.raises(ValueError, match=r"no set has such a result; there are --protocol hard --arch a"):
            read_accuracy([store], ours, arch, protocol, None)
    both = write_results(tmp_path, [*rows, result("s0", 0.1, arch="b")])
    assert read_accuracy([both], ours, None, "hard", None).top1["s0"] == 0.5
    with pytest.raises(ValueError, match=r"--data tset: no set has a result .* there are results on test, train"):
        read_accuracy([store], ours, None, "hard", "tset")


def test_accuracies_of_other_protocol_versions_and_teachers_are_not_mixed(tmp_path):
    """The version that most of the sets have; the first by name of versions that equally many have."""
    old = [result(f"s{i}", 0.2, protocol_version="1", teacher="t@1") for i in range(2)]
    new = [result(f"s{i}", 0.6, protocol_version="2", teacher="t@1") for i in range(3)]
    other = [result(f"s{i}", 0.9, protocol_version="2", teacher="t@2") for i in range(2)]
    elsewhere = [result(f"x{i}", 0.1, protocol_version="2", teacher="t@2") for i in range(9)]  # of sets not scored
    store = write_results(tmp_path, old + new + other + elsewhere)
    found = read_accuracy([store], ("s0", "s1", "s2"), None, "hard", None)
    assert found == Accuracy(dict.fromkeys(("s0", "s1", "s2"), pytest.approx(0.6)), "test", "a", "2", "t@1")
    assert read_accuracy([store], ("s0", "s1"), None, "hard", "test").words.endswith("version 1, teacher t@1")


@pytest.mark.slow
def test_copies_are_redundant_and_parts_of_different_classes_are_not():
    """Parts that are copies are known by heart; labels that mean nothing cannot be told from the other parts."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 4)
    pixels = draw.integers(0, 256, (12, 16, 16, 3), np.uint8)
    copies = pixels[labels * 4]
    alike, other = (redundancy(Images(p, labels, ("a", "b", "c")), 2) for p in (copies, pixels))
    assert alike == 1.0 and other < 0.8
    assert np.isnan(redundancy(Images(pixels, labels, ("a", "b", "c")), 3))


@pytest.mark.parametrize("parts", [-1, 1])
def test_parts_that_are_none_are_refused(parts):
    with pytest.raises(ValueError, match=f"--redundancy {parts}: give 2 or more parts"):
        check_flags(ScoreFlags(("set",), redundancy=parts))


def test_redundancy_is_a_column_where_it_was_measured():
    plain = {"set": "s", "ipc": 1, **dict.fromkeys(COLUMNS, 1.0)}
    assert columns_of([plain]) == COLUMNS
    assert columns_of([plain, plain | {"redundancy": 0.5}]) == (*COLUMNS, "redundancy")
