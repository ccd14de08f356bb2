"""A small easy image set, a quick protocol, and a folder of images, for tests of the evaluation."""

from dataclasses import replace

import numpy as np
import torch
from conftest import encode

from d3hr_ray.datasets.images import Images
from d3hr_ray.evaluation.protocols import Augment, Setting
from d3hr_ray.evaluation.recipes import Recipe
from d3hr_ray.evaluation.training import Share, train_student

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


def gradient(arch: str, train: Images, share: Share, **changes) -> torch.Tensor:
    """Of the first step, on a batch of 21 images that is augmented and mixed, as one worker of some that share it."""
    kept = []

    def keep(net):
        kept.append(net)
        return net

    protocol = hard(optimizer="sgd", lr=1e-12, warmup=0.0, batch_size=21, **changes)
    protocol = replace(protocol, steps=1, augment=Augment(shift=1, mix="cutmix"))
    train_student(arch, protocol, train, train, None, 0, share=replace(share, wrap=keep))
    return torch.cat([p.grad.flatten() for p in kept[0].parameters()])


def write_set(root, images: Images):
    for i, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        folder = root / "train" / images.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:04d}.png").write_bytes(encode(pixels))
    return str(root)
