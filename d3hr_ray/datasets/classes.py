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
    unsafe = len({n.lower() for n in names}) < len(names) or not all(names)
    # Loaders number folders in sorted order: a prefix makes that the label order. Wnids stay, as everyone knows theirs.
    unsorted = names != sorted(names) and not all(row["wnid"] for row in rows)
    prefixed = [f"{row['label']:04d}_{name}" for row, name in zip(rows, names, strict=True)]
    return prefixed if unsafe or unsorted else names


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
    sources = _match_all([name for name, _ in asked], found) if asked else _ordered(found)
    if len(set(sources)) < len(sources):
        raise ValueError("--classes names the same class twice, under two names")
    if len(sources) > num_classes:
        raise ValueError(
            f"--model has {num_classes} classes, fewer than the data's {len(sources)}; choose some with --classes, "
            "or train a model on this data with jobs/pretrain.py"
        )
    ids = [i for _, i in asked] or [None] * len(sources)
    matched = _model_classes([s for s, i in zip(sources, ids, strict=True) if i is None], num_classes, model_names)
    resolved = [matched[s] if i is None else i for s, i in zip(sources, ids, strict=True)]
    if doubles := [c for c in set(matched.values()) if list(matched.values()).count(c) > 1]:
        same = ", ".join(s for s, c in matched.items() if c == doubles[0])
        raise ValueError(
            f"classes {same} are one class of the model (id {doubles[0]}); join them, or choose with --classes"
        )
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


def _match_all(names: Sequence[str], found: Sequence[str]) -> list[str]:
    """Classes as the user names them => as the source names them: the same text, or the same ImageNet class."""
    exact = set(found)
    if all(name in exact for name in names):
        return list(names)
    by_index: dict[int | None, list[str]] = {}
    for f in found:
        by_index.setdefault(_imagenet_index(f), []).append(f)
    matched = []
    for name in names:
        index = _imagenet_index(name)
        same = [name] if name in exact else (by_index.get(index, []) if index is not None else [])
        if len(same) != 1:
            close = difflib.get_close_matches(name, found, 3) or sorted(found)[:3]
            known = f"; named subsets are {', '.join(SUBSETS)}" if name.isalnum() else ""
            raise ValueError(f"--classes {name}: the data has no such class; near it: {', '.join(close)}{known}")
        matched += same
    return matched


def _model_classes(sources: Sequence[str], num_classes: int, model_names: Sequence[str] | None) -> dict[str, int]:
    """The model's class id of each source class, by one rule for all of them. Raises ValueError without a match."""
    hint = "write --classes NAME=ID ... with the model's class ids, or train a model on this data with jobs/pretrain.py"
    if model_names is not None:
        index = {name: i for i, name in enumerate(model_names)}
        if unknown := [s for s in sources if s not in index]:
            raise ValueError(
                f"--model knows no class {unknown[0]!r} (it knows {', '.join(model_names[:5])}, ...); {hint}"
            )
        return {s: index[s] for s in sources}
    if num_classes == 1000:
        indices = {s: _imagenet_index(s) for s in sources}
        if unknown := [s for s, i in indices.items() if i is None]:
            raise ValueError(
                f"class {unknown[0]!r} is no ImageNet wnid, name or number, and the model has those; {hint}"
            )
        return {s: i for s, i in indices.items() if i is not None}
    if all(s.isdecimal() and int(s) < num_classes for s in sources):
        return {s: int(s) for s in sources}
    if len(sources) == num_classes:
        return {s: i for i, s in enumerate(_ordered(sources))}
    raise ValueError(
        f"class {sources[0]!r} cannot be matched: the model has {num_classes} classes without names; {hint}"
    )


def imagenet_wnids() -> tuple[str, ...]:
    """ImageNet-1k's wnids, in the class order that its pretrained models share."""
    return _imagenet().wnids


@dataclass(frozen=True)
class _ImageNet:
    wnids: tuple[str, ...]
    names: dict[str, str]
    lemmas: dict[str, int | None]
    index: dict[str, int]


@cache
def _imagenet() -> _ImageNet:
    """ImageNet-1k's wnids in class order and their names, from timm."""
    from timm.data import ImageNetInfo  # imports torch and torchvision: only where ImageNet is meant

    info = ImageNetInfo("imagenet-1k")
    wnids = tuple(info.label_names())
    full = [info.label_name_to_description(w, detailed=False) for w in wnids]
    lemmas: dict[str, int | None] = {}
    for i, text in enumerate(full):
        for lemma in {p.strip().casefold() for p in text.split(",")}:
            lemmas[lemma] = None if lemma in lemmas else i  # cardigan, the dog and the garment: no guess
    whole = [text.casefold() for text in full]
    lemmas |= {text: i if whole.count(text) == 1 else None for i, text in enumerate(whole)}  # a full name outranks
    return _ImageNet(
        wnids,
        {w: t.split(",")[0] for w, t in zip(wnids, full, strict=True)},
        lemmas,
        {w: i for i, w in enumerate(wnids)},
    )


def _is_wnid(name: str) -> bool:
    return re.fullmatch(r"n\d{8}", name) is not None


def _imagenet_index(name: str) -> int | None:
    if name.isdecimal():
        return int(name) if int(name) < 1000 else None
    if _is_wnid(name):
        return _imagenet().index.get(name)
    return _imagenet().lemmas.get(name.casefold().replace("_", " "))
