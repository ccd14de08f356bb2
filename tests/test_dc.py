"""Protocols dc, dsa and rd3: equal to loops that are written out here from their description, and plain in records."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stripes import stripes
from torch import nn
from torch.nn import functional

from d3hr_ray.config import as_dict
from d3hr_ray.datasets.images import Images
from d3hr_ray.datasets.normalisation import GREY, IMAGENET, are_digits, is_grey, normalisation_of
from d3hr_ray.evaluation import training
from d3hr_ray.evaluation.protocols import PROTOCOLS, Augment, Setting, is_soft
from d3hr_ray.evaluation.recipes import Recipe, without_augment
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.evaluation.training import Hooks, Share, batches, train_student
from d3hr_ray.evaluation.trials import load_state, make_trial, run_trial
from d3hr_ray.models import memory
from d3hr_ray.models.families import siamese
from d3hr_ray.models.students import EXAMPLES, build_student
from d3hr_ray.numerics.seeds import generator
from d3hr_ray.store import Store

FASHION = Setting("convnet-d3", 28, 10, 10)
CLOTHES = ("Bag", "Coat", "Ankle boot")
FAMILIES = ("color", "crop", "cutout", "flip", "scale", "rotate")
STUDENT = "convnet-d3-w8"


def clothes(per_class: int, seed: int = 0) -> Images:
    """Grey noise of Fashion-MNIST's size, whose mean tells the class."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    grey = draw.normal(60 + 60 * labels[:, None, None, None], 30, (len(labels), 28, 28, 1)).clip(0, 255)
    return Images(grey.astype(np.uint8).repeat(3, -1), labels, CLOTHES)


def test_the_constants_are_the_repositorys():
    dc, dsa = (Recipe().make(name, FASHION) for name in ("dc", "dsa"))
    for made in (dc, dsa):
        assert (made.labels, made.optimizer, made.lr, made.weight_decay) == ("hard", "sgd", 0.01, 5e-4)
        assert (made.batch_size, made.rate, made.decay, made.best_after, made.warmup) == (256, "drop", "all", 1.0, 0.0)
        assert made.steps is None and made.input == "data" and not made.double_norm
    assert (dc.epochs, dsa.epochs) == (301, 1001)
    assert (dc.augment, dsa.augment) == (Augment(), Augment(families=FAMILIES))
    assert without_augment(dsa).augment == dc.augment


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(glyphs=True)], ids=["digits", "glyphs"])
def test_digits_are_not_flipped_and_nothing_else_changes_for_them(recipe):
    of_digits = recipe.make("dsa", replace(FASHION, digits=True))
    assert of_digits.augment.families == tuple(name for name in FAMILIES if name != "flip")
    assert replace(of_digits, augment=Augment()) == replace(Recipe().make("dsa", FASHION), augment=Augment())
    assert recipe.make("dc", FASHION) == Recipe().make("dc", FASHION)


def test_the_one_channel_convnet_has_the_fields_number_of_parameters():
    norm = normalisation_of(CLOTHES, grey=True)
    assert sum(p.numel() for p in build_student("convnet-d3", 10, 28, 0, norm).parameters()) == 317_706


@pytest.mark.parametrize("arch", EXAMPLES)
def test_every_student_takes_one_channel(arch):
    with torch.device("meta"):
        net = build_student(arch, 7, 64, 0, GREY)
        assert net(torch.zeros(2, 3, 64, 64)).shape == net(torch.zeros(2, 1, 64, 64)).shape == (2, 7)
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert first.weight.shape[1] == (64 * 64 if arch == "mlp" else 1)


def test_known_sets_have_the_published_normalisation():
    def found(classes, grey):
        known = normalisation_of(classes, grey)
        return known.mean, known.std

    assert found(("T-shirt/top", "Trouser", "Ankle boot"), True) == ((0.2861,), (0.3530,))
    assert found(("0 - zero", "9 - nine"), True) == found(tuple("0123456789"), True) == ((0.1307,), (0.3081,))
    assert found(tuple("0123456789"), False)[0] == (0.4377, 0.4438, 0.4728)
    assert found(("airplane", "truck"), False)[1] == (0.2023, 0.1994, 0.2010)
    assert normalisation_of(("mine", "yours"), False) == IMAGENET and normalisation_of(CLOTHES, False) == IMAGENET
    assert normalisation_of(("mine", "yours"), True) == GREY
    assert are_digits(("3", "7")) and not are_digits(("3", "A"))
    assert is_grey(clothes(1).pixels) and not is_grey(stripes(1).pixels)


