"""Evaluation: students, protocols, augmentation, training, teachers, baselines, scores: all without Ray."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import encode
from PIL import Image

from d3hr_ray.config import DataConfig, RunError
from d3hr_ray.evaluation import augment as aug
from d3hr_ray.evaluation.baselines import centres, herd, make_baseline, nearest_to_centres, random_set
from d3hr_ray.evaluation.comparison import open_comparison
from d3hr_ray.evaluation.images import Images
from d3hr_ray.evaluation.protocols import PROTOCOLS, Augment, Overrides, Recipe, Setting
from d3hr_ray.evaluation.ranking import augmentation_robust_score, label_robust_score, robust
from d3hr_ray.evaluation.results import interval, summarise
from d3hr_ray.evaluation.sets import DistilledSet, _names, find_sets, list_real, load_set
from d3hr_ray.evaluation.students import EXAMPLES, build_student, check_arch
from d3hr_ray.evaluation.teachers import (
    Ensemble,
    Target,
    load_teacher,
    load_teachers,
    preflight,
    save_teacher,
    teacher_id,
)
from d3hr_ray.evaluation.training import (
    Hooks,
    Share,
    batches,
    check_batches,
    epochs,
    evaluate,
    rate,
    train_student,
)
from d3hr_ray.evaluation.trials import Saver, load_state, make_trial, run_trial
from d3hr_ray.store import Store

SETTING = Setting("convnet-d3-w32", 16, 10, 10)


def stripes(per_class: int, seed: int = 0, classes: int = 3) -> Images:
    """Images whose class is the number of bright rows in four: easy, with noise."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    rows = (np.arange(16)[None, :] % 4) < (labels[:, None] + 1)
    pixels = np.where(rows[:, :, None, None], 200, 40) + draw.normal(0, 25, (len(labels), 16, 16, 3))
    return Images(pixels.clip(0, 255).astype(np.uint8), labels, tuple("abcdefghij"[:classes]))


def hard(**changes):
    return replace(Recipe(glyphs=True).make("hard", SETTING), steps=60, augment=Augment(), **changes)


@pytest.mark.parametrize("side", [16, 32, 64, 224])
@pytest.mark.parametrize("arch", EXAMPLES)
def test_every_student_takes_every_size(arch, side):
    if arch.startswith("convnet-d") and 2 ** int(arch[9]) > side:
        with pytest.raises(ValueError, match="smaller depth"):
            build_student(arch, 7, side, 0)
        return
    with torch.device("meta"):
        logits = build_student(arch, 7, side, 0)(torch.zeros(2, 3, side, side))
    assert logits.shape == (2, 7)


def test_an_unknown_student_is_answered_with_close_names():
    with pytest.raises(ValueError, match="near it: resnet18"):
        check_arch("resnet81", 32)
    with pytest.raises(ValueError, match=r"--arch vit cannot take 20-pixel"):
        build_student("vit", 10, 20, 0)


