"""Students, protocols, augmentation and training: all without Ray."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from stripes import SETTING, hard, stripes

from d3hr_ray.evaluation import augment as aug
from d3hr_ray.evaluation.protocols import PROTOCOLS, Augment, Overrides, Recipe, Setting
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.evaluation.students import EXAMPLES, build_student, check_arch
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


def test_the_best_epochs_top5_is_kept_beside_its_top1(tmp_path, monkeypatch):
    """Also over a checkpoint, and unknown after one that was written before it was kept."""
    from d3hr_ray.evaluation import training

    curve = [training.Score(*tops, np.eye(3, dtype=int)) for tops in ((0.2, 0.5), (0.6, 0.7), (0.4, 0.9))]
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
