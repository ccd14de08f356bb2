"""A trial: one student, from scratch, on one set, under one protocol with one seed; its record, and tables of records.

Records are written once and whole, under a name made of all that decides the result: what is there is never repeated.
"""

import io
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from d3hr_ray.layout import EVALUATIONS, RECORDS, RESULTS
from d3hr_ray.models import students
from d3hr_ray.models.teachers import CARD, save_teacher
from d3hr_ray.numerics.seeds import digest
from d3hr_ray.sets import about_of, with_axes
from d3hr_ray.store import Store

SCRATCH = f"{EVALUATIONS}/.training"  # what is left of trials that are under way
CHECKPOINT_SECONDS = 60.0
NOTE_SECONDS = 2.0, 10.0  # between two notes of the epochs done: on disks, on object stores
WORDS = (
    "kind", "method", "search", "timestep", "ipc", "candidates", "components", "rank", "guidance", "inversion_guidance",
    "score", "fidelity", "settings", "config",
)  # fmt: skip
LOOKS = 8  # evaluations along the way, for a scheduler that stops the worst
SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("method", pa.string()),
        ("search", pa.string()),
        ("timestep", pa.int32()),
        ("ipc", pa.int32()),
        ("arch", pa.string()),
        ("protocol", pa.string()),
        ("protocol_version", pa.string()),
        ("seed", pa.int64()),
        ("set_seed", pa.int64()),
        ("top1_last", pa.float64()),
        ("top1_best", pa.float64()),
        ("best_epoch", pa.int32()),
        ("top5_last", pa.float64()),
        ("top5_best", pa.float64()),  # of the epoch of top1_best; null in records of older versions
        ("teacher", pa.string()),
        ("teacher_top1", pa.float64()),
        ("set_hash", pa.string()),
        ("seconds", pa.float64()),
        ("images", pa.int64()),
        ("images_per_second", pa.float64()),
        ("candidates", pa.int64()),
        ("components", pa.string()),
        ("rank", pa.int32()),
        ("guidance", pa.float64()),
        ("inversion_guidance", pa.float64()),
        ("lr", pa.float64()),
        ("score", pa.float64()),
        ("fidelity", pa.string()),
        ("kind", pa.string()),  # what made the set, the same at every timestep and IPC
        ("settings", pa.string()),  # fingerprint of `config`; of the images, for sets that others made
        ("config", pa.string()),  # JSON: all that made the set but its seed, timestep and IPC
        ("data", pa.string()),
        ("test", pa.string()),
        ("per_class", pa.list_(pa.float64())),
        ("key", pa.string()),
    ]
)


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

    def is_trained(self, store: Store) -> bool:
        """Whether its record is in the output folder, and its network where it is to be kept."""
        return store.exists(self.record) and (not self.keep or Store(self.keep).exists(CARD))

    @property
    def record(self) -> str:
        """The trial's file within the output folder."""
        return f"{RECORDS}/{self.key}.json"

    @property
    def checkpoint(self) -> str:
        """Where a long trial is saved as it goes."""
        return f"{SCRATCH}/{self.key}.pt"

    @property
    def note(self) -> str:
        """Where it says how many epochs are done."""
        return f"{SCRATCH}/{self.key}.json"


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
    identity += [found.weighting] if protocol.weighted else []
    words = {name: found.about.get(name) for name in WORDS}
    words["kind"] = words["kind"] or found.name
    if words["method"] is None:  # two folders of one name, that others made, never share a mean
        words["settings"] = found.set_hash[:8]
    about = {"set": found.name, **words, "set_seed": found.set_seed, "set_hash": found.set_hash}
    about |= {"data": tested[0], "test": tested[1]}
    about |= {"teacher": teacher if soft else None, "images": len(found.images)}
    return Trial(
        set_key=found.key,
        arch=arch,
        protocol=protocol,
        seed=seed,
        teachers=teachers if soft else (),
        key=fingerprint(identity),
        about=tuple(about.items()),
        keep=keep,
    )


def untrained(store: Store, trials: Iterable[Trial]) -> list[Trial]:
    """The trials that are not trained yet, one of each key: equal sets of two settings are trained on once."""
    return [t for t in {t.key: t for t in trials}.values() if not t.is_trained(store)]


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
    """Train, test and record."""
    about, leads = dict(trial.about), share is None or share.rank == 0
    seed = student_seed(trial.seed, about["set_seed"], trial.arch)
    hooks = Hooks(lambda: load_state(store, trial, device), Saver(store, trial, leads))
    if report:
        hooks = replace(hooks, report=report, looks=LOOKS)
    outcome = train_student(trial.arch, trial.protocol, images, test, teacher, seed, device, hooks, share)
    row = _row(trial, outcome) | {"teacher_top1": teacher_top1 if trial.teachers else None}
    if leads:
        if trial.keep:
            kept, facts = Store(trial.keep), {"top1": row["top1_last"]}
            made = outcome.weights, facts, outcome.norm
            save_teacher(kept, trial.arch, images.classes, images.side, *made)
        store.write_json(trial.record, row)
        for left in (trial.checkpoint, trial.note):
            store.delete(left)
    return row


