"""Students, protocols, augmentation and training: all without Ray."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from scipy.stats import ks_2samp
from stripes import SETTING, gradient, hard, stripes
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import resized_crop

from d3hr_ray.config import as_dict
from d3hr_ray.datasets.images import Images
from d3hr_ray.evaluation import augment as aug
from d3hr_ray.evaluation import training
from d3hr_ray.evaluation.protocols import Augment, Setting
from d3hr_ray.evaluation.recipes import Overrides, Recipe
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.evaluation.training import (
    Hooks,
    Share,
    batches,
    check_batches,
    epochs,
    rate,
    train_student,
)
from d3hr_ray.evaluation.trials import Saver, load_state, make_trial
from d3hr_ray.models.classifiers import evaluate
from d3hr_ray.models.students import EXAMPLES, build_on_meta, build_student, check_arch, identity
from d3hr_ray.store import Store


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
    with pytest.raises(ValueError, match=r"near it: resnet18, resnet101, resnetap10$"):
        check_arch("resnet19", 32)
    with pytest.raises(ValueError, match=r"--arch vit cannot take 20-pixel"):
        build_student("vit", 10, 20, 0)


def test_equal_seeds_build_equal_students():
    first, second, other = (build_student("resnet8-small", 5, 16, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["net.head.weight"], other["net.head.weight"])


@pytest.mark.parametrize("side", [28, 32])
def test_the_convnet_has_the_fields_number_of_parameters(side):
    net = build_student("convnet-d3", 10, side, 0)
    assert sum(p.numel() for p in net.parameters()) == 320_010  # and 2,304 fewer for grey images: the field's 317,706
    assert net(torch.zeros(1, 3, side, side)).shape == (1, 10)


def test_students_of_another_network_have_another_key():
    """At 28 pixels ConvNets were smaller once: what they reached is not what these reach."""
    names = ("convnet-d3", "convnet-d3-w32", "resnet8-small", "vgg11")
    assert [identity(name, 28) for name in names] == ["convnet-d3, padded", "convnet-d3-w32, padded", *names[2:]]
    assert [identity(name, 32) for name in names] == list(names)
    theirs = ("resnet18", "resnet50.tv_in1k", "resnet18-small", "mobilenet_v2", "swin_v2")
    assert [identity(name, 64) for name in theirs] == [f"{name}, as torchvision's" for name in theirs]


@pytest.mark.parametrize("arch", ["resnet18", "resnet18-small", "resnet50"])
def test_a_resnet_begins_as_torchvisions(arch):
    """timm starts with the last norm of each block at 0; the field's students are torchvision's, which do not."""
    net = build_student(arch, 10, 32, 0).net
    lasts = [p for name, p in net.named_parameters() if re.fullmatch(r"layer.*bn\d\.weight", name)]
    assert lasts and all(bool((weight == 1).all()) for weight in lasts)


def test_students_drop_as_much_as_torchvisions():
    assert build_on_meta("mobilenet_v2", 10, 64).net.drop_rate == 0.2
    rates = [m.drop_prob for m in build_on_meta("swin_v2", 10, 64).modules() if type(m).__name__ == "DropPath"]
    depths = torchvision.models.swin_v2_t(num_classes=10).modules()
    theirs = [m.p for m in depths if type(m).__name__ == "StochasticDepth" and m.p]
    assert max(rates) == pytest.approx(max(theirs)) == pytest.approx(0.2)


def test_weight_decay_is_of_weights_alone():
    net = build_on_meta("vit", 10, 64)
    decayed, spared = training._optimizer(net, Recipe().make("d3hr-soft", SETTING)).param_groups
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in spared["params"]} >= {"net.cls_token", "net.pos_embed", "net.norm.weight"}
    assert all("weight" in names[id(p)] and p.ndim > 1 for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


@pytest.mark.parametrize(
    ("arch", "side", "patch"),
    [
        ("vit_base_patch32_224", 224, 32),
        ("vit_small_patch8_224", 224, 8),
        ("vit", 224, 16),
        ("vit", 64, 8),
        ("vit_base_patch32_224", 64, 8),
    ],
)
def test_a_vit_has_the_patches_of_its_name_where_enough_of_them_are_left(arch, side, patch):
    assert build_on_meta(arch, 10, side).net.patch_embed.patch_size == (patch, patch)
    was = max(2, min(16, side // 8))  # for every name, once
    known = f"{arch}, places not decayed"
    assert identity(arch, side) == (known if patch == was else f"{known}, patches of {patch}")


CUTMIX, MIXUP = Augment((0.08, 1.0), flip=True, mix="cutmix"), Augment((0.08, 1.0), flip=True, mix="mixup")
SGD = {"labels": "hard", "optimizer": "sgd"}
ADAMW = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "temperature": 20.0}
SOFT = ADAMW | {"labels": "soft", "batch_size": 50, "epochs": 300, "augment": CUTMIX}
CONSTANTS = {
    "d3hr-soft": SOFT | {"rate": "half-cosine", "best_after": 1 - 9 / 300, "evaluate_every": 1, "double_norm": True},
    "rded-soft": SOFT
    | {"batch_size": 100, "augment": Augment((0.5, 1.0), flip=True, strips=2, mix="cutmix")}
    | {"rate": "half-cosine", "best_after": 0.8, "evaluate_every": 10, "double_norm": True},
    # Minimax's and IDC's: 2000 epochs, CutMix on half of the batches, x0.2 at 2/3 and 5/6
    "hard": SGD
    | {"batch_size": 64, "epochs": 2000, "lr": 0.01, "weight_decay": 5e-4, "rate": "steps", "warmup": 0.0}
    | {"augment": Augment((0.5, 1.0), flip=True, mix="cutmix", mix_alpha=1.0, mix_probability=0.5)},
    # validate_hardlabel.py: mixup with alpha 1 on every batch, AdamW, best of the epochs above 1900 of 2000
    "hard-mixup": SOFT
    | {"labels": "hard", "augment": MIXUP, "rate": "half-cosine", "best_after": 1 - 99 / 300, "double_norm": False},
    "fixed-soft": SOFT | {"rate": "cosine", "best_after": 1.0, "double_norm": False},
    "teacher": SGD
    | {"batch_size": 256, "epochs": 90, "lr": 0.1, "weight_decay": 1e-4, "rate": "cosine", "best_after": 1.0}
    | {"augment": Augment((0.08, 1.0), flip=True)},
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_the_protocols_constants_are_the_authors(name):
    made = Recipe().make(name, Setting("resnet18", 224, 10, 1000))
    assert {key: getattr(made, key) for key in CONSTANTS[name]} == CONSTANTS[name]
    assert made.steps is None


def test_the_protocols_constants_follow_the_student_the_data_and_the_ipc():
    def made(name, arch="resnet18", side=224, ipc=10, classes=1000):
        return Recipe().make(name, Setting(arch, side, ipc, classes))

    rates = {"resnet50": 1e-3, "mobilenet_v2": 2.5e-3, "efficientnet_b0": 2e-3, "vgg11": 5e-4, "alexnet": 1e-4}
    rates |= {"vit": 1e-4, "swin_v2": 1e-4}
    assert {arch: made("d3hr-soft", arch).lr for arch in rates} == rates
    assert [made("d3hr-soft", classes=10, ipc=n).epochs for n in (10, 50, 100)] == [2000, 1500, 1000]  # ImageWoof
    assert [made("d3hr-soft", side=s, classes=100).epochs for s in (32, 64)] == [400, 300]  # CIFAR, Tiny ImageNet
    assert [made("d3hr-soft", ipc=n).batch_size for n in (1, 10, 50)] == [15, 50, 100]
    assert [made("d3hr-soft", ipc=n, classes=100).batch_size for n in (1, 10, 50)] == [30, 100, 200]
    assert [made("rded-soft", ipc=n, classes=10).batch_size for n in (1, 10, 50)] == [10, 50, 100]
    assert [made("rded-soft", side=64, ipc=n, classes=200).batch_size for n in (1, 10, 50)] == [100, 100, 100]
    whole, patches = Augment(flip=True, mix="cutmix"), Augment((0.5, 1.0), flip=True, strips=2, mix="cutmix")
    assert [made("rded-soft", side=s).augment for s in (32, 64, 96)] == [whole, whole, patches]
    assert [made("rded-soft", side=s).version for s in (32, 64, 96)] == ["4", "4", "3"]
    assert [made("hard", ipc=n).epochs for n in (1, 10, 50)] == [2000, 2000, 1500]
    assert [made("teacher", side=s).augment.shift for s in (28, 32, 64, 96)] == [3, 4, 8, 0]  # CIFAR's pads 4 pixels
    assert [made("teacher", side=s).version for s in (64, 96)] == ["3", "2"]
    assert not Recipe().make("teacher", Setting("resnet18", 28, 10, 10, digits=True)).augment.flip
    best = made("hard-mixup", classes=10)
    assert best.epochs * (1 - best.best_after) == pytest.approx(99)


@pytest.mark.parametrize(("name", "looks"), [("hard-mixup", 99), ("d3hr-soft", 9)])
def test_the_best_epoch_is_one_of_the_authors(monkeypatch, name, looks):
    """Above 201 and 291 of 300, counted from 1: a fraction of 300 is not always a whole number to a computer."""
    seen = []
    monkeypatch.setattr(training._Run, "epoch", lambda *_: None)
    real = training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda *args: seen.append(0) or real(*args))
    protocol = replace(Recipe().make(name, Setting("resnet18", 224, 10, 1000)), labels="hard")
    train_student("convnet-d3-w32", protocol, stripes(2), stripes(2, 1), None, 0)
    assert len(seen) == looks


def test_what_changed_in_crops_left_the_versions_of_handwriting_alone():
    photos = {name: Recipe().make(name, replace(SETTING, image_size=96)).version for name in CONSTANTS}
    glyphs = {name: Recipe(glyphs=True).make(name, SETTING) for name in CONSTANTS}
    assert photos == dict.fromkeys(CONSTANTS, "2") | dict.fromkeys(("rded-soft", "d3hr-soft", "hard-mixup"), "3")
    assert {n: p.version for n, p in glyphs.items()} == dict.fromkeys(CONSTANTS, "1-glyphs2") | dict.fromkeys(
        ("rded-soft", "d3hr-soft", "hard-mixup"), "2-glyphs2"
    )
    assert not any(p.augment.crop_scale for p in glyphs.values())


def test_a_changed_protocol_is_another_version():
    plain = Recipe().make("hard", SETTING)
    changed = Recipe(overrides=Overrides(lr=0.1)).make("hard", SETTING)
    assert (plain.version, changed.version, changed.lr) == ("2", "2+lr=0.1", 0.1)
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


def test_a_crop_is_torchvisions_and_of_everything_the_image():
    images = torch.rand(4, 3, 8, 8)
    boxes = np.array([[0, 0, 8, 8], [0, 0, 4, 4], [3, 1, 5, 6], [7, 2, 1, 3]])
    expected = [resized_crop(image, *box, [8, 8]) for image, box in zip(images, boxes.tolist(), strict=True)]
    torch.testing.assert_close(aug.crop(images, boxes), torch.stack(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(aug.crop(images, boxes)[0], images[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0), (0.96, 1.0)], ids=str)
@pytest.mark.parametrize("side", [32, 224])
def test_crop_boxes_are_distributed_as_torchvisions(side, scale):
    """Also at 0.96 to 1, where ten draws in a row often stick out and the image is taken whole."""
    count, image = 3000, torch.empty(3, side, side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)])
    ours = aug.crop_boxes(count, side, scale, np.random.default_rng(0))
    assert ours.min() >= 0 and (ours[:, :2] + ours[:, 2:] <= side).all()
    for of in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert ks_2samp(of(theirs), of(ours)).pvalue > 0.01
    assert abs(np.mean((ours[:, 2:] == side).all(1)) - np.mean((theirs[:, 2:] == side).all(1))) < 0.04


def test_shifts_move_pixels_and_repeat_edges():
    image = torch.arange(9.0).view(1, 1, 3, 3)
    moved = aug.shift(image, np.array([[1, 0]]))
    assert moved[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]


def test_many_classes_have_accuracies_but_no_confusion():
    classes, labels = 101, np.array([0, 0, 7, 100, 100, 100])
    guesses = torch.tensor([0, 1, 7, 100, 100, 3])

    class Oracle(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(guesses, classes).float()

    images = Images(np.zeros((6, 4, 4, 3), np.uint8), labels, tuple(map(str, range(classes))))
    score = evaluate(Oracle(), images, "cpu")
    assert score.confusion is None and score.top1 == 4 / 6
    assert {k: score.per_class[k] for k in (0, 3, 7, 100)} == {0: 0.5, 3: 0, 7: 1, 100: 2 / 3}


def test_strips_are_shuffled_and_kept():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    swapped = aug.shuffle_strips(image, np.array([[1, 0]]), np.array([[0, 1]]))
    assert swapped[0, 0, 0].tolist() == [2, 3, 0, 1]
    with pytest.raises(ValueError, match="cannot be cut into 3 equal strips"):
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


def test_bfloat16_rounds_a_step_and_nothing_that_is_kept():
    """Off by more than float32 rounds, and by less than 2^-8 for each of 3 layers of 4 operations, there and back."""
    train, test = stripes(7), stripes(20, 1)
    exact, rounded = (gradient("convnet-d3-w32", train, Share(), precision=p) for p in ("float32", "bfloat16"))
    assert exact.dtype == rounded.dtype == torch.float32
    assert 1e-4 < (exact - rounded).norm() / exact.norm() < 24 * 2**-8
    outcome = train_student("convnet-d3-w32", hard(precision="bfloat16"), stripes(8), test, None, 0)
    assert outcome.last.top1 > 0.95 and {v.dtype for v in outcome.weights.values()} == {torch.float32}


def test_another_precision_is_another_version_and_float32_changes_no_key():
    plain, half = (Recipe(precision=p).make("dc", SETTING) for p in ("float32", "bfloat16"))
    assert (plain.version, half.version) == ("1", "1+bfloat16")
    assert "precision" not in as_dict(plain) and as_dict(half)["precision"] == "bfloat16"
    both = Recipe(overrides=Overrides(lr=0.1), weighted=True, precision="bfloat16").make("dc", SETTING)
    assert both.version == "1+lr=0.1,weights,bfloat16"


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
    whole, first, second = (gradient("convnet-d3-w32", train, share) for share in (Share(), Share(0, 2), Share(1, 2)))
    torch.testing.assert_close((first + second) / 2, whole, atol=1e-6, rtol=1e-4)
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


def test_the_best_epochs_top5_is_kept_beside_its_top1(tmp_path, monkeypatch):
    """Also over a checkpoint, and unknown after one that was written before it was kept."""
    from d3hr_ray.evaluation import training
    from d3hr_ray.models import classifiers

    tops = (0.2, 0.5), (0.6, 0.7), (0.4, 0.9)
    curve = [classifiers.Score(*both, np.ones(3), np.eye(3, dtype=int)) for both in tops]
    protocol = replace(hard(), steps=None, epochs=3, evaluate_every=1, best_after=0.0)
    images, saved = stripes(2), []

    def train(state=None, looks=0):
        scores = iter(curve[state.epoch if state else 0 :])
        monkeypatch.setattr(training, "evaluate", lambda *_: next(scores))
        reports = []
        hooks = Hooks(lambda: state, lambda now: saved.append(replace(now())), reports.append, looks)
        return train_student("convnet-d3-w32", protocol, images, images, None, 0, hooks=hooks), reports

    outcome, reports = train(looks=3)
    assert (outcome.best_top1, outcome.best_top5, outcome.best_epoch) == (0.6, 0.7, 2)
    assert (outcome.last.top1, outcome.last.top5) == (0.4, 0.9)
    assert reports == [{"top1": s.top1, "look": e, "epoch": e} for e, s in enumerate(curve, 1)]
    for kept in (0.7, None):
        resumed, _ = train(replace(saved[1], best_top5=kept))
        assert (resumed.best_epoch, resumed.best_top5) == (2, kept)


def test_batch_norm_cannot_train_on_single_images():
    with pytest.raises(ValueError, match="batches of one image"):
        check_batches(1, hard(), "resnet18")
    check_batches(1, hard(), "convnet-d3")
    check_batches(2, hard(), "resnet18")


def test_steps_become_whole_epochs():
    assert epochs(hard(), 24) == 60
    assert epochs(replace(hard(), batch_size=8), 24) == 20
    assert epochs(replace(hard(), steps=None, epochs=5), 24) == 5