def test_equal_seeds_build_equal_students():
    first, second, other = (build_student("resnet8-small", 5, 16, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["net.head.weight"], other["net.head.weight"])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_protocols_constants_are_the_authors(name):
    made = Recipe().make(name, Setting("resnet18", 224, 10, 1000))
    batch, total = {"d3hr-soft": (50, 300), "rded-soft": (100, 300), "fixed-soft": (50, 300)}.get(name, (None, None))
    if batch:
        assert (made.batch_size, made.epochs, made.temperature, made.lr) == (batch, total, 20.0, 1e-3)
    assert Recipe().make("d3hr-soft", Setting("vit", 224, 10, 1000)).lr == 1e-4
    woof = [Recipe().make("d3hr-soft", Setting("resnet18", 224, ipc, 10)).epochs for ipc in (10, 50, 100)]
    assert woof == [2000, 1500, 1000]


def test_a_changed_protocol_is_another_version():
    plain = Recipe().make("hard", SETTING)
    changed = Recipe(overrides=Overrides(lr=0.1)).make("hard", SETTING)
    assert (plain.version, changed.version, changed.lr) == ("1", "1+lr=0.1", 0.1)
    with pytest.raises(ValueError, match="no such protocol; there are d3hr-soft"):
        Recipe().make("soft", SETTING)
    with pytest.raises(ValueError, match="--batch-size 0"):
        Recipe(overrides=Overrides(batch_size=0)).make("hard", SETTING)


def test_the_official_cosine_ends_at_a_half_and_the_true_one_at_nothing():
    half, full = Recipe().make("d3hr-soft", SETTING), Recipe().make("fixed-soft", SETTING)
    assert rate(half, 0.0, 0.0) == rate(full, 0.0, 0.0) == 1.0
    assert rate(half, 1.0, 0.0) == pytest.approx(0.5)
    assert rate(full, 1.0, 0.0) == pytest.approx(0.0)


@pytest.mark.parametrize("steps", [1, 2, 8, 21])
def test_warm_up_rises_by_equal_steps_however_many_an_epoch_has(steps):
    protocol, total = Recipe(glyphs=True).make("hard", SETTING), 20
    warm = [rate(protocol, 0.0, (e + (i + 1) / steps) / total) for e in range(2) for i in range(steps)]
    np.testing.assert_allclose(np.diff([0.0, *warm]), 1 / (2 * steps), rtol=1e-9)


def test_every_epoch_shows_every_image_once_and_leaves_none_alone():
    for count, size in ((10, 4), (9, 4), (1, 4), (8, 4)):
        parts = batches(count, size, 0, 3)
        assert sorted(np.concatenate(parts).tolist()) == list(range(count))
        assert count == 1 or min(map(len, parts)) > 1
    assert [len(p) for p in batches(9, 4, 0, 3)] == [4, 5]


def test_a_crop_of_everything_is_the_image_and_of_a_quarter_is_that_quarter_enlarged():
    images = torch.rand(2, 3, 8, 8)
    whole = np.full((2, 2), 0.5), np.ones((2, 2))
    torch.testing.assert_close(aug.crop(images, *whole), images, atol=1e-5, rtol=0)
    corner = np.full((2, 2), 0.25), np.full((2, 2), 0.5)
    enlarged = torch.nn.functional.interpolate(images[:, :, :5, :5], scale_factor=2, mode="bilinear")[:, :, :7, :7]
    torch.testing.assert_close(aug.crop(images, *corner)[:, :, :7, :7], enlarged, atol=1e-5, rtol=0)


def test_crop_boxes_are_as_large_as_asked_and_inside():
    centre, size = aug.crop_boxes(5000, (0.08, 1.0), np.random.default_rng(0))
    assert (centre - size / 2 >= -1e-9).all()
    assert (centre + size / 2 <= 1 + 1e-9).all()
    assert size.prod(1).min() >= 0.08 - 1e-9
    assert 0.5 < size.prod(1).mean() < 0.54


def test_shifts_move_pixels_and_repeat_edges():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    moved = aug.shift(image, np.array([[1, 0]]))
    assert moved[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]


def test_strips_are_shuffled_and_kept():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    swapped = aug.shuffle_strips(image, np.array([[1, 0]]), np.array([[0, 1]]))
    assert swapped[0, 0, 0].tolist() == [2, 3, 0, 1]
    with pytest.raises(ValueError, match="do not cut into 3 strips"):
        aug.shuffle_strips(image, np.array([[0, 1, 2]]), np.array([[0, 1, 2]]))


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_targets_are_mixed_in_the_share_of_the_pixels(kind):
    pure = torch.eye(4).view(4, 4, 1, 1).expand(4, 4, 8, 8).contiguous()  # channel k is 1 where class k is seen
    for seed in range(20):
        mixed, targets = aug.mix(pure, torch.eye(4), Augment(mix=kind), np.random.default_rng(seed))
        torch.testing.assert_close(mixed.mean((2, 3)), targets, atol=1e-6, rtol=0)


def test_augmentation_depends_on_the_key_alone():
    images, how = torch.rand(6, 3, 8, 8), Augment((0.3, 1.0), flip=True, shift=1, strips=2)
    first, second = (aug.augment(images, how, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, aug.augment(images, how, np.random.default_rng(6)))


def test_a_student_learns_and_equal_seeds_give_equal_weights():
    train, test = stripes(8), stripes(30, 1)
    runs = [train_student("convnet-d3-w32", hard(), train, test, None, seed) for seed in (0, 0, 1)]
    assert runs[0].last.top1 > 0.95
    assert runs[0].last.confusion.sum() == 90
    assert all(torch.equal(runs[0].weights[k], v) for k, v in runs[1].weights.items())
    assert not all(torch.equal(runs[0].weights[k], v) for k, v in runs[2].weights.items())


def test_a_run_resumed_from_a_checkpoint_ends_at_the_same_weights(tmp_path):
    store, found = Store(str(tmp_path)), DistilledSet("s", stripes(8), "hash")
    protocol = hard()
    trial = make_trial(found, "convnet-d3-w32", protocol, 0, (), None, ("uri", "test"))
    saver = Saver(store, trial, True, every=0.0)

    class Killed(Exception):
        pass

    def save_and_die(state):
        saver(state)
        if load_state(store, trial, "cpu").epoch == 7:
            raise Killed

    train, test = stripes(8), stripes(30, 1)
    whole = train_student("convnet-d3-w32", protocol, train, test, None, 3)
    with pytest.raises(Killed):
        train_student("convnet-d3-w32", protocol, train, test, None, 3, hooks=Hooks(save=save_and_die))
    resumed = Hooks(restore=lambda: load_state(store, trial, "cpu"))
    rest = train_student("convnet-d3-w32", protocol, train, test, None, 3, hooks=resumed)
    assert all(torch.equal(whole.weights[k], v) for k, v in rest.weights.items())


def test_two_shares_of_a_batch_make_the_whole_step():
    """Unequal shares too: the mean of their gradients is the batch's, augmented and mixed as one."""
    train = stripes(7)
    grads = []
    for share in (Share(), Share(0, 2), Share(1, 2)):
        kept = {}

        def keep(net, kept=kept):
            kept["net"] = net
            return net

        protocol = hard(optimizer="sgd", lr=1e-12, warmup=0.0, batch_size=21)
        protocol = replace(protocol, steps=1, augment=Augment(shift=1, mix="cutmix"))
        train_student("convnet-d3-w32", protocol, train, train, None, 0, share=replace(share, wrap=keep))
        grads.append(torch.cat([p.grad.flatten() for p in kept["net"].parameters()]))
    torch.testing.assert_close((grads[1] + grads[2]) / 2, grads[0], atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="--workers-per-student 5: a batch has 4 images"):
        train_student("convnet-d3-w32", hard(batch_size=4), train, train, None, 0, share=Share(0, 5))


def test_soft_labels_carry_what_the_teacher_knows():
    train, test = stripes(8), stripes(30, 1)

    class Turned(torch.nn.Module):  # a teacher that calls class k the next one
        def forward(self, images):
            bright = (images.mean((1, 3)) > 0).float().mean(1)
            return 20 * torch.nn.functional.one_hot((bright * 4).round().long() % 3, 3).float()

    protocol = replace(hard(), labels="soft", temperature=4.0, name="fixed-soft")
    outcome = train_student("convnet-d3-w32", protocol, train, test, Turned(), 0)
    assert outcome.last.confusion[0, 1] == 30
    with pytest.raises(ValueError, match="give --teacher"):
        train_student("convnet-d3-w32", protocol, train, test, None, 0)


def test_batch_norm_cannot_train_on_single_images():
    with pytest.raises(ValueError, match="batches of one image"):
        check_batches(1, hard(), "resnet18")
    check_batches(1, hard(), "convnet-d3")
    check_batches(2, hard(), "resnet18")


def test_steps_become_whole_epochs():
    assert epochs(hard(), 24) == 60
    assert epochs(replace(hard(), batch_size=8), 24) == 20
    assert epochs(replace(hard(), steps=None, epochs=5), 24) == 5


# Teachers


@pytest.fixture
def taught(tmp_path):
    """A folder with a teacher of three classes, in the order c, a, b."""
    images = stripes(8)
    net = train_student("convnet-d3-w32", hard(), images, images, None, 0)
    store = Store(str(tmp_path / "teacher"))
    save_teacher(store, "convnet-d3-w32", images, net.weights, {})
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


def test_a_checkpoint_file_is_a_teacher_and_several_are_averaged(taught, tmp_path):
    abc, test = Target(("a", "b", "c"), None, 16), stripes(20, 2)
    net = load_teacher(taught.uri, abc)
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.net.state_dict().items()}}, tmp_path / "t.pt")
    again = load_teacher(f"convnet-d3-w32={tmp_path}/t.pt", abc).eval()
    images = torch.from_numpy(test.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(again(images), net.eval()(images))
    torch.testing.assert_close(Ensemble([net, again]).eval()(images), net(images))
    assert evaluate(again, test, "cpu").top1 > 0.95


# Sets and baselines


def write_set(root, images: Images):
    for i, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        folder = root / "train" / images.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:04d}.png").write_bytes(encode(pixels))
    return str(root)


