"""Sets, baselines and test images of a comparison, which are held in Ray."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from idx_files import write_set as write_idx
from PIL import Image
from stripes import hard, stripes, write_set

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.images import Images
from d3hr_ray.datasets.reading import Reading
from d3hr_ray.evaluation.baselines import centres, herd, k_centers, make_baseline, nearest_to_centres, random_set
from d3hr_ray.evaluation.comparison import _named_as, list_real, open_comparison
from d3hr_ray.evaluation.recipes import Recipe
from d3hr_ray.evaluation.sets import DistilledSet, _names, find_sets, image_side, load_set
from d3hr_ray.evaluation.trials import make_trial
from d3hr_ray.report.names import disambiguate_sets
from d3hr_ray.runtime import objects
from d3hr_ray.runtime.objects import lend
from d3hr_ray.store import Store

pytestmark = pytest.mark.usefixtures("ray_session")


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


def test_sets_of_two_sizes_need_a_side_for_all(tmp_path):
    """The first would decide what all students see, and the order of paths on accuracies."""
    small = write_set(tmp_path / "small", stripes(4))
    large = write_set(tmp_path / "large", replace(stripes(4), pixels=stripes(4).pixels.repeat(2, 1).repeat(2, 2)))
    real = DataConfig(f"{write_set(tmp_path / 'real', stripes(4, 1))}/train")
    with pytest.raises(ValueError, match=r"small has images of 16 pixels and \S*large of 32; give --image-size"):
        open_comparison((small, large), real, None, ["convnet-d3"], None, Recipe())
    made = open_comparison((small, large), real, 16, ["convnet-d3"], None, Recipe())
    assert len(made.sets) == 2 and made.test.side == 16


def test_digits_of_idx_files_are_not_mirrored_and_things_called_by_numbers_are(tmp_path):
    names, kinds = tuple("0123456789"), {"hard": ("2-upright", False), "dsa": ("1", False)}
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), np.uint8)
    path = write_set(tmp_path / "set", Images(pixels, np.arange(10), names))
    (tmp_path / "things").mkdir()
    things = write_set(tmp_path / "things" / "set", Images(pixels, np.arange(10), names))
    for real, wanted in ((write_idx(tmp_path / "MNIST"), kinds), (f"{things}/train", kinds | {"hard": ("2", True)})):
        made = open_comparison((path,), DataConfig(real), None, ["mlp"], None, Recipe())
        protocols = {name: made.protocol(name, made.sets[0], "mlp") for name in kinds}
        assert {name: (p.version, p.augment.flip) for name, p in protocols.items()} == wanted


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


def test_test_images_that_no_node_would_hold_are_refused_before_one_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "MOST_BYTES", 1 << 12)
    found = write_set(tmp_path / "set", stripes(2))
    with pytest.raises(ValueError, match=r"--data .* would hold 6 images .* in memory; use a smaller --image-size"):
        open_comparison((found,), DataConfig(f"{found}/train"), None, ["convnet-d1-w1"], None, Recipe())