class Reference(nn.Module):
    """ConvNet-3 as DatasetCondensation's networks.py describes it: one channel, 28 pixels, GroupNorm for instances."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width if i else 1, width, 3, padding=1 if i else 3) for i in range(3))
        self.norms = nn.ModuleList(nn.GroupNorm(width, width, affine=True) for _ in range(3))
        self.head = nn.Linear(width * 4 * 4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.avg_pool2d(torch.relu(norm(conv(x))), kernel_size=2, stride=2)
        return self.head(x.flatten(1))

    def loaded(self, theirs: nn.Module) -> "Reference":
        """With the weights of ours."""
        pairs = [p for conv, norm in zip(self.convs, self.norms, strict=True) for p in (conv, norm)]
        names = [p for module in (*pairs, self.head) for p in module.parameters()]
        for mine, his in zip(names, theirs.parameters(), strict=True):
            mine.data.copy_(his.data)
        return self

    def flat(self) -> list[torch.Tensor]:
        pairs = [p for conv, norm in zip(self.convs, self.norms, strict=True) for p in (conv, norm)]
        return [p.detach() for module in (*pairs, self.head) for p in module.parameters()]


def color(x, draw):
    bright, vivid, sharp = draw.uniform(-0.5, 0.5, len(x)), draw.uniform(0, 2, len(x)), draw.uniform(0.5, 1.5, len(x))
    x = x + bright[:, None, None]
    x = (x - x) * vivid[:, None, None] + x  # one channel is its own mean
    mean = x.mean((1, 2), keepdims=True)
    return (x - mean) * sharp[:, None, None] + mean


def crop(x, draw):
    out = np.zeros_like(x)
    for image, moved, (down, right) in zip(x, out, draw.integers(-4, 5, (len(x), 2)), strict=True):
        for i in range(28):
            for j in range(28):
                if 0 <= i - down < 28 and 0 <= j - right < 28:
                    moved[i, j] = image[i - down, j - right]
    return out


def cutout(x, draw):
    x = x.copy()
    for image, (row, column) in zip(x, draw.integers(0, 29, (len(x), 2, 1))[..., 0], strict=True):
        image[max(0, row - 7) : row + 7, max(0, column - 7) : column + 7] = 0
    return x


def flip(x, draw):
    return np.stack(
        [image[:, ::-1] if chosen else image for image, chosen in zip(x, draw.random(len(x)) < 0.5, strict=True)]
    )


def scale(x, draw):
    return warped(x, [np.diag(by) for by in draw.uniform(1 / 1.2, 1.2, (len(x), 2))])


def rotate(x, draw):
    angles = draw.uniform(-15, 15, len(x)) * np.pi / 180
    return warped(x, [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles])


def warped(x, maps):
    """Bilinear, zeros outside; maps take (x, y) of the new image, -1 to 1 over its edges, to those of the old."""
    places = (2 * np.arange(28) + 1) / 28 - 1
    out = np.zeros_like(x)
    for image, new, matrix in zip(x, out, maps, strict=True):
        padded = np.pad(image, 1)
        for i, b in enumerate(places):
            for j, a in enumerate(places):
                column, row = ((matrix @ (a, b) + 1) * 28 - 1) / 2 + 1  # in the padded image
                if -1 < column - 1 < 28 and -1 < row - 1 < 28:
                    top, left = int(row), int(column)
                    v, u = row - top, column - left
                    corners = padded[top : top + 2, left : left + 2]
                    new[i, j] = np.array([1 - v, v]) @ corners @ np.array([1 - u, u])
    return out


SIAMESE = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}


def reference_loop(net, train, epochs, batch, seed, families):
    """DatasetCondensation's evaluate_synset: losses of every step; one family of DSA a batch, of normalised images."""
    images = (train.pixels[..., 0] / 255 - 0.2861) / 0.3530
    labels, losses = torch.from_numpy(train.labels), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005)
    for epoch in range(epochs):
        for step, rows in enumerate(batches(len(train), batch, seed, epoch)):
            seen, draw = images[rows], generator("step", seed, epoch, step)
            draw.integers(2**63)
            if families:
                seen = SIAMESE[families[draw.integers(len(families))]](seen, draw)
            loss = functional.cross_entropy(net(torch.from_numpy(seen[:, None]).float()), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        if epoch == (epochs - 1) // 2 + 1:
            optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, weight_decay=0.0005)
    return losses


