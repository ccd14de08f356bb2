"""Class maps: the source's class names => labels 0..K-1 in a fixed order => the model's class ids.

A wrong map ruins a run in silence (FIELD.md 5), so nothing here guesses: a class that cannot be matched by name is an
error that says how to name it.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa

from d3hr_ray.config import fingerprint
from d3hr_ray.datasets.subsets import SUBSETS


@dataclass(frozen=True)
class ClassMap:
    """One entry per label: the source's name, the name people read, the wnid if it has one, the model's class id."""

    sources: tuple[str, ...]
    names: tuple[str, ...]
    wnids: tuple[str | None, ...]
    model_classes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def table(self) -> pa.Table:
        """The contract's classes.parquet."""
        return pa.table(
            {
                "label": pa.array(range(len(self)), pa.int32()),
                "name": pa.array(self.names, pa.string()),
                "wnid": pa.array(self.wnids, pa.string()),
                "model_class": pa.array(self.model_classes, pa.int32()),
            }
        )

    @property
    def checksum(self) -> str:
        """Changes when any class, their order or their ids do."""
        return fingerprint(self.table().to_pylist())


def folder_names(classes: pa.Table) -> list[str]:
    """classes.parquet => a safe folder name per label: the wnid, else the name without anything a path could abuse."""
    rows = classes.to_pylist()
    names = [row["wnid"] or re.sub(r"[^A-Za-z0-9_-]+", "_", row["name"])[:64].strip("_") for row in rows]
    doubles = len({n.lower() for n in names}) < len(names) or not all(names)
    return [f"{row['label']:04d}_{name}" for row, name in zip(rows, names, strict=True)] if doubles else names


def read_classes(values: Sequence[str]) -> tuple[str, ...]:
    """--classes as typed => class names in order: names as they are, one file of names, or one named subset."""
    if len(values) != 1:
        return tuple(values)
    if values[0] in SUBSETS:
        return SUBSETS[values[0]]
    path = Path(values[0]).expanduser()
    if not path.is_file():
        return tuple(values)
    names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if not names:
        raise ValueError(f"--classes {path}: the file names no class; write one per line")
    return names


def build_class_map(
    found: Sequence[str], wanted: Sequence[str], num_classes: int, model_names: Sequence[str] | None
) -> ClassMap:
    """Match the source's classes, those wanted (all if empty) and the model's.

    `wanted` entries may be written NAME=ID to say the model's class id. Raises ValueError naming what has no match.
    """
    asked = [_split_id(w) for w in wanted]
    sources = [_match(name, found) for name, _ in asked] if asked else _ordered(found)
    if len(set(sources)) < len(sources):
        raise ValueError("--classes names the same class twice, under two names")
    if len(sources) > num_classes:
        raise ValueError(
            f"--model has {num_classes} classes, fewer than the data's {len(sources)}; choose some with --classes, "
            "or train a model on this data with jobs/pretrain.py"
        )
    ids = [i for _, i in asked] or [None] * len(sources)
    resolved = [
        _model_class(s, sources, num_classes, model_names) if i is None else i
        for s, i in zip(sources, ids, strict=True)
    ]
    for source, model_class in zip(sources, resolved, strict=True):
        if not 0 <= model_class < num_classes:
            raise ValueError(f"--classes {source}={model_class}: the model's ids run from 0 to {num_classes - 1}")
    imagenet = num_classes == 1000 and model_names is None
    wnids = [
        _imagenet().wnids[i] if imagenet else (s if _is_wnid(s) else None)
        for s, i in zip(sources, resolved, strict=True)
    ]
    names = [_imagenet().names.get(w, s) if w else s for s, w in zip(sources, wnids, strict=True)]
    return ClassMap(tuple(sources), tuple(names), tuple(wnids), tuple(resolved))


def _ordered(found: Sequence[str]) -> list[str]:
    """Integers by value, anything else by name, as torchvision's ImageFolder sorts."""
    return sorted(found, key=int) if all(n.isdecimal() for n in found) else sorted(found)


def _split_id(value: str) -> tuple[str, int | None]:
    name, equals, number = value.rpartition("=")
    return (name, int(number)) if equals and number.isdecimal() else (value, None)


def _match(name: str, found: Sequence[str]) -> str:
    """A class as the user names it => as the source names it: the same text, or the same ImageNet class."""
    if name in found:
        return name
    index = _imagenet_index(name)
    same = [f for f in found if index is not None and _imagenet_index(f) == index]
    if len(same) == 1:
        return same[0]
    close = difflib.get_close_matches(name, found, 3) or sorted(found)[:3]
    known = f"; named subsets are {', '.join(SUBSETS)}" if name.isalnum() else ""
    raise ValueError(f"--classes {name}: the data has no such class; near it: {', '.join(close)}{known}")


def _model_class(source: str, sources: Sequence[str], num_classes: int, model_names: Sequence[str] | None) -> int:
    hint = f"write --classes {source}=ID with the model's class id, or train a model on this data with jobs/pretrain.py"
    if model_names is not None:
        if source in model_names:
            return list(model_names).index(source)
        raise ValueError(f"--model knows no class {source!r} (it knows {', '.join(model_names[:5])}, ...); {hint}")
    if num_classes == 1000:
        index = _imagenet_index(source)
        if index is None:
            raise ValueError(f"class {source!r} is no ImageNet wnid, name or number, and the model has those; {hint}")
        return index
    if source.isdecimal() and int(source) < num_classes:
        return int(source)
    if len(sources) == num_classes:
        return _ordered(sources).index(source)
    raise ValueError(f"class {source!r} cannot be matched: the model has {num_classes} classes without names; {hint}")


@dataclass(frozen=True)
class _ImageNet:
    wnids: tuple[str, ...]
    names: dict[str, str]
    lemmas: dict[str, int | None]


@cache
def _imagenet() -> _ImageNet:
    """ImageNet-1k's wnids in class order and their names, from timm."""
    from timm.data import ImageNetInfo  # imports torch and torchvision: only where ImageNet is meant

    info = ImageNetInfo("imagenet-1k")
    wnids = tuple(info.label_names())
    full = [info.label_name_to_description(w, detailed=False) for w in wnids]
    lemmas: dict[str, int | None] = {}
    for i, text in enumerate(full):
        for lemma in {text.casefold(), *(p.strip().casefold() for p in text.split(","))}:
            lemmas[lemma] = None if lemma in lemmas else i  # crane, the bird and the machine: no guess
    return _ImageNet(wnids, {w: t.split(",")[0] for w, t in zip(wnids, full, strict=True)}, lemmas)


def _is_wnid(name: str) -> bool:
    return re.fullmatch(r"n\d{8}", name) is not None


def _imagenet_index(name: str) -> int | None:
    if name.isdecimal():
        return int(name) if int(name) < 1000 else None
    if _is_wnid(name):
        return _imagenet().wnids.index(name) if name in _imagenet().wnids else None
    return _imagenet().lemmas.get(name.casefold().replace("_", " "))