def test_anyones_image_folder_is_a_set(tmp_path):
    images = stripes(4)
    found = load_set(find_sets((write_set(tmp_path / "theirs", images),))[0], 16)
    assert (found.name, found.about["ipc"], len(found.images)) == ("theirs", 4, 12)
    np.testing.assert_array_equal(found.images.pixels, images.pixels)
    with pytest.raises(ValueError, match="no set in it"):
        find_sets((str(tmp_path / "theirs" / "train"),))


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
    with pytest.raises(ValueError, match="the data has no such class"):
        open_comparison((path,), DataConfig(f"{real}/train"), None, ["convnet-d3"], None, Recipe())
    with pytest.raises(ValueError, match="--data is needed"):
        open_comparison((path,), None, None, ["convnet-d3"], None, Recipe())


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


def test_one_centre_is_the_mean_and_coresets_are_distinct_real_images():
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.testing.assert_allclose(centres(features, 1, 0, 0)[0], features.mean(0), atol=1e-6)
    assert len(set(nearest_to_centres(features, 12, 0, 0).tolist())) == 12


def test_baselines_hold_n_images_of_each_class_and_are_told_apart_by_seed():
    real = stripes(9)
    for name in ("herding", "kmeans-real", "pixel-kmeans"):
        made = make_baseline(name, real, 4, 0)
        assert np.bincount(made.images.labels).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="fewer than 10"):
        make_baseline("herding", real, 10, 0)
    listing = list_real(DataConfig("digits/train"), tuple("0123456789"), None)
    sets = [random_set(listing, tuple("0123456789"), 16, n, seed) for n, seed in ((2, 0), (2, 1), (5, 0))]
    assert len({s.set_hash for s in sets}) == 3
    small, large = sets[0].images, sets[2].images
    np.testing.assert_array_equal(small.pixels[:2], large.pixels[:2])  # nested in n


