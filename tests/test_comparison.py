"""Teachers, sets, baselines, results and rankings: all without Ray."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from stripes import hard, stripes, write_set

from d3hr_ray.cli.presets import PRESETS
from d3hr_ray.config import DataConfig, RunError, as_dict
from d3hr_ray.datasets.images import Images
from d3hr_ray.datasets.reading import Reading
from d3hr_ray.evaluation.baselines import centres, herd, k_centers, make_baseline, nearest_to_centres, random_set
from d3hr_ray.evaluation.comparison import _named_as, list_real, open_comparison
from d3hr_ray.evaluation.ranking import (
    accuracy_of,
    augmentation_robust_score,
    label_robust_score,
    robust,
    spread,
    summarise,
)
from d3hr_ray.evaluation.recipes import Recipe
from d3hr_ray.evaluation.sets import DistilledSet, _names, find_sets, image_side, load_set
from d3hr_ray.evaluation.training import train_student
from d3hr_ray.evaluation.trials import SCHEMA, make_trial, records, rows_of, run_trial
from d3hr_ray.models.classifiers import evaluate, preflight
from d3hr_ray.models.teachers import (
    Ensemble,
    Target,
    load_teacher,
    load_teachers,
    save_teacher,
    teacher_id,
)
from d3hr_ray.report.accuracy import accuracy_table
from d3hr_ray.report.tables import disambiguate_sets, format_summary
from d3hr_ray.runtime.objects import lend
from d3hr_ray.sets import about_of, sets_of, without_axes
from d3hr_ray.store import Store

# Teachers


@pytest.fixture
def taught(tmp_path):
    """A folder with a teacher of three classes, in the order c, a, b."""
    images = stripes(8)
    net = train_student("convnet-d3-w32", hard(), images, images, None, 0)
    store = Store(str(tmp_path / "teacher"))
    save_teacher(store, "convnet-d3-w32", images.classes, images.side, net.weights, {})
    return store


def test_a_teacher_answers_in_the_sets_class_order(taught):
    test = stripes(20, 2)
    order = np.array([2, 0, 1])  # the set's label k is the teacher's class order[k]
    turned = Images(test.pixels, np.argsort(order)[test.labels], tuple(np.array(test.classes)[order]))
    teacher = load_teachers([taught.uri], Target(turned.classes, None, 16), "cpu")
    assert preflight(teacher, turned, "t", "cpu") > 0.95
    assert teacher_id([taught.uri]).startswith("convnet-d3-w32@")


def test_a_teacher_with_a_wrong_class_order_is_refused(taught):
    test = stripes(20, 2)
    wrong = replace(test, labels=(test.labels + 1) % 3)
    teacher = load_teachers([taught.uri], Target(test.classes, None, 16), "cpu")
    with pytest.raises(RunError, match="near chance"):
        preflight(teacher, wrong, "t", "cpu")


def test_teachers_that_do_not_fit_are_refused(taught, tmp_path):
    abc = Target(("a", "b", "c"), None, 16)
    with pytest.raises(ValueError, match="takes 16 pixels and the students 32"):
        load_teacher(taught.uri, replace(abc, side=32))
    with pytest.raises(ValueError, match="does not know class 'x'"):
        load_teacher(taught.uri, Target(("a", "x"), None, 16))
    with pytest.raises(ValueError, match="no timm model"):
        load_teacher("resnet17", abc)
    with pytest.raises(ValueError, match="no such file"):
        load_teacher(f"resnet18={tmp_path}/none.pt", abc)
    torch.save({"a": torch.zeros(3, 4)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="the weights are not convnet-d3's"):
        load_teacher(f"convnet-d3={tmp_path}/odd.pt", abc)


@pytest.mark.parametrize("labels", [None, ["c", "a", "b"]], ids=["unnamed", "named"])
def test_a_model_of_the_hub_is_a_teacher_if_it_names_its_classes(monkeypatch, labels):
    made, asked = timm.create_model("resnet18", num_classes=3), []
    made.pretrained_cfg |= {"num_classes": 3, "label_names": labels, "input_size": (3, 16, 16)}
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: asked.append((name, pretrained)) or made)
    abc, images = Target(("a", "b", "c"), None, 16), torch.zeros(1, 3, 16, 16)
    if labels is None:
        with pytest.raises(ValueError, match="--teacher hf-hub:me/net knows 3 classes without names"):
            load_teacher("hf-hub:me/net", abc)
        return
    found = load_teacher("hf-hub:me/net", abc).eval()
    assert asked == [("hf-hub:me/net", True)]
    mean, std = (torch.tensor(made.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(found(images), made(((0.5 - mean) / std).expand_as(images))[:, [1, 2, 0]])


def test_a_model_of_the_hub_that_cannot_be_had_says_what_to_do(monkeypatch):
    def offline(name, pretrained):
        raise OSError("offline mode is enabled\nand more lines")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ValueError, match=r"cannot be had \(offline mode is enabled\); download them and give ARCH=FILE"
    ):
        load_teacher("hf-hub:timm/resnet18.a1_in1k", Target(("a",), None, 16))


def test_a_checkpoint_file_is_a_teacher_and_several_are_averaged(taught, tmp_path):
    abc, test = Target(("a", "b", "c"), None, 16), stripes(20, 2)
    net = load_teacher(taught.uri, abc)
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.net.state_dict().items()}}, tmp_path / "t.pt")
    again = load_teacher(f"convnet-d3-w32={tmp_path}/t.pt", abc).eval()
    images = torch.from_numpy(test.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(again(images), net.eval()(images))
    torch.testing.assert_close(Ensemble([net, again]).eval()(images), net(images))
    assert evaluate(again, test, "cpu").top1 > 0.95


@pytest.mark.parametrize("made", [b"no weights", [torch.ones(2, 2)], {0: torch.ones(2, 2)}, {"epoch": 3}])
def test_a_file_without_weights_is_no_teacher(tmp_path, made):
    if isinstance(made, bytes):
        (tmp_path / "t.pt").write_bytes(made)
    else:
        torch.save(made, tmp_path / "t.pt")
    with pytest.raises(ValueError, match=r"no checkpoint of weights|holds no linear layer"):
        load_teacher(f"convnet-d3-w32={tmp_path}/t.pt", Target(("a",), None, 16))


# Sets and baselines


def test_anyones_image_folder_is_a_set(tmp_path):
    images = stripes(4)
    found = load_set(find_sets((write_set(tmp_path / "theirs", images),))[0], 16)
    assert (found.name, found.about["ipc"], len(found.images)) == ("theirs", 4, 12)
    other = load_set(find_sets((write_set(tmp_path / "other" / "theirs", stripes(4, 1)),))[0], 16)
    sets = [replace(s, set_hash=s.images.survey()[0]) for s in (found, other)]
    rows = [dict(make_trial(s, "a", hard(), 0, (), None, ("uri", "test")).about) for s in sets]
    assert rows[0]["kind"] == "theirs"
    assert len({r["set"] for r in disambiguate_sets(rows)}) == 2
    np.testing.assert_array_equal(found.images.load().pixels, images.pixels)


def test_class_folders_without_train_are_a_set_too_and_a_class_may_be_called_train(tmp_path):
    images = replace(stripes(4), classes=("bus", "train", "tram"))
    under = write_set(tmp_path / "theirs", images)
    flat = shutil.copytree(f"{under}/train", tmp_path / "flat")
    for path in (under, f"{under}/train/", str(flat)):
        (store,) = find_sets((path,))
        found = load_set(store, image_side(store))
        assert found.name == ("flat" if path == str(flat) else "theirs")
        np.testing.assert_array_equal(found.images.load().pixels, images.pixels)
        assert found.images.classes == images.classes
    (flat / ".ipynb_checkpoints").mkdir()
    assert load_set(Store(str(flat)), 16).images.classes == images.classes
    (tmp_path / "empty" / "report").mkdir(parents=True)
    for nothing in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(ValueError, match=f"{nothing}: no set in it"):
            find_sets((str(nothing),))


def test_an_unfinished_set_of_ours_is_refused(tmp_path):
    path = write_set(tmp_path / "run" / "distilled" / "d3hr-moments-t600-ipc4-seed0", stripes(4))
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is not finished"):
        load_set(Store(path), 16)


def test_two_classes_of_one_name_stay_two():
    rows = [{"label": k, "class_name": "crane", "file_name": f"train/n0{k}/0.png"} for k in (1, 0)]
    assert _names(rows) == ("crane (n00)", "crane (n01)")


def test_a_test_set_without_a_class_is_named(tmp_path):
    path = write_set(tmp_path / "set", stripes(4))
    real = write_set(tmp_path / "real", stripes(4, 1, classes=2))
    with pytest.raises(
        ValueError, match=r"--data .*/train: the set has a, b, c, the data a, b \(class c: the data has"
    ):
        open_comparison((path,), DataConfig(f"{real}/train"), None, ["convnet-d3"], None, Recipe())
    with pytest.raises(ValueError, match="--data is needed"):
        open_comparison((path,), None, None, ["convnet-d3"], None, Recipe())


def test_classes_that_differ_are_shown_side_by_side(tmp_path):
    shapes = write_set(tmp_path / "shapes", replace(stripes(2), classes=("circle", "square", "triangle")))
    digits = tuple("0123456789")
    with pytest.raises(
        ValueError, match=r"the set has 0, 1, 2, \.\.\., 9 \(10 classes\), the data circle, square, tri"
    ):
        list_real(DataConfig(f"{shapes}/train"), digits, None)
    with pytest.raises(ValueError, match=r"--train-data .*/none: no such file or folder"):
        list_real(DataConfig(f"{tmp_path}/none"), digits, None, "--train-data")
    paths = (shapes, write_set(tmp_path / "set", stripes(2)))
    with pytest.raises(
        ValueError, match=r"differ in classes: a, b, c and circle, square, triangle \(class circle: .*\)"
    ):
        open_comparison(paths, None, None, ["convnet-d3"], None, Recipe())


def test_folders_that_spell_classes_otherwise_are_matched_and_ordered_as_the_first_set(tmp_path):
    """Spelt as we write folders, and in another order: `b/c` is b_c, and comes last there as `z` does here."""
    names = ("z", "b/c", "a")
    ours = replace(stripes(3), classes=("z", "b_c", "a"))
    paths = tuple(write_set(tmp_path / name, ours) for name in ("plain", "numbered"))
    for at, name in enumerate(ours.classes):
        folder = tmp_path / "numbered/train" / name
        folder.rename(folder.with_name(f"{at:04d}_{name}"))
    found = [load_set(Store(path), 16) for path in paths]
    first = DistilledSet("ours", replace(ours, classes=names), "abc")
    for path, each in zip(paths, found, strict=True):
        matched = _named_as(first, each, Store(path), 16).images.load()
        assert matched.classes == names
        for label in range(3):
            np.testing.assert_array_equal(matched.pixels[matched.labels == label], ours.pixels[ours.labels == label])
    fewer = DistilledSet("fewer", replace(stripes(3, classes=2), classes=names[:2]), "abc")
    with pytest.raises(ValueError, match=r"plain and fewer differ in classes: .* \(3 classes and 2\)"):
        _named_as(fewer, found[0], Store(paths[0]), 16)


def test_labels_follow_the_sets_order_not_the_folders(tmp_path):
    listing = list_real(DataConfig("digits/test"), ("7", "1"), None)
    assert {r["label"] for r in listing.entries.to_pylist()} == {0, 1}
    sources = [listing.classes.sources[label] for label in (0, 1)]
    assert sources == ["7", "1"]


def test_herding_chooses_the_mean_first_and_never_twice():
    features = np.random.default_rng(0).normal(size=(40, 5))
    chosen = herd(features, 40, 0, 0)
    assert sorted(chosen.tolist()) == list(range(40))
    assert chosen[0] == np.linalg.norm(features - features.mean(0), axis=1).argmin()
    error = [np.linalg.norm(features[chosen[:n]].mean(0) - features.mean(0)) for n in (5, 20, 40)]
    assert error[0] > error[1] > error[2]
    for k in range(1, 10):  # the best of all that are left
        left = [row for row in range(40) if row not in chosen[:k]]
        means = {row: features[[*chosen[:k], row]].mean(0) for row in left}
        assert chosen[k] == min(left, key=lambda row: np.linalg.norm(means[row] - features.mean(0)))


def test_k_center_covers_what_lies_far_apart_and_never_chooses_twice():
    """Three far clusters and a middle: its second to fourth centres are one of each cluster."""
    draw = np.random.default_rng(0)
    middles = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 60.0], [-50.0, -60.0]])
    features = np.concatenate([middle + draw.normal(size=(10, 2)) for middle in middles])
    chosen = k_centers(features, 40, 0, 0)
    assert sorted(chosen.tolist()) == list(range(40))
    assert chosen[0] == np.linalg.norm(features - features.mean(0), axis=1).argmin() < 10
    assert {int(row) // 10 for row in chosen[1:4]} == {1, 2, 3}
    radius = [np.linalg.norm(features[:, None] - features[chosen[:n]], axis=2).min(1).max() for n in (1, 2, 3, 4)]
    assert radius == sorted(radius, reverse=True) and radius[-1] < 10
    np.testing.assert_array_equal(k_centers(features, 6, 0, 0), chosen[:6])
    assert sorted(k_centers(np.ones((5, 2)), 5, 0, 0).tolist()) == list(range(5))


def test_one_centre_is_the_mean_and_coresets_are_distinct_real_images():
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.testing.assert_allclose(centres(features, 1, 0, 0)[0], features.mean(0), atol=1e-6)
    assert len(set(nearest_to_centres(features, 12, 0, 0).tolist())) == 12


def test_baselines_hold_n_images_of_each_class_and_are_told_apart_by_seed():
    real = stripes(9)
    for name in ("herding", "k-center", "kmeans-real", "pixel-kmeans"):
        made = make_baseline(name, real, 4, 0)
        assert np.bincount(made.labels).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="fewer than 10"):
        make_baseline("herding", real, 10, 0)
    listing = list_real(DataConfig("digits/train"), tuple("0123456789"), None)
    sets = [random_set(listing, tuple("0123456789"), 16, n, seed) for n, seed in ((2, 0), (2, 1), (5, 0))]
    assert len({s.survey()[0] for s in sets}) == 3
    small, large = sets[0].load(), sets[2].load()
    np.testing.assert_array_equal(small.pixels[:2], large.pixels[:2])  # nested in n


def test_without_workers_one_set_is_held_at_a_time():
    class Asked(Images):
        def load(self, glance=False):
            loaded.append(self.classes)
            return self

    loaded: list[tuple[str, ...]] = []
    sets = {name: Asked(np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, np.int64), (name,)) for name in "ab"}
    take = lend(sets, stripes(1), here=True)
    assert [take(name).classes for name in "aabba"] == [("a",), ("a",), ("b",), ("b",), ("a",)]
    assert loaded == [("a",), ("b",), ("a",)]


def test_a_glance_is_the_first_images_of_each_class_in_order():
    images = stripes(12).take(np.random.default_rng(0).permutation(36))
    shown = images.load(glance=True)
    assert np.bincount(shown.labels).tolist() == [10, 10, 10]
    for label in range(3):
        first = images.pixels[images.labels == label][:10]
        np.testing.assert_array_equal(shown.pixels[shown.labels == label], first)


# Results


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


def test_test_images_are_the_centre_of_a_larger_resize(tmp_path):
    wide = np.zeros((80, 160, 3), np.uint8)
    wide[:, 80:] = 255
    folder = tmp_path / "a"
    folder.mkdir()
    Image.fromarray(wide).save(folder / "x.png")
    (tmp_path / "b").mkdir()
    Image.fromarray(wide).save(tmp_path / "b" / "y.png")
    listing = list_real(DataConfig(str(tmp_path)), ("a", "b"), None)
    pixels = replace(Reading.of(listing, ("a", "b"), 64), context=True).load().pixels
    expected = np.asarray(Image.fromarray(wide).resize((144, 72), Image.Resampling.BILINEAR))[4:68, 40:104]
    np.testing.assert_allclose(pixels[0].astype(int), expected.astype(int), atol=2)


@pytest.mark.parametrize("side", [28, 32, 56])
def test_small_test_images_are_tested_whole(side, tmp_path):
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "x.png")
    reading = Reading.of(list_real(DataConfig(str(tmp_path)), ("a", "b"), None), ("a", "b"), side)
    np.testing.assert_array_equal(replace(reading, context=True).load().pixels, reading.load().pixels)
    np.testing.assert_array_equal(reading.load().pixels[1], pixels)
