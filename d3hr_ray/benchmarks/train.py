"""bench train: a student's training in memory against a plain DataLoader loop of the same maths; students side by side.

The plain loop is what the field's scripts are: a folder of PNGs, torchvision transforms image by image, a DataLoader.
"""

import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from d3hr_ray.benchmarks.measure import CPU, WALL, Result, in_turns, median_ratio
from d3hr_ray.datasets.images import Images
from d3hr_ray.evaluation.augment import mix
from d3hr_ray.evaluation.protocols import Protocol, Setting, hard
from d3hr_ray.evaluation.training import train_student
from d3hr_ray.models.students import build_student
from d3hr_ray.numerics.seeds import generator

SIDE, CLASSES, IPC = 16, 10, 10
STUDENTS = {"train_speedup": "convnet-d3", "train_speedup_width32": "convnet-d3-w32"}


def run(quick: bool) -> Result:
    """Measure on as many images of digits' size; `quick` is for tests: one small student, one epoch."""
    torch.set_num_threads(1)
    images, epochs = noise_images(), 1 if quick else 10
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        _write_pngs(images, Path(folder))
        for ratio, arch in list(STUDENTS.items())[1 if quick else 0 :]:
            protocol = _protocol(arch, epochs)
            sides: dict[str, Callable[[], Any]] = {
                "DataLoader": partial(plain_loop, folder, arch, protocol),
                "ours": partial(train_student, arch, protocol, images, images.take(np.arange(10)), None, 0),
            }
            seconds = in_turns(sides, 1 if quick else 5, CPU)
            rows += [
                {"student": arch, "way": k, "images/s": epochs * len(images) / statistics.median(s)}
                for k, s in seconds.items()
            ]
            ratios[ratio] = median_ratio(seconds["DataLoader"], seconds["ours"])
    note = (
        f"hard labels, crop, flip, CutMix; {len(images)} PNGs of {SIDE} pixels, batch {protocol.batch_size}; one thread"
    )
    return Result("train", ratios, rows, [note, "the loop reads, decodes and augments each image anew, as scripts do"])


def noise_images() -> Images:
    """IPC images per class of digits' size; what they show does not change the time."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (CLASSES * IPC, SIDE, SIDE, 3), np.uint8)
    return Images(pixels, np.arange(CLASSES).repeat(IPC), tuple("0123456789"))


def _protocol(arch: str, epochs: int) -> Protocol:
    base = hard(Setting(arch=arch, image_size=SIDE, ipc=IPC, classes=CLASSES))
    return replace(base, epochs=epochs, steps=None, evaluate_every=epochs)


def _write_pngs(images: Images, folder: Path) -> None:
    for i, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
        path = folder / images.classes[label] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)


def plain_loop(folder: str, arch: str, protocol: Protocol) -> None:
    """The same protocol by ImageFolder, torchvision's transforms and a DataLoader without workers."""
    scale = protocol.augment.crop_scale
    assert scale is not None, "the hard protocol crops"
    steps = [transforms.RandomResizedCrop(SIDE, scale), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    data = datasets.ImageFolder(folder, transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.5] * 3)]))
    loader = DataLoader(data, protocol.batch_size, shuffle=True)
    net = build_student(arch, CLASSES, SIDE, 0)
    optimizer = torch.optim.SGD(net.parameters(), protocol.lr, momentum=0.9, weight_decay=protocol.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, protocol.epochs)
    draw = generator("bench train")
    for _ in range(protocol.epochs):
        for batch, labels in loader:
            targets = functional.one_hot(labels, CLASSES).float()
            mixed, soft = mix(batch, targets, protocol.augment, draw)
            loss = functional.cross_entropy(net(mixed), soft)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        schedule.step()


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
    images = noise_images()
    test = images.take(np.arange(10))
    train_student("convnet-d3", _protocol("convnet-d3", 1), images, test, None, seed, device)  # the device wakes up
    barrier.wait()
    start = WALL()
    train_student("convnet-d3", _protocol("convnet-d3", epochs), images, test, None, seed, device)
    return WALL() - start
