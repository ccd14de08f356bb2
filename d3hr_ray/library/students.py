"""A student trained on a set, as jobs/evaluate.py trains it."""

import numpy as np
import torch

from d3hr_ray.datasets.images import Images
from d3hr_ray.datasets.matching import match_sources
from d3hr_ray.datasets.normalisation import are_digits
from d3hr_ray.evaluation import training
from d3hr_ray.evaluation.protocols import Setting
from d3hr_ray.evaluation.recipes import Overrides, Recipe
from d3hr_ray.evaluation.trials import student_seed
from d3hr_ray.library.errors import naming_arguments
from d3hr_ray.library.images import ImageSet


def train_student(
    train: ImageSet,
    test: ImageSet,
    arch: str = "convnet-d3",
    protocol: str = "hard",
    glyphs: bool = False,
    epochs: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    weights: bool = False,
    upright: bool = False,
) -> float:
    """Train a student from scratch under a protocol of hard labels => its last-epoch top-1 in [0, 1] on `test`.

    `glyphs` is for handwriting: no flips or crops, 200 steps; `upright` for other images whose mirror images are of no
    class, as MNIST's: no flips. With `weights` each image counts by that of `train`. Classes are matched by name, or as
    the folders of a set are called. Equal arguments give equal accuracies on a CPU. Raises ValueError for classes or
    sizes that differ, a protocol that needs a teacher, or weights that `train` does not have.
    """
    if weights and train.weights is None:
        raise ValueError("weights=True, and train has none: sets that were made with --components have")
    if (a := train.pixels.shape[1:]) != (b := test.pixels.shape[1:]):
        raise ValueError(f"train has images of {tuple(a)}, test of {tuple(b)}: load both with one side=")
    order = _places(test.classes, train.classes)
    ipc = int(train.labels.bincount(minlength=len(train.classes)).min())
    setting = Setting(arch, int(train.pixels.shape[1]), ipc, len(train.classes), are_digits(train.classes))
    recipe = Recipe(glyphs, overrides=Overrides(epochs=epochs), weighted=weights, upright=upright)
    made = recipe.make(protocol, setting)
    if made.labels == "soft":
        raise ValueError(f"protocol {protocol} trains on a teacher's labels; use jobs/evaluate.py --teacher")
    with naming_arguments():
        training.check_batches(len(train), made, arch)
    tested = Images(test.pixels.numpy(), order[test.labels.numpy()], train.classes)
    own_weights = None if train.weights is None else train.weights.numpy()
    own = Images(train.pixels.numpy(), train.labels.numpy(), train.classes, weights=own_weights)
    where = torch.device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):  # no caller's draws change by this
        return training.train_student(arch, made, own, tested, None, student_seed(seed, 0, arch), device).last.top1


def _places(tested: tuple[str, ...], trained: tuple[str, ...]) -> np.ndarray:
    """Of each class to test on, its place among those to train on."""
    try:
        sources = match_sources(trained, tested, {}, None)
    except ValueError as error:
        odd = sorted(set(trained) ^ set(tested))
        raise ValueError(f"train and test differ in their classes; in one alone are {', '.join(odd[:5])}") from error
    if odd := sorted(set(tested) - set(sources)):
        raise ValueError(f"train and test differ in their classes; in test alone are {', '.join(odd[:5])}")
    return np.array([sources.index(name) for name in tested])