def student_seed(seed: int, set_seed: int, arch: str) -> int:
    """Of a student's draws, by its repeat, the seed of its set and its architecture: repeats differ, and so do sets."""
    return digest(repr(("student", seed, set_seed, arch)).encode())


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
    return describe(trial) | {
        "top1_last": last.top1,
        "top1_best": outcome.best_top1,
        "best_epoch": outcome.best_epoch,
        "top5_last": last.top5,
        "top5_best": outcome.best_top5,
        "seconds": outcome.seconds,
        "images_per_second": outcome.images_per_second,
        "normalisation": as_dict(outcome.norm),
        "per_class": last.per_class.tolist(),
        "confusion": None if last.confusion is None else last.confusion.tolist(),
    }


class Saver:
    """Saves a trial in training every minute, so that a killed worker loses no more than that; notes how far it is."""

    def __init__(self, store: Store, trial: Trial, leads: bool, every: float = CHECKPOINT_SECONDS) -> None:
        self.store, self.trial, self.leads, self.every = store, trial, leads, every
        self.saved = self.noted = time.monotonic()

    def __call__(self, state: Callable[[], State]) -> None:
        """Called after every epoch."""
        if self.leads and time.monotonic() - self.noted >= note_seconds(self.store):
            self.store.write_json(self.trial.note, {"epochs": state().epoch})
            self.noted = time.monotonic()
        if self.leads and time.monotonic() - self.saved >= self.every:
            data = io.BytesIO()
            torch.save(vars(state()), data)
            self.store.write_bytes(self.trial.checkpoint, pa.py_buffer(data.getbuffer()))
            self.saved = time.monotonic()


def note_seconds(store: Store) -> float:
    """Between two notes of a trial, or two looks at them."""
    return NOTE_SECONDS["://" in store.uri]


def load_state(store: Store, trial: Trial, device: str) -> State | None:
    """The last checkpoint of a trial, if there is one."""
    if not store.exists(trial.checkpoint):
        return None
    data = io.BytesIO(store.read_bytes(trial.checkpoint))
    return State(**torch.load(data, map_location=device, weights_only=True))


def records(store: Store) -> list[dict[str, Any]]:
    """Every trial's record of a folder, in the order of their names; what older ones lack is None."""
    names = [n for n in store.list(RECORDS) if n.endswith(".json")]
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda n: store.read_json(f"{RECORDS}/{n}"), names)
        rows = [dict.fromkeys(SCHEMA.names) | record for record in found]
    return [row | {"kind": row["kind"] or _kind(row)} for row in rows]


def _kind(row: dict[str, Any]) -> str:
    """The kind of a set whose record an older version wrote: by its config, or its whole name if it has none."""
    if not row["config"]:
        return str(row["set"])
    plain = with_axes(json.loads(row["config"]), row["timestep"], row["ipc"], row["set_seed"])
    return str(about_of({"config": plain})["kind"])


def collect(store: Store) -> list[dict[str, Any]]:
    """Write evaluations/results.parquet from all records and return them, sorted by set, arch, protocol and seeds."""
    rows = records(store)
    rows.sort(
        key=lambda r: (str(r["set"]), r["ipc"] or 0, r["arch"], r["protocol"], r["set_seed"], r["seed"], r["key"])
    )
    if rows:
        store.write_table(RESULTS, pa.Table.from_pylist(rows, SCHEMA))
    return rows


def rows_of(store: Store, trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """The rows of some trials, after collecting them all. Where settings made equal sets, each has its row."""
    made = {row["key"]: row for row in collect(store)}
    return [made[t.key] | dict(t.about) for t in trials if t.key in made]


def stopped_rows(store: Store, marks: str, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Rows of the trials that were stopped once and that no other sweep has finished since.

    Each has the last known top-1, and its epoch (None where an older version stopped it). As in `rows_of`, equal sets
    of two settings have a row each.
    """
    there = set(store.list(marks))
    keys = {t.key for t in untrained(store, [t for t in trials if f"{t.key}.json" in there])}
    found = {key: store.read_json(f"{marks}/{key}.json") for key in keys}
    return [
        describe(t) | {"top1_last": found[t.key]["top1"], "epoch": found[t.key].get("epoch")}
        for t in trials
        if t.key in keys
    ]
