"""A student trained on a set, as jobs/evaluate.py trains it."""

import numpy as np

from d3hr_ray.datasets.images import Images
from d3hr_ray.evaluation import training
from d3hr_ray.evaluation.protocols import Setting
from d3hr_ray.evaluation.recipes import Overrides, Recipe
from d3hr_ray.evaluation.trials import student_seed
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
) -> float:
    """Train a student from scratch under a protocol of hard labels => its last-epoch top-1 in [0, 1] on `test`.

    `glyphs` is for handwriting: no flips or crops, 200 steps. With `weights` each image counts by that of `train`.
    Classes are matched by name. Equal arguments give equal accuracies on a CPU. Raises ValueError for classes or sizes
    that differ, a protocol that needs a teacher, or weights that `train` does not have.
    """
    if weights and train.weights is None:
        raise ValueError("weights=True, and train has none: sets that were made with --components have")
    if (a := train.pixels.shape[1:]) != (b := test.pixels.shape[1:]):
        raise ValueError(f"train has images of {tuple(a)}, test of {tuple(b)}: load both with one side=")
    if set(train.classes) != set(test.classes):
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"train and test differ in their classes: {', '.join(odd[:5])} is in one alone")
    setting = Setting(arch, int(train.pixels.shape[1]), len(train) // len(train.classes), len(train.classes))
    made = Recipe(glyphs, overrides=Overrides(epochs=epochs), weighted=weights).make(protocol, setting)
    if made.labels == "soft":
        raise ValueError(f"protocol {protocol} trains on a teacher's labels; use jobs/evaluate.py --teacher")
    order = np.array([train.classes.index(name) for name in test.classes])
    tested = Images(test.pixels.numpy(), order[test.labels.numpy()], train.classes)
    own_weights = None if train.weights is None else train.weights.numpy()
    own = Images(train.pixels.numpy(), train.labels.numpy(), train.classes, weights=own_weights)
    return training.train_student(arch, made, own, tested, None, student_seed(seed, 0, arch), device).last.top1
