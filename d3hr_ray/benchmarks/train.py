"""bench train: a student's training in memory against a plain DataLoader loop of the same maths; students side by side.

The plain loop is what the field's scripts are: torch's layers and a DataLoader, of a folder of PNGs with torchvision's
transforms image by image, or under `dc` of tensors in memory, as DatasetCondensation's evaluation.
"""

import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchvision import datasets, transforms

from d3hr_ray.benchmarks.measure import WALL, Clock, Result, in_turns, in_turns_apart, median_ratio
from d3hr_ray.datasets.images import Images
from d3hr_ray.datasets.normalisation import Normalisation
from d3hr_ray.evaluation.augment import mix
from d3hr_ray.evaluation.protocols import PROTOCOLS, Precision, Protocol, Setting
from d3hr_ray.evaluation.training import norm_of, train_student
from d3hr_ray.models.classifiers import HalfPool
from d3hr_ray.models.memory import keep_freed_memory
from d3hr_ray.models.students import Normalised, build_student
from d3hr_ray.numerics.seeds import generator

CLASSES, IPC, EPOCHS = 10, 10, 10


@dataclass(frozen=True)
class Case:
    """A student on images of `side` pixels under a protocol: `hard` on digits' size, `dc` on Fashion-MNIST's, grey."""

    ratio: str
    arch: str
    side: int = 16
    protocol: Literal["hard", "dc"] = "hard"

    def images(self) -> Images:
        """IPC images per class; what they show does not change the time."""
        draw = np.random.default_rng(0)
        channels = 1 if self.protocol == "dc" else 3
        pixels = draw.integers(0, 256, (CLASSES * IPC, self.side, self.side, channels), np.uint8)
        return Images(
            np.repeat(pixels, 3 // channels, 3), np.arange(CLASSES).repeat(IPC), tuple(map(str, range(CLASSES)))
        )

    def made(self, epochs: int) -> Protocol:
        """The protocol for so many epochs, tested at the end alone."""
        base = PROTOCOLS[self.protocol](Setting(arch=self.arch, image_size=self.side, ipc=IPC, classes=CLASSES))
        return replace(base, epochs=epochs, steps=None, evaluate_every=epochs)


CASES = (
    Case("train_speedup", "convnet-d3"),
    Case("train_speedup_width32", "convnet-d3-w32"),
    Case("train_speedup_dc", "convnet-d3", 28, "dc"),
)
TINY = (Case("train_speedup_width32", "convnet-d3-w32"), Case("train_speedup_dc", "convnet-d3-w8", 28, "dc"))


def run(quick: bool) -> Result:
    """Measure every case, each side in a process of its own; `quick` is for tests: small students, one epoch, here."""
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for case in TINY if quick else CASES:
        images, protocol = case.images(), case.made(1 if quick else EPOCHS)
        with tempfile.TemporaryDirectory() as folder:
            _write_pngs(images, Path(folder))
            test = images.take(np.arange(CLASSES))
            train = partial(train_student, case.arch, train=images, test=test, teacher=None, seed=0)
            sides: dict[str, Callable[[], Any]] = {
                "DataLoader": partial(plain_loop, folder, case, protocol),
                "ours": partial(train, protocol=protocol),
            }
            if case.protocol == "dc":
                sides["convolutions alone"] = partial(plain_loop, folder, case, protocol, bare=True)
            seconds = in_turns(sides, 1) if quick else in_turns_apart(sides, 5)
        rows += _rows(case, seconds, protocol.epochs * len(images))
        ratios[case.ratio] = median_ratio(seconds["DataLoader"], seconds["ours"])
        if case.protocol == "dc":
            ratios["train_bound_dc"] = median_ratio(seconds["DataLoader"], seconds["convolutions alone"])
            # An epoch of each: bfloat16 is far slower where a CPU has none
            kinds = get_args(Precision)
            one = {k: partial(train, protocol=replace(case.made(1), precision=k)) for k in kinds}
            seconds = in_turns(one, 1) if quick else in_turns_apart(one, 3)
            rows += _rows(case, {f"ours, {k}, one epoch": s for k, s in seconds.items()}, len(images))
            ratios["bfloat16_speedup_dc"] = median_ratio(seconds["float32"], seconds["bfloat16"])
    notes = [
        f"{CLASSES * IPC} images; one thread; each side in its own process: ours keeps freed memory, scripts do not",
        "hard: crop, flip, CutMix; the loop reads, decodes and augments each PNG anew, as scripts do",
        "dc: no augmentation; the loop has its images in memory, as DatasetCondensation's",
        "convolutions alone, channels last: the loop without norms, activations and pooling, however fast these may be",
    ]
    return Result("train", ratios, rows, notes)


def _rows(case: Case, seconds: dict[str, list[float]], seen: int) -> list[dict[str, Any]]:
    """Of ways whose seconds are those of so many images seen."""
    told = f"{case.arch}, {case.side} pixels, {case.protocol}"
    return [{"student": told, "way": k, "images/s": seen / statistics.median(s)} for k, s in seconds.items()]


def _write_pngs(images: Images, folder: Path) -> None:
    for i, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        path = folder / images.classes[label] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)


