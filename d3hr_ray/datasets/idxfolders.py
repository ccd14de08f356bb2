"""Where the idx files of a split lie, in folders as MNIST-like sets are distributed.

    DIR/train-images-idx3-ubyte, DIR/train-labels-idx1-ubyte, DIR/t10k-...; each with or without .gz
    ROOT/FashionMNIST/raw/...                                  as torchvision keeps them
    DIR/emnist-letters-train-images-idx3-ubyte, ...-test-...   as EMNIST calls them

A folder stands for its training split. A pattern or a file names a split: 'DIR/t10k*', 'DIR/emnist-letters-test*'.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow.fs as pafs

from d3hr_ray.datasets.files import find_files, get_kind, is_pattern
from d3hr_ray.datasets.folders import Entry, list_folder
from d3hr_ray.datasets.patterns import literal
from d3hr_ray.filesystems import split_query

SUFFIXES = tuple(f"idx{sizes}-ubyte{packed}" for sizes in (3, 1) for packed in ("", ".gz"))
NAME = re.compile(r"(?:(?P<prefix>.+)[-_.])?(?P<split>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(\.gz)?")
KINDS = {"images": "idx3", "labels": "idx1"}
RAW = "raw"  # torchvision's folder of a set's files, within one of the set's name


@dataclass(frozen=True)
class Part:
    """A file of a set, by its folder under the data's and its name."""

    folder: str
    name: str
    prefix: str
    split: str

    @staticmethod
    def of(folder: str, name: str) -> "Part | None":
        """None for a file that is of no set."""
        found = NAME.fullmatch(name)
        return Part(folder, name, found["prefix"] or "", found["split"]) if found else None

    @property
    def is_test(self) -> bool:
        """Whether it is of the test split: t10k, or test for EMNIST."""
        return self.split != "train"

    def called(self, kind: str) -> str:
        """The name, unpacked, of this split's images or labels, written as this file's is."""
        own = re.sub(r"(images|labels)([-.])idx[13]", rf"{kind}\2{KINDS[kind]}", self.name)
        return own.removesuffix(".gz")


def find_split(uri: str, test: bool) -> tuple[str, str, str, str] | None:
    """A file, pattern or folder => the split's folder, the names of its images and labels there, and the set's prefix.

    What names one split is that one, else it is the training split, or the `test` one. None without any idx file.
    Raises ValueError for several sets, for a folder without that split, and for images without labels.
    """
    is_folder = not is_pattern(uri) and get_kind(uri) == pafs.FileType.Directory
    top, found = _in_folder(uri) if is_folder else _named(uri)
    if not found:
        return None
    _refuse_several(uri, top, found)
    wanted = [part for part in found if part.is_test == test]
    if is_folder and not wanted:
        raise ValueError(_lacks(uri, top, found[0], test))
    part = (wanted or found)[0]
    where = join(top, part.folder)
    names = {entry.name for entry in list_folder(where) if not entry.is_folder}
    images, labels = (_one_of(where, part, kind, names) for kind in KINDS)
    return where, images, labels, part.prefix


def raw_folders(uri: str, inside: Mapping[str, Iterable[Entry]]) -> dict[str, list[Entry]]:
    """Of a folder's own folders, those that hold torchvision's folder of files => what lies in that."""
    holders = (name for name, own in inside.items() if any(e.name == RAW and e.is_folder for e in own))
    return {f"{name}/{RAW}": list_folder(uri, f"{name}/{RAW}") for name in holders}


def join(uri: str, folder: str) -> str:
    """A folder in one that may have a query."""
    base, query = split_query(uri)
    return f"{base.rstrip('/')}/{folder}{query}" if folder else uri


def _in_folder(uri: str) -> tuple[str, list[Part]]:
    """The files in a folder; if there are none, those in the folders within it, and in these folders' own `raw`."""
    here = list_folder(uri)
    inside = {entry.name: list_folder(uri, entry.name) for entry in here if _is_open(entry)} if not _parts(here) else {}
    folders = {"": here} | inside | raw_folders(uri, inside)
    return uri, [part for folder, own in folders.items() for part in _parts(own, folder)]


def _is_open(entry: Entry) -> bool:
    return entry.is_folder and not entry.is_hidden


def _parts(entries: Iterable[Entry], folder: str = "") -> list[Part]:
    parts = [Part.of(folder, entry.name) for entry in entries if not entry.is_folder]
    return [part for part in parts if part]


def _named(uri: str) -> tuple[str, list[Part]]:
    """The files that a path or pattern names."""
    top, names = find_files(uri, SUFFIXES)
    parts = [Part.of(*name.rpartition("/")[::2]) for name in names]
    return top, [part for part in parts if part]


def _one_of(where: str, part: Part, kind: str, names: set[str]) -> str:
    """The file of a split's images or labels, rather unpacked than packed. Raises ValueError without either."""
    name = part.called(kind)
    found = [each for each in (name, f"{name}.gz") if each in names]
    if not found:
        raise ValueError(
            f"--data {where}: {part.name} is there and its {kind} are not; put {name} or {name}.gz beside it"
        )
    return found[0]


def _refuse_several(uri: str, top: str, found: Sequence[Part]) -> None:
    sets = {(part.folder, part.prefix): part for part in found}
    if len(sets) < 2:
        return
    shared = len({folder for folder, _ in sets}) < len(sets)
    typed = [
        shlex.quote(_pattern(top, part, f"{part.prefix}-*" if part.prefix else "train*", shared))
        for part in sets.values()
    ]
    some = " or --data ".join(typed[:3])
    raise ValueError(f"--data {uri}: holds {len(sets)} sets of idx files; name one of them, such as --data {some}")


def _pattern(top: str, part: Part, ending: str, shared: bool = True) -> str:
    """What to type for a set, or a split of it: its folder, where it has one of its own, or a pattern."""
    base, query = split_query(join(top, part.folder))
    return f"{literal(base)}/{ending}{query}" if shared else f"{base}{query}"


def _lacks(uri: str, top: str, there: Part, test: bool) -> str:
    """What to say of a folder without the split that is asked for."""
    other = there.called("images").replace(there.split, "t10k" if test else "train")
    ending = f"{there.prefix}-{there.split}*" if there.prefix else f"{there.split}*"
    typed = shlex.quote(_pattern(top, there, ending))
    return (
        f"--data {uri}: has {there.split} files and no {other} to {'test' if test else 'train'} on; put it there with "
        f"its labels, or name what is there: --data {typed}"
    )
