"""bench condense: what DatasetCondensation's own loops would cost on this machine, on Fashion-MNIST's size.

Its main.py (Zhao et al., ICLR 2021, commit 0061269) draws 1,001 networks. Each goes through `outer` rounds: gradients
of 256 real images of every class, and of the class's synthetic ones, which are moved to match; between rounds the
network trains on the synthetic images for `inner` epochs. The three pieces are timed, and multiplied by their number.
No image is condensed here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from d3hr_ray.benchmarks.measure import Result, in_turns_apart
from d3hr_ray.models.students import Normalised, build_student
from d3hr_ray.numerics.seeds import normal

CLASSES, SIDE = 10, 28
NETWORKS, REAL, BATCH = 1001, 256, 256
LOOPS = {1: (1, 1), 10: (10, 50), 50: (50, 10)}  # of IPC: outer rounds, and inner epochs between two of them


def run(quick: bool) -> Result:
    """Measure; `quick` is for tests: a narrow network, IPC 1."""
    arch = "convnet-d3-w8" if quick else "convnet-d3"
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for ipc, (outer, inner) in list(LOOPS.items())[: 1 if quick else None]:
        images = CLASSES * ipc
        pieces: dict[str, Callable[[], object]] = {
            "real": partial(gradients, arch, REAL),
            "synthetic": partial(matched, arch, ipc),
            "train": partial(trained, arch, min(images, BATCH)),
        }
        taken = in_turns_apart(pieces, 1 if quick else 3)
        seconds = {name: min(each) for name, each in taken.items()}
        epoch = seconds["train"] * images / min(images, BATCH)
        parts = {
            "real images": NETWORKS * outer * CLASSES * seconds["real"],
            "synthetic images": NETWORKS * outer * CLASSES * seconds["synthetic"],
            "networks": NETWORKS * (outer - 1) * inner * epoch,
        }
        hours = {name: value / 3600 for name, value in parts.items()}
        rows.append({"IPC": ipc, **{f"{k} (CPU-hours)": v for k, v in hours.items()}, "all": sum(hours.values())})
        ratios[f"cpu_hours_ipc{ipc}"] = sum(hours.values())
    notes = [f"{arch}, {SIDE} grey pixels, {CLASSES} classes, one thread; a set; computed from the time of each piece"]
    return Result("condense", ratios, rows, notes)


def _student(arch: str) -> Normalised:
    return build_student(arch, CLASSES, SIDE, 0)


def _batch(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    return normal((images, 3, SIDE, SIDE), "bench condense"), torch.arange(images) % CLASSES


def gradients(arch: str, count: int) -> list[torch.Tensor]:
    """Of the weights, on so many images."""
    net = _student(arch)
    images, labels = _batch(count)
    return list(torch.autograd.grad(functional.cross_entropy(net(images), labels), list(net.parameters())))


def matched(arch: str, count: int) -> torch.Tensor:
    """The gradient, of so many images, of how their gradients differ from others; by squares, the cheapest distance."""
    net = _student(arch)
    images, labels = _batch(count)
    loss = functional.cross_entropy(net(images.requires_grad_()), labels)
    own = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    return torch.autograd.grad(torch.stack([g.square().sum() for g in own]).sum(), images)[0]


def trained(arch: str, count: int) -> None:
    """A step of SGD on so many images."""
    net = _student(arch)
    images, labels = _batch(count)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.5)
    functional.cross_entropy(net(images), labels).backward()
    optimizer.step()
