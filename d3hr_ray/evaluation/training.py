"""Train one student from scratch and test it. Everything is in memory, on the device, in batches (no DataLoader).

Every draw is keyed by (seed, step), so a run resumed from a checkpoint equals an undisturbed one, bit for bit on a CPU.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from d3hr_ray.datasets.images import Images
from d3hr_ray.datasets.normalisation import IMAGENET, Normalisation, is_grey, normalisation_of
from d3hr_ray.evaluation.augment import augment, mix
from d3hr_ray.evaluation.losses import hard_loss, soft_loss
from d3hr_ray.evaluation.protocols import Protocol
from d3hr_ray.models.classifiers import Score, evaluate
from d3hr_ray.models.families import siamese
from d3hr_ray.models.memory import keep_freed_memory
from d3hr_ray.models.students import build_on_meta, build_student
from d3hr_ray.numerics.seeds import generator


@dataclass(frozen=True)
class Outcome:
    """What a training run came to. `best` is over the evaluations that the protocol looks at.

    `best_top5` is that of the best epoch, None if it comes from a checkpoint of an older version.
    """

    last: Score
    best_top1: float
    best_top5: float | None
    best_epoch: int
    seconds: float
    images_per_second: float
    weights: dict[str, torch.Tensor]
    norm: Normalisation = IMAGENET


@dataclass(frozen=True)
class Share:
    """This process's part of every batch, when several train one student; `wrap` joins their gradients."""

    rank: int = 0
    count: int = 1
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module


@dataclass
class State:
    """What a checkpoint holds: epochs done, the best so far, seconds spent, and the weights of net and optimizer."""

    epoch: int = 0
    best_top1: float = 0.0
    best_top5: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0
    net: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hooks:
    """What happens beside the training: after every epoch, and at every evaluation.

    `looks` evaluations are spread over the training for `report` alone; they change no result.
    """

    restore: Callable[[], State | None] = lambda: None
    save: Callable[[Callable[[], State]], None] = lambda state: None  # after every epoch
    report: Callable[[dict[str, float]], None] = lambda metrics: None  # at every look
    looks: int = 0


def check_batches(images: int, protocol: Protocol, arch: str) -> None:
    """Raise ValueError for batches of one image under batch norm: its output would be the same for every image."""
    if min(images, protocol.batch_size) > 1:
        return
    net = build_on_meta(arch, 10, 224)
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules()):
        raise ValueError(
            f"--arch {arch} has batch norm and would train on batches of one image ({images} images, batch "
            f"{protocol.batch_size}); take a set of more images, a larger --batch-size, or a student without it, such "
            "as convnet-d3"
        )


def steps_per_epoch(images: int, batch: int) -> int:
    """A leftover of a single image joins the batch before it: batch norm could not train on it."""
    full, left = divmod(images, batch)
    return max(1, full + (left > 1))


