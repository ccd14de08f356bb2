"""Test a network on real images: accuracies, the confusion of classes, and whether a teacher knows them at all."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from d3hr_ray.config import RunError
from d3hr_ray.datasets.images import Images

TEST_BATCH, TEST_SIDE = 500, 64  # images of so many pixels; fewer of larger ones, for the same memory


@dataclass(frozen=True)
class Score:
    """Accuracies in [0, 1] on a test set, and how often each class (row) was taken for which (column), (K, K)."""

    top1: float
    top5: float
    confusion: np.ndarray


@torch.inference_mode()
def evaluate(net: nn.Module, test: Images, device: str) -> Score:
    """Top-1, top-5 and confusion of a network over a test set. Raises RunError if its outputs are not finite."""
    net.eval()
    classes = len(test.classes)
    confusion, hits5 = np.zeros((classes, classes), np.int64), 0
    for logits, labels in _predictions(net, test, device):
        if not torch.isfinite(logits).all():
            raise RunError("evaluate: a student's outputs are not finite; lower --lr")
        hits5 += int((logits.topk(min(5, classes)).indices == labels[:, None]).sum())
        pairs = (labels * classes + logits.argmax(1)).cpu().numpy()
        confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return Score(float(np.trace(confusion) / len(test)), hits5 / len(test), confusion)


def preflight(teacher: nn.Module, test: Images, name: str, device: str) -> float:
    """The teacher's own top-1 on the test set, in the set's class order.

    Raises RunError if that is near chance: less than a tenth of the way from there to 1.
    """
    top1, chance = evaluate(teacher, test, device).top1, 1 / len(test.classes)
    if top1 < chance + 0.1 * (1 - chance):
        raise RunError(
            f"--teacher {name} reaches {top1:.1%} on the test set, near chance ({chance:.1%}): its classes are "
            "probably in another order than the set's; give a teacher with named classes, or sort classes as it does"
        )
    return top1


def _predictions(net: nn.Module, test: Images, device: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    size = max(8, min(TEST_BATCH, TEST_BATCH * TEST_SIDE**2 // test.side**2))
    for at in range(0, len(test), size):
        pixels = torch.tensor(test.pixels[at : at + size]).to(device)  # a copy: Ray's objects are read-only
        labels = torch.tensor(test.labels[at : at + size]).to(device)
        yield net(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1), labels