def ours(monkeypatch, protocol, train, seed):
    """(losses of every step, first network, trained weights in order)."""
    losses, kept = [], {}
    real = functional.cross_entropy

    def told(*args, **how):
        loss = real(*args, **how)
        losses.append(float(loss.detach()))
        return loss

    def keep(net):
        kept["first"] = Reference(8, 3).loaded(net)
        return net

    monkeypatch.setattr(functional, "cross_entropy", told)
    outcome = train_student(STUDENT, protocol, train, train, None, seed, share=Share(wrap=keep))
    monkeypatch.undo()
    return losses, kept["first"], list(outcome.weights.values())


@pytest.mark.parametrize("families", [(), *((name,) for name in FAMILIES), FAMILIES], ids="-".join)
def test_losses_and_weights_equal_a_loop_written_from_the_description(monkeypatch, families):
    """12 steps over the drop: epochs 0 to 3 at 0.01, then, without momentum, epoch 4 at 0.001."""
    train, epochs = clothes(4), 5
    protocol = Recipe().make("dsa" if families else "dc", FASHION)
    protocol = replace(protocol, epochs=epochs, batch_size=5, augment=Augment(families=families))
    losses, net, weights = ours(monkeypatch, protocol, train, seed=3)
    expected = reference_loop(net, train, epochs, 5, 3, families)
    np.testing.assert_allclose(losses, expected, atol=1e-5, rtol=0)
    assert len(losses) == 5 * 3 and max(losses) - min(losses) > 0.05
    for mine, his in zip(weights, net.flat(), strict=True):
        torch.testing.assert_close(mine, his, atol=1e-5, rtol=0)


def test_one_family_is_drawn_for_a_batch_and_all_of_them_in_time():
    images = torch.rand(3, 1, 28, 28) + 1
    drawn = {name: SIAMESE[name] for name in FAMILIES}
    met = set()
    for seed in range(60):
        made = siamese(images, FAMILIES, np.random.default_rng(seed)).numpy()[:, 0]
        draw = np.random.default_rng(seed)
        name = FAMILIES[draw.integers(6)]
        met.add(name)
        if name in ("color", "cutout", "flip"):
            np.testing.assert_allclose(made, drawn[name](images.numpy()[:, 0], draw), atol=1e-5)
    assert met == set(FAMILIES)


def test_the_rate_falls_once_and_the_momentum_goes_with_it(monkeypatch):
    """As of 301 epochs: 152 at 0.01. The first step after the drop finds no momentum."""
    dc = Recipe().make("dc", FASHION)
    rates = [training.rate(dc, epoch / 301, 0.0) for epoch in range(301)]
    assert rates == [1.0] * 152 + [0.1] * 149
    seen = []
    real = torch.optim.SGD.step

    def step(self, *args):
        buffers = [self.state[p].get("momentum_buffer") for group in self.param_groups for p in group["params"]]
        seen.append((self.param_groups[0]["lr"], buffers[0] is None))
        return real(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    train_student(STUDENT, replace(dc, epochs=5), clothes(2), clothes(2), None, 0)
    assert seen == [(0.01, True), (0.01, False), (0.01, False), (0.01, False), (pytest.approx(0.001), True)]


@pytest.mark.parametrize("at", [3, 4], ids=["before the drop", "at the drop"])
def test_a_run_resumed_round_the_drop_ends_at_the_same_weights(at):
    protocol, train = replace(Recipe().make("dc", FASHION), epochs=7, batch_size=3), clothes(2)
    kept = {}

    def save(state):
        if not kept and state().epoch == at + 1:
            kept["state"] = copy.deepcopy(state())

    whole = train_student(STUDENT, protocol, train, train, None, 1, hooks=Hooks(save=save))
    rest = train_student(STUDENT, protocol, train, train, None, 1, hooks=Hooks(restore=lambda: kept["state"]))
    assert all(torch.equal(whole.weights[k], v) for k, v in rest.weights.items())


def test_students_are_tested_once_after_the_last_epoch(monkeypatch):
    tested = []
    real = training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda *args: tested.append(1) or real(*args))
    outcome = train_student(
        STUDENT, replace(Recipe().make("dc", FASHION), epochs=6), clothes(2), clothes(2, 1), None, 0
    )
    assert len(tested) == 1
    assert (outcome.best_epoch, outcome.best_top1) == (6, outcome.last.top1)