def batches(images: int, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """An epoch's rows, shuffled, in batches; every row once."""
    order = generator("epoch", seed, epoch).permutation(images)
    cuts = np.arange(1, steps_per_epoch(images, batch)) * batch
    return np.split(order, cuts)


def epochs(protocol: Protocol, images: int) -> int:
    """Epochs of a run; a protocol that counts steps is rounded up to whole epochs."""
    if protocol.steps is None:
        return protocol.epochs
    return -(-protocol.steps // steps_per_epoch(images, min(images, protocol.batch_size)))


def train_student(
    arch: str,
    protocol: Protocol,
    train: Images,
    test: Images,
    teacher: nn.Module | None,
    seed: int,
    device: str = "cpu",
    hooks: Hooks | None = None,
    share: Share | None = None,
) -> Outcome:
    """Train from scratch under a protocol and test on `test`. `teacher`: images => logits over the same classes.

    Raises ValueError if a soft protocol has no teacher, or for a precision that the device has not got, RunError if the
    loss is not finite.
    """
    if protocol.labels == "soft" and teacher is None:
        raise ValueError(f"--protocol {protocol.name} trains on a teacher's labels; give --teacher")
    if protocol.precision == "bfloat16" and device != "cpu" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(f"--precision bfloat16: {torch.cuda.get_device_name(device)} has none; leave it out")
    if device == "cpu":
        keep_freed_memory()
    hooks, share = hooks or Hooks(), share or Share()
    smallest = min(map(len, batches(len(train), min(len(train), protocol.batch_size), seed, 0)))
    if smallest < share.count:
        raise ValueError(f"--workers-per-student {share.count}: a batch has {smallest} images; give fewer workers")
    norm = norm_of(protocol, test)
    run = _Run(arch, protocol, train, teacher, seed, torch.device(device), share, norm)
    state = hooks.restore() or State()
    if state.epoch:
        run.net.load_state_dict(state.net)
        run.optimizer.load_state_dict(state.optimizer)
    total, started = epochs(protocol, len(train)), time.perf_counter() - state.seconds
    first_look = int(total * protocol.best_after + 1e-6)  # 300 (1 - 99 / 300) is 200.99...
    last = None
    for epoch in range(state.epoch, total):
        run.epoch(epoch, total)
        state.epoch, state.seconds = epoch + 1, time.perf_counter() - started
        due = epoch >= first_look and (total - 1 - epoch) % protocol.evaluate_every == 0
        look, before = ((e * hooks.looks) // total for e in (epoch + 1, epoch))
        if due or epoch + 1 == total or look > before:
            last = evaluate(run.net, test, device)
        if last and (due or epoch + 1 == total) and last.top1 > state.best_top1:
            state.best_top1, state.best_top5, state.best_epoch = last.top1, last.top5, epoch + 1
        hooks.save(lambda: _full(state, run))
        if last and look > before:
            hooks.report({"top1": last.top1, "look": look, "epoch": epoch + 1})
    last = last or evaluate(run.net, test, device)
    seconds = time.perf_counter() - started
    rate = total * len(train) / max(state.seconds, 1e-9)
    weights = {name: value.detach().cpu() for name, value in run.net.state_dict().items()}
    if not state.best_epoch:  # never above 0: the last is as good as any
        state.best_top1, state.best_top5, state.best_epoch = last.top1, last.top5, total
    return Outcome(last, state.best_top1, state.best_top5, state.best_epoch, seconds, rate, weights, norm)


def norm_of(protocol: Protocol, images: Images) -> Normalisation:
    """What a student takes pixels for: ImageNet's, or the data's own, where the protocol says so."""
    if protocol.input == "imagenet":
        return IMAGENET
    return normalisation_of(images.classes, is_grey(images.pixels))


def _full(state: State, run: "_Run") -> State:
    state.net, state.optimizer = run.net.state_dict(), run.optimizer.state_dict()
    return state


class _Run:
    """A student in training: its images on the device, its optimizer, and one epoch of steps."""

    def __init__(
        self,
        arch: str,
        protocol: Protocol,
        train: Images,
        teacher: nn.Module | None,
        seed: int,
        device: torch.device,
        share: Share,
        norm: Normalisation,
    ) -> None:
        self.protocol, self.seed, self.device, self.share, self.teacher = protocol, seed, device, share, teacher
        # Copied by numpy: Ray's objects are read-only, of which torch warns.
        self.pixels = torch.from_numpy(np.array(train.pixels.transpose(0, 3, 1, 2), order="C")).to(device)
        targets = functional.one_hot(torch.tensor(train.labels), len(train.classes)).float()
        if protocol.weighted:  # a column more, which is mixed as the labels are
            targets = torch.cat([targets, _weights(train)[:, None]], 1)
        self.targets = targets.to(device)
        self.net = build_student(arch, len(train.classes), train.side, _start(seed), norm).to(device)
        self.module = share.wrap(self.net)
        self.optimizer = _optimizer(self.net, protocol)
        self.batch = min(len(train), protocol.batch_size)

    def epoch(self, epoch: int, total: int) -> None:
        self.module.train()
        if self.protocol.rate == "drop" and epoch == drop_epoch(total):
            self.optimizer.state.clear()
        rows = batches(len(self.pixels), self.batch, self.seed, epoch)
        for i, chosen in enumerate(rows):
            progress = epoch if self.protocol.steps is None else epoch + i / len(rows)
            done = (epoch + (i + 1) / len(rows)) / total
            for group in self.optimizer.param_groups:
                group["lr"] = self.protocol.lr * rate(self.protocol, progress / total, done)
            self._step(torch.from_numpy(chosen), generator("step", self.seed, epoch, i))

    def _step(self, rows: torch.Tensor, draw: np.random.Generator) -> None:
        """One step. Workers that share a student augment the whole batch alike, and each trains on its stripe."""
        torch.manual_seed(int(draw.integers(2**63)))  # dropout and stochastic depth draw from torch's own generator
        rows = rows.to(self.device)
        images, targets = self.pixels[rows].float() / 127.5 - 1, self.targets[rows]
        images = augment(images, self.protocol.augment, draw)
        images, targets = mix(images, targets, self.protocol.augment, draw)
        if families := self.protocol.augment.families:
            images = self.net.restore(siamese(self.net.normalise(images), families, draw))
        stripe = slice(self.share.rank, None, self.share.count)
        images, targets, whole = images[stripe], targets[stripe], targets
        if self.protocol.double_norm:
            with torch.no_grad():
                self._logits(images)
        # Gradients are averaged over workers: a smaller stripe weighs less, so that no image's weight depends on it.
        loss = self._loss(images, targets) * (self._mass(targets) * self.share.count / self._mass(whole))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def _mass(self, targets: torch.Tensor) -> int | torch.Tensor:
        """What some images count together: their number, or the sum of their weights."""
        return targets[:, -1].sum() if self.protocol.weighted else len(targets)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """The student's, float32, by a forward pass (and so a backward one) in the protocol's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.protocol.precision == "bfloat16"):
            logits: torch.Tensor = self.module(images)
        return logits.float()

    def _loss(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self._logits(images)
        labels, weights = (targets[:, :-1], targets[:, -1]) if self.protocol.weighted else (targets, None)
        if self.protocol.labels == "hard":
            return hard_loss(logits, labels, weights)
        assert self.teacher is not None
        with torch.no_grad():
            taught = self.teacher(images)
        return soft_loss(logits, taught, self.protocol.temperature, weights)


def _weights(train: Images) -> torch.Tensor:
    """What each image counts, (N,) float32."""
    return torch.ones(len(train)) if train.weights is None else torch.from_numpy(np.array(train.weights, np.float32))


def _start(seed: int) -> int:
    """The seed of the first weights."""
    return int(generator("weights", seed).integers(2**63))


def _optimizer(net: nn.Module, protocol: Protocol) -> torch.optim.Optimizer:
    """Weight decay acts on weights, not on biases, norms and embeddings of places, as in D3HR's and RDED's code, or on
    all as in dc and dsa."""
    weights, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, p in net.named_parameters():
        (weights if "weight" in name and p.ndim >= 2 else others).append(p)
    of_others = protocol.weight_decay if protocol.decay == "all" else 0.0
    groups = [{"params": weights, "weight_decay": protocol.weight_decay}, {"params": others, "weight_decay": of_others}]
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(groups, protocol.lr, momentum=0.9)
    return torch.optim.AdamW(groups, protocol.lr, betas=(0.9, 0.999))


def drop_epoch(total: int) -> int:
    """The first epoch, from 0, after a drop: of E + 1 in all the rate falls when epoch E // 2 + 1 is over."""
    return (total - 1) // 2 + 2


def rate(protocol: Protocol, progress: float, done: float) -> float:
    """The share of the peak learning rate at `progress` in [0, 1) of the training; `done` counts the step as well.

    half-cosine is the authors' 0.5 (1 + cos(pi progress / 2)), which ends at a half.
    """
    warm = min(1.0, done / protocol.warmup) if protocol.warmup else 1.0
    if protocol.rate == "drop":
        return warm * (0.1 if progress >= drop_epoch(protocol.epochs) / protocol.epochs else 1.0)
    if protocol.rate == "steps":
        return warm * 0.2 ** ((progress >= 2 / 3) + (progress >= 5 / 6))
    if protocol.rate == "floored-steps":
        whole = protocol.epochs
        return warm * 0.2 ** sum(progress >= whole * share // 6 / whole for share in (4, 5))
    bend = progress / 2 if protocol.rate == "half-cosine" else progress
    return float(warm * 0.5 * (1 + np.cos(np.pi * bend)))
