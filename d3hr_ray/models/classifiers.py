"""Small image classifiers that are trained on the spot, to score images and as students; and how any is tested."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log2
from typing import Literal

import numpy as np
import torch
from torch import nn

from d3hr_ray.config import RunError
from d3hr_ray.datasets.images import Images
from d3hr_ray.models.autoencoder import to_images
from d3hr_ray.numerics.seeds import generator

STEPS, BATCH = 800, 128  # of a classifier, which is enough for digits
FEWEST_STEPS, MOST_STEPS = 200, 4000
FEWEST_PASSES, MOST_PASSES = 8, 80  # over the images: more teach it nothing new, fewer leave it unfinished
TEST_BATCH, TEST_SIDE = 500, 64  # images of so many pixels; fewer of larger ones, for the same memory
CONFUSION_CLASSES = 100  # a larger confusion is not made: 1,000 classes would be 8 MB a trial


Norm = Literal["in", "bn"]  # per instance, or per batch


def norm_layer(width: int, norm: Norm) -> nn.Module:
    """The norm of so many channels, with a scale and an offset for each."""
    return nn.GroupNorm(width, width) if norm == "in" else nn.BatchNorm2d(width)


class HalfPool(nn.Module):
    """nn.AvgPool2d(2). On CPUs by slices: 2.6 times as fast forward and back as torch's (64x32x16x16, one core)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) => (B, C, H // 2, W // 2)."""
        if x.device.type != "cpu":
            return nn.functional.avg_pool2d(x, 2)
        height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        rows = x[:, :, 0:height:2] + x[:, :, 1:height:2]
        return (rows[..., 0:width:2] + rows[..., 1:width:2]) * 0.25


class ConvNet(nn.Module):
    """The distillation papers' ConvNet (Zhao et al., 2021): conv, norm, ReLU, average pooling, `depth` times.

    The norm is per instance ("in") or per batch ("bn"). As theirs, it pads 28-pixel images to 32 in its first layer.

    Images (B, C, S, S) in [-1, 1] => logits (B, K).
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        width: int = 128,
        depth: int = 3,
        norm: Norm = "in",
        channels: int = 3,
    ) -> None:
        super().__init__()
        if depth > log2(image_size):
            raise ValueError(f"a ConvNet of depth {depth} halves {image_size} pixels too often; use a smaller depth")
        padded = 32 if image_size == 28 else image_size
        blocks: list[nn.Module] = []
        for i in range(depth):
            conv = nn.Conv2d(width if i else channels, width, 3, padding=1 if i else 1 + (padded - image_size) // 2)
            blocks += [conv, norm_layer(width, norm), nn.ReLU(), HalfPool()]
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(width * (padded >> depth) ** 2, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images => logits."""
        out: torch.Tensor = self.head(self.features(images).flatten(1))
        return out


def enough_steps(images: int) -> int:
    """Of a classifier's training: STEPS, unless these are many passes over few images, or hardly any over many."""
    few, many = (round(passes * images / BATCH) for passes in (FEWEST_PASSES, MOST_PASSES))
    return min(MOST_STEPS, max(FEWEST_STEPS, few, min(STEPS, many)))


def train_convnet(
    pixels: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    steps: int = STEPS,
    width: int = 32,
    batch_size: int = BATCH,
    lr: float = 4e-3,
    shift: int = 1,
    seed: int = 0,
    device: str = "cpu",
    told: Callable[[int, torch.Tensor], None] = lambda done, loss: None,
) -> ConvNet:
    """Pixels (N, S, S, 3) uint8 and labels (N,) => a trained ConvNet; equal inputs give equal weights on a CPU.

    Images are shifted by up to `shift` pixels, edges repeated. One core trains digits in about half a minute.
    `told` is called with the number of steps done and the last one's loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ConvNet(num_classes, pixels.shape[1], width).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    padded = np.pad(pixels, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    side = pixels.shape[1]
    for step in range(steps):
        draw = generator("classifier", seed, step)
        rows = draw.integers(len(pixels), size=batch_size)
        down, right = draw.integers(2 * shift + 1, size=2)  # one shift per batch: cheap, and enough over many steps
        images = to_images(torch.from_numpy(padded[rows, down : down + side, right : right + side]).to(device))
        wanted = torch.from_numpy(labels[rows]).to(device)
        loss = nn.functional.cross_entropy(net(images), wanted, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        told(step + 1, loss.detach())
    return net.eval()


@torch.inference_mode()
def predict(net: nn.Module, pixels: np.ndarray, batch_size: int = 500, device: str = "cpu") -> np.ndarray:
    """Pixels (N, S, S, 3) uint8 => the most probable class of each, (N,), by a network on a device."""
    parts = torch.from_numpy(pixels).split(batch_size)
    return np.concatenate([net(to_images(part.to(device))).argmax(1).cpu().numpy() for part in parts])


@dataclass(frozen=True)
class Score:
    """Accuracies in [0, 1] on a test set, of all and per class (K,), 0 for a class without images; and how often each
    class (row) was taken for which (column), (K, K), of up to CONFUSION_CLASSES."""

    top1: float
    top5: float
    per_class: np.ndarray
    confusion: np.ndarray | None


@torch.inference_mode()
def evaluate(net: nn.Module, test: Images, device: str) -> Score:
    """Top-1, top-5 and confusion of a network over a test set. Raises RunError if its outputs are not finite."""
    net.eval()
    classes, guesses, hits5 = len(test.classes), [], 0
    for logits, labels in _predictions(net, test, device):
        if not torch.isfinite(logits).all():
            raise RunError("evaluate: a network's outputs are not finite; lower the --lr it is trained with")
        hits5 += int((logits.topk(min(5, classes)).indices == labels[:, None]).sum())
        guesses.append(logits.argmax(1).cpu().numpy())
    labels_N, guesses_N = np.asarray(test.labels), np.concatenate(guesses)
    hits_K = np.bincount(labels_N[labels_N == guesses_N], minlength=classes)
    per_class = hits_K / np.bincount(labels_N, minlength=classes).clip(min=1)
    confusion = None
    if classes <= CONFUSION_CLASSES:
        confusion = np.bincount(labels_N * classes + guesses_N, minlength=classes**2).reshape(classes, classes)
    return Score(float(hits_K.sum() / len(test)), hits5 / len(test), per_class, confusion)


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
