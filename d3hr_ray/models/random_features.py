"""Features of images under random ConvNets, each with one augmentation: what refinement matches."""

from collections.abc import Sequence

import torch

from d3hr_ray.config import families_of
from d3hr_ray.datasets.normalisation import are_digits, normalisation_of
from d3hr_ray.models.families import siamese
from d3hr_ray.models.students import build_student
from d3hr_ray.numerics.feature_matching import Features
from d3hr_ray.numerics.seeds import digest, generator


def random_features(number: int, side: int, width: int, class_names: Sequence[str], device: str) -> Features:
    """Images (N, 3, S, S) in [-1, 1] => features (N, F) under a ConvNet-3 with weights and an augmentation of its own.

    Both are drawn by `number` alone, and the augmentation is the same for all images (DSA's families, `alike`), so that
    real and made images are seen alike wherever they are. Classes that are digits are not mirrored.
    """
    families = families_of(are_digits(class_names))
    seed = digest(f"random features {number}".encode()) % 2**63
    student = build_student(f"convnet-d3-w{width}", 1, side, seed, normalisation_of(class_names, grey=False))
    layers = student.get_submodule("net.features")
    student = student.to(device).requires_grad_(False).eval()

    def features(images: torch.Tensor) -> torch.Tensor:
        draw = generator("augmentation of random features", number)
        seen = siamese(student.normalise(images), families, draw, alike=True)
        found: torch.Tensor = layers(seen).flatten(1)
        return found

    return features
