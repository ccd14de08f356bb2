"""A student trained by the library is the one that jobs/evaluate.py trains, on any set and by its card's words."""

import pytest
import torch

import d3hr_ray as d3
from d3hr_ray.evaluation import training
from d3hr_ray.report.accuracy import _card_arguments

ARCH = "convnet-d2-w4"


def images(classes: tuple[str, ...], per_class: int = 2, side: int = 16) -> d3.ImageSet:
    """Random pixels, equal for equal arguments."""
    draw = torch.Generator().manual_seed(0)
    count = per_class * len(classes)
    pixels = torch.randint(256, (count, side, side, 3), generator=draw, dtype=torch.uint8)
    return d3.ImageSet(pixels, torch.arange(len(classes)).repeat_interleave(per_class), classes)


@pytest.fixture
def made(monkeypatch):
    """The protocols that students were trained under, which are not trained here."""
    found = []

    class Outcome:
        class last:
            top1 = 0.5

    def keep(arch, protocol, train, test, *rest):
        found.append((protocol, train, test))
        return Outcome

    monkeypatch.setattr(training, "train_student", keep)
    return found


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("T-shirt/top", "Ankle boot"), ("0000_T-shirt_top", "0001_Ankle_boot")),
        (("tench, Tinca tinca", "goldfish"), ("n01440764", "n01443537")),
        (("b", "a"), ("0000_b", "0001_a")),
        (("b", "a"), ("a", "b")),
    ],
)
def test_classes_match_as_the_folders_of_a_set_are_called(made, names, folders):
    """Which is what a card asks TEST_IMAGES for."""
    assert d3.train_student(images(names), images(folders), ARCH) == 0.5
    ((_, train, test),) = made
    turned = folders == ("a", "b")
    assert test.labels.tolist() == ([1, 1, 0, 0] if turned else [0, 0, 1, 1]) and test.classes == train.classes == names


@pytest.mark.parametrize(
    ("tested", "words"),
    [(("a", "c"), "in one alone are b, c"), (("a", "b", "c"), "in test alone are c"), (("a",), "in one alone are b")],
)
def test_other_classes_are_refused(made, tested, words):
    with pytest.raises(ValueError, match=f"train and test differ in their classes; {words}"):
        d3.train_student(images(("a", "b")), images(tested), ARCH)


def test_digits_are_not_mirrored(made):
    """Under dsa as soon as classes are called so, under others if it is said, as a card does."""
    digits = images(tuple("0123456789"))
    d3.train_student(digits, digits, ARCH, "dsa")
    d3.train_student(digits, digits, ARCH, "hard", upright=True)
    d3.train_student(digits, digits, ARCH, "hard")
    (dsa, *_), (upright, *_), (hard, *_) = made
    assert "flip" not in dsa.augment.families
    assert (upright.augment.flip, upright.version) == (False, f"{hard.version}-upright") and hard.augment.flip


def test_the_smallest_class_says_the_ipc_as_for_the_jobs(made):
    """Epochs of `hard` depend on it."""
    few = images(("a", "b"), 60)
    keep = (few.labels == 0) | (torch.arange(len(few)) < 109)
    uneven = d3.ImageSet(few.pixels[keep], few.labels[keep], few.classes)
    for each in (uneven, images(("a", "b"), 49), few):
        d3.train_student(each, few, ARCH)
    first, as_first, other = (protocol.epochs for protocol, *_ in made)
    assert first == as_first != other


def cell(**differs) -> dict[str, object]:
    return {"arch": ARCH, "protocol": "hard", "protocol_version": "2", "teacher": None} | differs


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (
            [cell(protocol_version="2-upright+epochs=3")],
            f'arch="{ARCH}", protocol="hard", upright=True, epochs=3',
        ),
        ([cell(protocol="minimax"), cell()], f'arch="{ARCH}", protocol="hard"'),
        ([cell(protocol="minimax-noaug")], ""),
        ([cell(protocol_version="2+lr=1")], ""),
    ],
)
def test_a_cards_code_is_of_what_was_measured(cells, words):
    assert _card_arguments(cells) == words


def test_training_draws_nothing_from_torchs_generator():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    found = d3.train_student(images(("a", "b")), images(("a", "b")), ARCH, epochs=1)
    assert torch.equal(torch.rand(4), wanted) and 0 <= found <= 1


def test_a_student_that_cannot_train_on_a_set_is_refused():
    one = images(("a",), 1)
    with pytest.raises(ValueError, match=f"arch {ARCH}-bn has batch norm and would train on batches of one"):
        d3.train_student(one, one, f"{ARCH}-bn")