def plain_loop(folder: str, case: Case, protocol: Protocol, device: str = "cpu", bare: bool = False) -> None:
    """The same protocol by a DataLoader without workers, on a network of torch's layers alone.

    `bare` leaves its convolutions alone, in the layout that is fastest for them and with freed memory kept: what the
    loop takes where norms, activations and pooling cost nothing.
    """
    images, scale = case.images(), protocol.augment.crop_scale
    data = _tensors(images) if scale is None else _pngs(folder, case.side, scale)
    loader = DataLoader(data, protocol.batch_size, shuffle=True)
    net = plain_student(case.arch, case.side, norm_of(protocol, images)).to(device)
    if bare:
        keep_freed_memory()
        net = _bare_student(net).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), protocol.lr, momentum=0.9, weight_decay=protocol.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, protocol.epochs)
    draw = generator("bench train")
    for _ in range(protocol.epochs):
        for batch, labels in loader:
            targets = functional.one_hot(labels, CLASSES).float().to(device)
            mixed, soft = mix(batch.to(device), targets, protocol.augment, draw)
            loss = functional.cross_entropy(net(mixed), soft)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        schedule.step()


def _pngs(folder: str, side: int, scale: tuple[float, float]) -> datasets.ImageFolder:
    steps = [transforms.RandomResizedCrop(side, scale), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    return datasets.ImageFolder(folder, transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.5] * 3)]))


def _tensors(images: Images) -> TensorDataset:
    return TensorDataset(torch.from_numpy(images.pixels).permute(0, 3, 1, 2) / 127.5 - 1, torch.tensor(images.labels))


def plain_student(arch: str, side: int, norm: Normalisation) -> Normalised:
    """A ConvNet of torch's layers alone."""
    student = build_student(arch, CLASSES, side, 0, norm)
    return _replaced(student, lambda layer: nn.AvgPool2d(2) if isinstance(layer, HalfPool) else layer)


def _bare_student(student: Normalised) -> Normalised:
    """Its convolutions alone."""

    def bare(layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.Conv2d):
            return layer
        return _EverySecond() if isinstance(layer, nn.AvgPool2d) else nn.Identity()

    return _replaced(student, bare)


def _replaced(student: Normalised, made: Callable[[nn.Module], nn.Module]) -> Normalised:
    layers = student.net.features
    assert isinstance(layers, nn.Sequential)
    for i, layer in enumerate(layers):
        layers[i] = made(layer)
    return student


class _EverySecond(nn.Module):
    """What makes images as small as a pooling does, and computes nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) => (B, C, H // 2, W // 2)."""
        return x[:, :, ::2, ::2]


def on_device(device: str, case: Case, epochs: int, clock: Clock) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Ratios and rows of a `dc` student there, whole trainings in one process: a plain loop, ours, ours in bfloat16."""
    images, protocol = case.images(), case.made(epochs)
    test = images.take(np.arange(CLASSES))
    ours = partial(train_student, case.arch, train=images, test=test, teacher=None, seed=0, device=device)
    half = replace(protocol, precision="bfloat16")
    sides: dict[str, Callable[[], Any]] = {
        "DataLoader": partial(plain_loop, "", case, protocol, device),
        "ours": partial(ours, protocol=protocol),
        "ours, bfloat16": partial(ours, protocol=half),
    }
    seconds = in_turns(sides, 3, clock)
    ratios = {
        f"{case.ratio}_here": median_ratio(seconds["DataLoader"], seconds["ours"]),
        "bfloat16_speedup_dc_here": median_ratio(seconds["ours"], seconds["ours, bfloat16"]),
    }
    return ratios, _rows(case, seconds, epochs * len(images))


def side_by_side(students: int, epochs: int, device: str) -> float:
    """Throughput of so many ConvNets trained at once on one device, over that of one after another."""
    alone, together = (_slowest(count, epochs, device) for count in (1, students))
    return students * alone / together


def _slowest(count: int, epochs: int, device: str) -> float:
    """Seconds until all of `count` processes, which start together, have trained their student."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        barrier = manager.Barrier(count)
        with context.Pool(count) as pool:
            return max(pool.starmap(_one_student, [(seed, epochs, device, barrier) for seed in range(count)]))


def _one_student(seed: int, epochs: int, device: str, barrier: Barrier) -> float:
    torch.set_num_threads(1)
    case = CASES[0]
    images = case.images()
    test = images.take(np.arange(CLASSES))
    train_student(case.arch, case.made(1), images, test, None, seed, device)  # the device wakes up
    barrier.wait()
    start = WALL()
    train_student(case.arch, case.made(epochs), images, test, None, seed, device)
    return WALL() - start
