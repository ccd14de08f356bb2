"""Records of students, intervals over sets, and rankings: all without Ray."""

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from stripes import hard, stripes

from d3hr_ray.cli.presets import PRESETS
from d3hr_ray.config import as_dict
from d3hr_ray.evaluation.ranking import (
    accuracy_of,
    augmentation_robust_score,
    label_robust_score,
    robust,
    spread,
    summarise,
)
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.evaluation.trials import SCHEMA, make_trial, records, rows_of, run_trial
from d3hr_ray.report.accuracy import accuracy_sections, accuracy_table
from d3hr_ray.report.tables import format_summary
from d3hr_ray.sets import about_of, sets_of, without_axes
from d3hr_ray.store import Store


def test_a_record_is_written_once_and_says_all(tmp_path):
    store, found = Store(str(tmp_path)), DistilledSet("mine", stripes(8), "hash", 4, {"method": "d3hr", "ipc": 8})
    trial = make_trial(found, "convnet-d3-w32", hard(), 1, (), None, ("uri", "test"))
    row = run_trial(store, trial, found.images, stripes(10, 1), None, None, "cpu")
    assert store.read_json(trial.record) == row
    assert (row["set"], row["method"], row["ipc"], row["set_seed"], row["seed"]) == ("mine", "d3hr", 8, 4, 1)
    assert np.array(row["confusion"]).sum() == 30
    assert row["top1_last"] == pytest.approx(np.mean(row["per_class"]))
    assert row["top1_best"] <= row["top5_best"] <= 1
    assert set(SCHEMA.names) <= row.keys()
    assert make_trial(found, "convnet-d3-w32", hard(), 2, (), None, ("uri", "test")).key != trial.key
    assert make_trial(found, "convnet-d3-w32", hard(lr=1e-3), 1, (), None, ("uri", "test")).key != trial.key


def test_a_pages_section_is_of_one_test_set_also_where_two_sizes_lie_at_one_place(tmp_path):
    store, found = Store(str(tmp_path)), DistilledSet("mine", stripes(8), "hash", 4, {"method": "d3hr", "ipc": 8})
    trial = make_trial(found, "convnet-d3-w32", hard(), 1, (), None, ("file:///x/cats/test", "first"))
    row = run_trial(store, trial, found.images, stripes(10, 1), None, None, "cpu")
    for others, titles in (
        ([], ["cats"]),
        ([row | {"test": "second"}], ["cats (images first)", "cats (images second)"]),
    ):
        page = "".join(accuracy_sections(store, [row, *others], ["a", "b", "c"]))
        assert re.findall("<h2>Accuracy on (.*?)</h2>", page) == titles
    assert len(list((tmp_path / "report").glob("*-confusion.png"))) == 3, "each section has plots of its own"
    assert "<h2>Accuracy on cats</h2>" in "".join(accuracy_sections(store, [row], list("abcd"))), (
        "the run's own are four"
    )


