"""What a network takes pixels for: grey or colour, and their mean and std, known for the field's small sets."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d3hr_ray.datasets.matching import without_number


@dataclass(frozen=True)
class Normalisation:
    """Mean and std of pixels in [0, 1], one each per channel that a network sees: three, or one of grey images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        """How many a network's first layer has."""
        return len(self.mean)


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = Normalisation((0.449,), (0.226,))  # the means of ImageNet's, for grey images that nothing is known of
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {f"{i}{word}" for i, word in enumerate(DIGIT_NAMES)} | set(map(str, range(10))) | set(DIGIT_NAMES)
_CLOTHES = {
    "tshirttop", "tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankleboot",
}  # fmt: skip
_CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
# As published in DatasetCondensation's utils.py (Zhao et al., 2021): MNIST, Fashion-MNIST, SVHN, CIFAR-10.
KNOWN: tuple[tuple[set[str], Normalisation], ...] = (
    (_DIGITS, Normalisation((0.1307,), (0.3081,))),
    (_CLOTHES, Normalisation((0.2861,), (0.3530,))),
    (_DIGITS, Normalisation((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))),
    (_CIFAR10, Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))),
)


def normalisation_of(classes: Sequence[str], grey: bool) -> Normalisation:
    """The published one of a set that its classes' names and its channels tell, else ImageNet's (for grey its mean).

    It never depends on the images of a distilled set: students of two sets see the same test images.
    """
    names, channels = _plain(classes), 1 if grey else 3
    found = (known for those, known in KNOWN if names <= those and known.channels == channels)
    return next(found, GREY if grey else IMAGENET)


def are_digits(classes: Sequence[str]) -> bool:
    """Whether classes are called 0 to 9, or zero to nine: a mirrored digit is none."""
    return _plain(classes) <= _DIGITS


def is_grey(pixels: np.ndarray) -> bool:
    """Whether the three channels of (N, S, S, 3) are one."""
    return bool((pixels[..., :1] == pixels[..., 1:]).all())


def _plain(classes: Sequence[str]) -> set[str]:
    """Names without case, marks and the number of their place."""
    return {re.sub("[^a-z0-9]", "", without_number(name, at).lower()) for at, name in enumerate(classes)}