def test_the_test_images_say_what_students_see_and_the_record_says_it(tmp_path):
    """A distilled set of grey images may be coloured a little; its students see grey all the same."""
    tinted = clothes(2)
    tinted = Images(tinted.pixels.copy(), tinted.labels, CLOTHES)
    tinted.pixels[..., 0] //= 2
    protocol = replace(Recipe().make("dc", FASHION), epochs=1)
    trial = make_trial(DistilledSet("s", tinted, "hash"), STUDENT, protocol, 0, (), None, ("uri", "test"))
    row = run_trial(Store(str(tmp_path)), trial, tinted, clothes(2, 1), None, None, "cpu")
    assert row["normalisation"] == {"mean": [0.2861], "std": [0.3530]}
    assert (row["protocol"], row["protocol_version"], row["recipe"]["input"]) == ("dc", "1", "data")
    assert load_state(Store(str(tmp_path)), trial, "cpu") is None


def test_folders_of_a_set_of_ours_tell_the_data_as_its_names_do():
    """A set that is evaluated without its manifest has folders' names for classes."""
    folders = [f"{at:04d}_{name}" for at, name in enumerate(("T-shirt_top", "Trouser", "Ankle_boot"))]
    assert normalisation_of(folders, True) == normalisation_of(("T-shirt/top", "Trouser", "Ankle boot"), True) != GREY
    assert are_digits(["0000_zero", "0001_one"])


def test_trials_of_older_protocols_keep_their_keys():
    """What was added to protocols is in the keys of those alone that use it."""
    late = {"decay", "input"}
    for name in PROTOCOLS:
        plain = as_dict(Recipe().make(name, FASHION))
        assert late & plain.keys() == {"dc": late, "dsa": late, "minimax": {"decay"}}.get(name, set())
        assert ("families" in plain["augment"]) == (name == "dsa")


def test_rd3_is_one_protocol_for_all_but_for_the_cosine():
    resnet, other = (Recipe().make("rd3", replace(FASHION, arch=arch, ipc=50)) for arch in ("resnet18", "convnet-d3"))
    assert (resnet.epochs, resnet.batch_size, resnet.lr, resnet.optimizer) == (400, 50, 1e-3, "adamw")
    assert (resnet.rate, other.rate) == ("cosine", "half-cosine") and replace(other, rate="cosine") == resnet
    assert resnet.augment == Augment(crop_scale=(0.5, 1.0), flip=True, mix="cutmix")
    assert [name for name in PROTOCOLS if is_soft(name)] == ["d3hr-soft", "rded-soft", "fixed-soft", "rd3"]


def test_training_on_a_cpu_keeps_freed_memory_where_the_library_can(monkeypatch):
    told = []
    libraries = iter((SimpleNamespace(mallopt=lambda *args: told.append(args)), SimpleNamespace()))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: next(libraries))
    protocol = replace(Recipe().make("dc", FASHION), epochs=1)
    kept, left = (train_student(STUDENT, protocol, clothes(2), clothes(2), None, 0) for _ in range(2))
    assert told == [(-4, 0), (-1, -1)]  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    assert all(torch.equal(kept.weights[k], v) for k, v in left.weights.items())


# Of the loop as it was before dc, dsa and rd3, temperature 1: within rounding on any CPU.
FIRST_LOSSES: dict[str, list[float]] = {
    "hard": [1.165726, 1.046738, 1.186217, 1.095783],
    "hard-mixup": [1.129824, 1.087389, 1.129157, 1.139346],
    "d3hr-soft": [0.061517, 0.020696, 0.01312, 0.01242],
    "rded-soft": [0.078159, 0.034984, 0.014043, 0.009326],
    "fixed-soft": [0.061517, 0.020696, 0.01312, 0.01242],
    "teacher": [1.227867, 1.080529, 1.047072, 0.901808],
}


@pytest.mark.parametrize("name", FIRST_LOSSES)
def test_the_first_losses_of_other_protocols_stay(monkeypatch, name):
    protocol = Recipe().make(name, Setting("convnet-d3-w32", 224, 10, 3))  # the teacher of photos
    protocol = replace(protocol, epochs=2, batch_size=8, temperature=1.0)
    losses = []
    for kind in ("cross_entropy", "kl_div"):
        real = getattr(functional, kind)
        monkeypatch.setattr(functional, kind, lambda *a, real=real, **k: losses.append(real(*a, **k)) or losses[-1])
    teacher = build_student("convnet-d3-w32", 3, 16, 7).eval().requires_grad_(False)
    train_student("convnet-d3-w32", protocol, stripes(8), stripes(8), teacher, 0)
    np.testing.assert_allclose([float(loss.detach()) for loss in losses[:4]], FIRST_LOSSES[name], atol=1e-5, rtol=0)
