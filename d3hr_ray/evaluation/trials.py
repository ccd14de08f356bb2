"""A trial: one student, from scratch, on one set, under one protocol with one seed. Its record is a file of its own.

Records are written once and whole, under a name made of all that decides the result: what is there is never repeated.
"""

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from d3hr_ray.config import as_dict, fingerprint
from d3hr_ray.datasets.images import Images
from d3hr_ray.evaluation.protocols import Protocol
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.evaluation.training import Hooks, Outcome, Share, State, train_student
from d3hr_ray.models import students
from d3hr_ray.models.teachers import save_teacher
from d3hr_ray.numerics.seeds import digest
from d3hr_ray.store import Store

CONFUSION_CLASSES = 100  # a larger confusion is not kept: 1,000 classes would be 8 MB a trial
CHECKPOINT_SECONDS = 60.0
WORDS = (
    "kind", "method", "search", "timestep", "ipc", "candidates", "components", "rank", "guidance", "inversion_guidance",
    "score", "fidelity", "settings", "config",
)  # fmt: skip
LOOKS = 8  # evaluations along the way, for a scheduler that stops the worst


@dataclass(frozen=True)
class Trial:
    """`set_key` names the set among those that workers hold; `teachers` is empty for hard labels."""

    set_key: str
    arch: str
    protocol: Protocol
    seed: int
    teachers: tuple[str, ...]
    key: str
    about: tuple[tuple[str, Any], ...]
    keep: str = ""  # folder to save the trained network in, as a teacher

    @property
    def record(self) -> str:
        """The trial's file within the output folder."""
        return f"evaluations/runs/{self.key}.json"

    @property
    def checkpoint(self) -> str:
        """Where a long trial is saved as it goes."""
        return f"evaluations/.training/{self.key}.pt"


def make_trial(
    found: DistilledSet,
    arch: str,
    protocol: Protocol,
    seed: int,
    teachers: tuple[str, ...],
    teacher: str | None,
    tested: tuple[str, str],
    keep: str = "",
) -> Trial:
    """A trial with its identity; `teacher` is the teachers' id with hashes, `tested` the test images' URI, digest."""
    soft = protocol.labels == "soft"
    network = students.identity(arch, found.images.side)
    identity = [found.set_hash, found.set_seed, network, as_dict(protocol), seed, teacher if soft else None, tested[1]]
    words = {name: found.about.get(name) for name in WORDS}
    words["kind"] = words["kind"] or found.name
    if words["method"] is None:  # two folders of one name, that others made, never share a mean
        words["settings"] = found.set_hash[:8]
    about = {"set": found.name, **words, "set_seed": found.set_seed, "set_hash": found.set_hash}
    about |= {"data": tested[0], "test": tested[1]}
    about |= {"teacher": teacher if soft else None, "images": len(found.images)}
    return Trial(
        set_key=found.set_hash,
        arch=arch,
        protocol=protocol,
        seed=seed,
        teachers=teachers if soft else (),
        key=fingerprint(identity),
        about=tuple(about.items()),
        keep=keep,
    )


def untrained(store: Store, trials: Iterable[Trial]) -> list[Trial]:
    """The trials that have no record yet, one of each key: equal sets of two settings are trained on once."""
    return [t for t in {t.key: t for t in trials}.values() if not store.exists(t.record)]


def run_trial(
    store: Store,
    trial: Trial,
    images: Images,
    test: Images,
    teacher: nn.Module | None,
    teacher_top1: float | None,
    device: str,
    share: Share | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train, test and record. The seed of a draw is (repeat, set seed, arch): repeats differ, and so do sets."""
    about, leads = dict(trial.about), share is None or share.rank == 0
    seed = digest(repr(("student", trial.seed, about["set_seed"], trial.arch)).encode())
    hooks = Hooks(lambda: load_state(store, trial, device), Saver(store, trial, leads))
    if report:
        hooks = replace(hooks, report=report, looks=LOOKS)
    outcome = train_student(trial.arch, trial.protocol, images, test, teacher, seed, device, hooks, share)
    row = _row(trial, outcome) | {"teacher_top1": teacher_top1 if trial.teachers else None}
    if leads:
        if trial.keep:
            facts = {"top1": row["top1_last"]}
            save_teacher(Store(trial.keep), trial.arch, images.classes, images.side, outcome.weights, facts)
        store.write_json(trial.record, row)
        store.delete(trial.checkpoint)
    return row


def describe(trial: Trial) -> dict[str, Any]:
    """What a row says of a trial before its outcome."""
    protocol = trial.protocol
    return dict(trial.about) | {
        "arch": trial.arch,
        "protocol": protocol.name,
        "protocol_version": protocol.version,
        "seed": trial.seed,
        "lr": protocol.lr,
        "recipe": as_dict(protocol),
        "key": trial.key,
    }


def _row(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    last = outcome.last
    small = len(last.confusion) <= CONFUSION_CLASSES
    return describe(trial) | {
        "top1_last": last.top1,
        "top1_best": outcome.best_top1,
        "best_epoch": outcome.best_epoch,
        "top5_last": last.top5,
        "top5_best": outcome.best_top5,
        "seconds": outcome.seconds,
        "images_per_second": outcome.images_per_second,
        "per_class": [float(c) for c in last.confusion.diagonal() / last.confusion.sum(1).clip(min=1)],
        "confusion": last.confusion.tolist() if small else None,
    }


class Saver:
    """Saves a trial in training every minute, so that a killed worker loses no more than that."""

    def __init__(self, store: Store, trial: Trial, leads: bool, every: float = CHECKPOINT_SECONDS) -> None:
        self.store, self.trial, self.leads, self.every = store, trial, leads, every
        self.saved = time.monotonic()

    def __call__(self, state: Callable[[], State]) -> None:
        """Called after every epoch."""
        if self.leads and time.monotonic() - self.saved >= self.every:
            data = io.BytesIO()
            torch.save(vars(state()), data)
            self.store.write_bytes(self.trial.checkpoint, pa.py_buffer(data.getbuffer()))
            self.saved = time.monotonic()


def load_state(store: Store, trial: Trial, device: str) -> State | None:
    """The last checkpoint of a trial, if there is one."""
    if not store.exists(trial.checkpoint):
        return None
    data = io.BytesIO(store.read_bytes(trial.checkpoint))
    return State(**torch.load(data, map_location=device, weights_only=True))
