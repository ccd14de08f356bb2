"""Class maps: the source's class names => labels 0..K-1 in a fixed order => the model's class ids.

A wrong map ruins a run in silence (LINs-lab/RDED issues 3, 4, 6), so nothing here guesses: a class that cannot be
matched by name, or whose name fits two, is an error that says how to name it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from d3hr_ray.config import fingerprint
from d3hr_ray.datasets.imagenet import CLASSES, imagenet, is_wnid
from d3hr_ray.datasets.matching import as_folder, given_ids, match_sources, model_ids, ordered, split_id
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


def names_and_wnids(classes: pa.Table) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """classes.parquet => what its classes are called, and their wnids, if all have one."""
    wnids = tuple(classes["wnid"].to_pylist())
    return tuple(classes["name"].to_pylist()), wnids if all(wnids) else None


def folder_names(classes: pa.Table) -> list[str]:
    """classes.parquet => a safe folder name per label: the wnid, else the name without anything a path could abuse."""
    rows = classes.to_pylist()
    names = [row["wnid"] or as_folder(row["name"]) for row in rows]
    unsafe = len({n.lower() for n in names}) < len(names) or not all(names)
    # Loaders number folders in sorted order: a prefix makes that the label order. Wnids stay, as everyone knows theirs.
    unsorted = names != sorted(names) and not all(row["wnid"] for row in rows)
    digits = max(4, len(str(len(rows) - 1)))
    prefixed = [f"{row['label']:0{digits}d}_{name}" for row, name in zip(rows, names, strict=True)]
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
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--classes {path}: not UTF-8 ({error}); save it so") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise ValueError(f"--classes {path}: the file names no class; write one per line")
    return names


def build_class_map(
    found: Sequence[str],
    wanted: Sequence[str],
    num_classes: int,
    model_names: Sequence[str] | None,
    given: Sequence[str] = (),
) -> ClassMap:
    """Match the source's classes, those wanted (all if empty) and the model's.

    Entries of `wanted` may be written NAME=ID to say the model's class id, unless a class has that very name. Entries
    of `given`, all NAME=ID, say it and choose nothing. Raises ValueError naming what has no match, or two.
    """
    said = given_ids(given, found)
    asked = [split_id(w, found) for w in wanted]
    sources = match_sources([name for name, _ in asked], found, said, model_names) if asked else ordered(found)
    if len(set(sources)) < len(sources):
        raise ValueError("--classes names the same class twice, under two names")
    if len(sources) > num_classes:
        raise ValueError(
            f"--model has {num_classes} classes, fewer than the data's {len(sources)}; choose some with --classes, "
            "or train a model on this data with jobs/pretrain.py"
        )
    said |= {s: i for s, (_, i) in zip(sources, asked, strict=False) if i is not None}
    matched = model_ids([s for s in sources if s not in said], found, num_classes, model_names)
    if doubles := [c for c, count in Counter(matched.values()).items() if count > 1]:
        same = ", ".join(s for s, c in matched.items() if c == doubles[0])
        raise ValueError(
            f"classes {same} are one class of the model (id {doubles[0]}); join them, or choose with --classes"
        )
    resolved = [said[s] if s in said else matched[s] for s in sources]
    for source, model_class in zip(sources, resolved, strict=True):
        if not 0 <= model_class < num_classes:
            raise ValueError(f"class {source}={model_class}: the model's ids run from 0 to {num_classes - 1}")
    if num_classes == CLASSES and model_names is None:
        wnids: list[str | None] = [imagenet().wnids[i] for i in resolved]
    else:
        wnids = [s if is_wnid(s) else None for s in sources]
    names = [_readable(s, wnid) for s, wnid in zip(sources, wnids, strict=True)]
    return ClassMap(tuple(sources), tuple(names), tuple(wnids), tuple(resolved))


def _readable(source: str, wnid: str | None) -> str:
    """ImageNet's name of a wnid, else the source's."""
    known = imagenet().index.get(wnid) if wnid else None
    return source if known is None else imagenet().names[known]


def imagenet_wnids() -> tuple[str, ...]:
    """ImageNet-1k's wnids, in the class order that its pretrained models share."""
    return imagenet().wnids