# Results


def test_a_record_is_written_once_and_says_all(tmp_path):
    store, found = Store(str(tmp_path)), DistilledSet("mine", stripes(8), "hash", 4, {"method": "d3hr", "ipc": 8})
    trial = make_trial(found, "convnet-d3-w32", hard(), 1, (), None, ("uri", "test"))
    row = run_trial(store, trial, found.images, stripes(10, 1), None, None, "cpu")
    assert store.read_json(trial.record) == row
    assert (row["set"], row["method"], row["ipc"], row["set_seed"], row["seed"]) == ("mine", "d3hr", 8, 4, 1)
    assert np.array(row["confusion"]).sum() == 30
    assert row["top1_last"] == pytest.approx(np.mean(row["per_class"]))
    assert make_trial(found, "convnet-d3-w32", hard(), 2, (), None, ("uri", "test")).key != trial.key
    assert make_trial(found, "convnet-d3-w32", hard(lr=1e-3), 1, (), None, ("uri", "test")).key != trial.key


def test_intervals_are_students():
    mean, std, half = interval([0.9, 0.92, 0.94])
    assert (mean, std) == (pytest.approx(0.92), pytest.approx(0.02))
    assert half == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-5)


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
    from d3hr_ray.evaluation.sets import read_listing

    wide = np.zeros((80, 160, 3), np.uint8)
    wide[:, 80:] = 255
    folder = tmp_path / "a"
    folder.mkdir()
    Image.fromarray(wide).save(folder / "x.png")
    (tmp_path / "b").mkdir()
    Image.fromarray(wide).save(tmp_path / "b" / "y.png")
    listing = list_real(DataConfig(str(tmp_path)), ("a", "b"), None)
    pixels, _ = read_listing(listing, 64, None, context=True)
    expected = np.asarray(Image.fromarray(wide).resize((144, 72), Image.Resampling.BILINEAR))[4:68, 40:104]
    np.testing.assert_allclose(pixels[0].astype(int), expected.astype(int), atol=2)