def test_a_record_of_before_top5_best_is_read_with_none_for_it(tmp_path):
    store, found = Store(str(tmp_path)), DistilledSet("mine", stripes(8), "hash", 4, {"method": "d3hr", "ipc": 8})
    trial = make_trial(found, "convnet-d3-w32", hard(), 1, (), None, ("uri", "test"))
    row = run_trial(store, trial, found.images, stripes(10, 1), None, None, "cpu")
    store.write_json(trial.record, {key: value for key, value in row.items() if key != "top5_best"})
    assert trial.key == "4779b2e05bd0bd21"  # what is trained already must not be trained again
    assert [r["top5_best"] for r in (*records(store), *rows_of(store, [trial]))] == [None, None]
    (kept,) = pq.read_table(tmp_path / "evaluations" / "results.parquet").to_pylist()
    assert (kept["top5_best"], kept["top1_best"]) == (None, row["top1_best"])


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "d3hr-moments"),
        ({"components": "ipc", "single": "medoid"}, "d3hr-moments-kipc-medoid"),
        ({"components": 5}, "d3hr-moments-k5-c100"),
    ],
    ids=str,
)
def test_a_record_of_before_has_the_kind_of_its_config_or_its_whole_name(tmp_path, changes, kind):
    """`kind` is the same at every IPC and timestep, as in the manifests of now."""
    plain, store = PRESETS["digits"](), Store(str(tmp_path))
    search = replace(plain.search, ipc=(1, 10), **changes)
    config = replace(plain, search=search, inversion=replace(plain.inversion, cluster_timestep=100))
    sets = sets_of(config)
    row = dict.fromkeys(set(SCHEMA.names) - {"kind"})
    for i, about in enumerate(v.about for v in sets):
        own = {"set": about["name"], "timestep": about["timestep"], "ipc": about["ipc"], "set_seed": about["seed"]}
        store.write_json(
            f"evaluations/runs/{i}.json", row | own | {"config": json.dumps(without_axes(as_dict(config)))}
        )
        assert about_of(sets[i].recipe({})) == about
    store.write_json("evaluations/runs/foreign.json", row | {"set": "exp-t1"})
    assert {v.about["kind"] for v in sets} == {kind}
    assert [r["kind"] for r in records(store)] == [kind] * len(sets) + ["exp-t1"]


def test_intervals_are_students():
    found = spread([0.9, 0.92, 0.94])
    assert (found.mean, found.std) == (pytest.approx(0.92), pytest.approx(0.02))
    assert found.ci95 == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-5)
    assert (found.low, found.high) == (pytest.approx(0.92 - found.ci95), pytest.approx(0.92 + found.ci95))


@pytest.mark.parametrize(
    ("top1", "said"),
    [((0.65,), "65.0"), ((0.511, 0.789), "65.0 (51.1, 78.9)"), ((0.9, 0.92, 0.94), "92.0 ± 5.0")],
    ids=["one", "two", "three"],
)
def test_fewer_than_three_sets_have_no_interval(top1, said):
    row = dict.fromkeys(SCHEMA.names) | {"set": "s", "method": "m", "arch": "a", "protocol": "p", "top5_last": 1.0}
    rows = [row | {"set_hash": str(x), "top1_last": x, "top1_best": x} for x in top1]
    (cell,) = summarise(rows)
    assert accuracy_of(cell) == said
    assert f" {said} " in format_summary(rows).splitlines()[1]
    assert f">{said}</td>" in accuracy_table(rows)
    if len(top1) < 3:
        assert np.isnan(cell["top1_last_ci95"])
        assert (cell["top1_last_low"], cell["top1_last_high"]) == (min(top1), max(top1))


def test_a_set_counts_once_however_many_students_it_has():
    def rows(*accuracies):
        return [{"set_hash": h, "top1_last": v, "top1_best": v, "top5_last": 1.0} for h, v in accuracies]

    (two,) = summarise(rows(("a", 0.5), ("a", 0.7), ("b", 0.8)), [])
    assert (two["n"], two["students"]) == (2, 3)
    assert two["top1_last"] == pytest.approx(0.7)
    assert two["top1_last_std"] == pytest.approx(0.2 / 2**0.5)
    (one,) = summarise(rows(("a", 0.5), ("a", 0.7)), [])
    assert (one["n"], one["top1_last"]) == (2, pytest.approx(0.6))


def test_rankings_are_on_fractions():
    assert robust(-1) == pytest.approx(0.0)
    assert robust(1) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="divide accuracies by 100"):
        robust(-17.5)
    scores = label_robust_score({"full-hard": 0.9, "set-hard": 0.5, "set-soft": 0.6, "random-soft": 0.55})
    assert (scores["HLR"], scores["IOR"]) == (pytest.approx(0.4), pytest.approx(0.05))
    assert scores["LRS"] == pytest.approx((np.exp(-0.175) - np.exp(-1)) / (np.e - np.exp(-1)))
    aug_scores = augmentation_robust_score({"set-soft": 0.6, "random-soft": 0.5, "set-noaug": 0.4, "random-noaug": 0.5})
    assert aug_scores["ARS"] == pytest.approx(robust(0.0))
