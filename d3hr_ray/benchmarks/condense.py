"""bench condense: what DatasetCondensation's own loops cost on this machine, computed from three timed pieces.

Its main.py (Zhao et al., ICLR 2021, commit 0061269) draws 1,001 networks. Each goes through `outer` rounds: gradients
of 256 real images of every class, and of the class's synthetic ones, which are moved to match; between rounds the
network trains on the synthetic images for `inner` epochs. The pieces are timed on Fashion-MNIST's size, with a network
of torch's layers alone, and multiplied by their number. No image is condensed here.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch.nn import functional

from d3hr_ray.benchmarks.measure import Result, in_turns, in_turns_apart
from d3hr_ray.benchmarks.train import CLASSES, plain_student
from d3hr_ray.datasets.normalisation import GREY
from d3hr_ray.models.students import Normalised
from d3hr_ray.numerics.seeds import normal

SIDE = 28
NETWORKS, REAL, BATCH = 1001, 256, 256
LOOPS = {1: (1, 1), 10: (10, 50), 50: (50, 10)}  # of IPC: outer rounds, and inner epochs between two of them


def run(quick: bool) -> Result:
    """Measure; `quick` is for tests: a narrow network, IPC 1, in this process."""
    arch = "convnet-d3-w8" if quick else "convnet-d3"
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for ipc in list(LOOPS)[: 1 if quick else None]:
        pieces: dict[str, Callable[[], object]] = {
            "real": partial(gradients, arch, REAL),
            "synthetic": partial(matched, arch, ipc),
            "train": partial(trained, arch, min(CLASSES * ipc, BATCH)),
        }
        taken = in_turns(pieces, 1) if quick else in_turns_apart(pieces, 3)
        hours = {name: seconds / 3600 for name, seconds in parts(ipc, {k: min(s) for k, s in taken.items()}).items()}
        rows.append({"IPC": ipc, **{f"{k} (CPU-hours)": v for k, v in hours.items()}, "all": sum(hours.values())})
        ratios[f"cpu_hours_ipc{ipc}"] = sum(hours.values())
    notes = [
        f"{arch}, {SIDE} grey pixels, {CLASSES} classes, one thread; a set, by the fastest of three turns",
        "not counted: its 60 students of evaluation, drawing real images, the DataLoader",
    ]
    return Result("condense", ratios, rows, notes)


def parts(ipc: int, seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of the pieces `real`, `synthetic` and `train` (of one step) => those of a whole set, by what is done."""
    (outer, inner), images = LOOPS[ipc], CLASSES * ipc
    return {
        "real images": NETWORKS * outer * CLASSES * seconds["real"],
        "synthetic images": NETWORKS * outer * CLASSES * seconds["synthetic"],
        "networks": NETWORKS * (outer - 1) * inner * max(1.0, images / BATCH) * seconds["train"],
    }


@cache
def _student(arch: str) -> Normalised:
    return plain_student(arch, SIDE, GREY)


@cache
def _batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return normal((count, 1, SIDE, SIDE), "bench condense"), torch.arange(count) % CLASSES


def gradients(arch: str, count: int) -> tuple[torch.Tensor, ...]:
    """Of the weights, on so many images."""
    net = _student(arch)
    images, labels = _batch(count)
    return torch.autograd.grad(functional.cross_entropy(net(images), labels), list(net.parameters()))


def matched(arch: str, count: int) -> torch.Tensor | None:
    """The gradient, of so many images, of how their gradients differ from others; by squares, the cheapest distance."""
    net = _student(arch)
    images, labels = _batch(count)
    images = images.clone().requires_grad_()
    loss = functional.cross_entropy(net(images), labels)
    own = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    torch.stack([g.square().sum() for g in own]).sum().backward()
    return images.grad


def trained(arch: str, count: int) -> None:
    """A step of SGD on so many images."""
    net = _student(arch)
    images, labels = _batch(count)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.5)
    optimizer.zero_grad()
    functional.cross_entropy(net(images), labels).backward()
    optimizer.step()
