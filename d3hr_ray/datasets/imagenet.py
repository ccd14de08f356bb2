"""ImageNet-1k's classes and the names that people give them: WordNet's, Hugging Face's, torchvision's, Keras's, CLIP's.

These spellings disagree: `crane` is a bird in one and a machine in another, `Cardigan` a dog, `cardigan` a garment. So
names are read together, as a list in one spelling where one explains them all, and what may be two classes is told.
"""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from importlib.util import find_spec
from pathlib import Path

CLASSES = 1000
VAL = "ILSVRC2012_val"  # validation images have a number after it, and no class: that is in a list of its own
ASSETS = Path(__file__).parent.parent / "assets" / "imagenet"

# Where a spelling is not made from WordNet's lemmas by a rule. Sources: huggingface/datasets
# datasets/imagenet-1k/classes.py; torchvision.models._meta._IMAGENET_CATEGORIES.
HUGGING_FACE = {517: "crane2"}
TORCHVISION = {134: "crane bird", 639: "maillot tank suit"}

Ids = frozenset[int]
NONE: Ids = frozenset()


def nfc(name: str) -> str:
    """One spelling of accents: a Mac writes an e with an accent as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def distinct(names: Sequence[str]) -> list[str]:
    """Class names by position => the same, where those that come twice tell their position: missile (657)."""
    counts = Counter(names)
    return [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]


@dataclass(frozen=True)
class Spelling:
    """What one list of names calls all classes: ids by exact name, and by name without case and punctuation."""

    exact: Mapping[str, Ids]
    loose: Mapping[str, Ids]

    @classmethod
    def of(cls, names: Sequence[str]) -> "Spelling":
        """1,000 names in class order. A name of two classes has two ids; with its position added, one."""
        pairs = [*enumerate(names), *enumerate(distinct(names))]
        return cls(_gather(pairs), _gather((i, _loosen(name)) for i, name in pairs))


@dataclass(frozen=True)
class ImageNet:
    """`wnids`, and `names` (WordNet's first lemma), in class order; `index` of wnids; `spellings`; any lemma's ids."""

    wnids: tuple[str, ...]
    names: tuple[str, ...]
    index: Mapping[str, int]
    spellings: tuple[Spelling, ...]
    lemmas: Mapping[str, Ids]

    def describe(self, class_id: int) -> str:
        """A class as a message names it, so that no other class is told alike: 517 (n03126707, crane)."""
        name = TORCHVISION.get(class_id, self.names[class_id])
        return f"{class_id} ({self.wnids[class_id]}, {name})"


def wordnet() -> tuple[tuple[str, ...], list[str]]:
    """The wnids in class order and WordNet's lemmas of each, from timm's files: to import timm takes seconds."""
    spec = find_spec("timm")
    assert spec is not None and spec.submodule_search_locations, "timm is a dependency"
    folder = Path(spec.submodule_search_locations[0]) / "data" / "_info"
    wnids = (folder / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    with (folder / "imagenet_synset_to_lemma.txt").open(encoding="utf-8", newline="") as file:
        lemmas = dict(csv.reader(file, delimiter="\t"))
    return tuple(wnids), [lemmas[wnid] for wnid in wnids]


@cache
def imagenet() -> ImageNet:
    """All that is known of the classes; WordNet's part from timm."""
    wnids, full = wordnet()
    first = [text.split(",")[0] for text in full]
    lines = (ASSETS / "clip.txt").read_text(encoding="utf-8").splitlines()
    clip = {int(number): name for number, _, name in (line.partition(" ") for line in lines if line[0] != "#")}
    spelled = (
        first,
        full,
        [HUGGING_FACE.get(i, name) for i, name in enumerate(full)],
        [TORCHVISION.get(i, name) for i, name in enumerate(first)],
        [name.replace(" ", "_") for name in first],  # Keras's imagenet_class_index.json
        [clip.get(i, name) for i, name in enumerate(first)],
    )
    lemmas = _gather((i, _loosen(lemma)) for i, text in enumerate(full) for lemma in text.split(","))
    index = {wnid: i for i, wnid in enumerate(wnids)}
    return ImageNet(wnids, tuple(first), index, tuple(map(Spelling.of, spelled)), lemmas)


def sorting(first: str) -> str:
    """What a shell does to move images that lie flat, `first` among them, into folders of their classes, by a list."""
    if not first.startswith(VAL):
        return 'while read -r name class || [ -n "$name" ]; do mkdir -p "$class" && mv "$name" "$class"; done < LIST'
    return (
        "tail -n +2 LOC_val_solution.csv | while IFS=', ' read -r name class rest || [ -n \"$name\" ]; do mkdir -p "
        '"$class" && mv "$name.JPEG" "$class"; done (Kaggle has this list; torchvision.datasets.ImageNet sorts by '
        "the devkit's)"
    )


def is_wnid(name: str) -> bool:
    """Whether a name has the form of a WordNet id."""
    return re.fullmatch(r"n\d{8}", name) is not None


def class_ids(names: Iterable[str]) -> dict[str, Ids]:
    """What each of a source's class names may be: no id, one, or those of all classes that it fits.

    Numbers and wnids are what they say. The other names are read as one list: exactly, case included, in a spelling
    that has them all, else without case and punctuation in one that has them all, else each alone, by the same order.
    """
    found = {name: _coded(name) for name in names}
    words = {name: nfc(name) for name in found if not (name.isdecimal() or is_wnid(name))}
    read = _read(set(words.values()))
    return found | {name: read[word] for name, word in words.items()}


def _coded(name: str) -> Ids:
    if name.isdecimal():
        return frozenset({int(name)}) if int(name) < CLASSES else NONE
    known = imagenet().index.get(name) if is_wnid(name) else None
    return NONE if known is None else frozenset({known})


def _read(words: Collection[str]) -> dict[str, Ids]:
    if not words:
        return {}
    alike = Counter(map(_loosen, words))
    ways: tuple[Callable[[Spelling, str], Ids], ...] = (
        lambda spelling, word: spelling.exact.get(word, NONE),
        lambda spelling, word: _loosely(spelling, word, alike),
    )
    for way in ways:
        if lists := [s for s in imagenet().spellings if all(way(s, word) for word in words)]:
            return {word: _union(way(s, word) for s in lists) for word in words}
    return {word: _alone(word) for word in words}


def _loosely(spelling: Spelling, word: str, alike: Mapping[str, int]) -> Ids:
    """Among names that lost their case, `cardigan` may be Cardigan too, unless that one is there as well."""
    key = _loosen(word)
    ids = spelling.loose.get(key, NONE)
    return spelling.exact.get(word, ids) if alike[key] == len(ids) else ids


def _alone(word: str) -> Ids:
    key, spellings = _loosen(word), imagenet().spellings
    exact = _union(s.exact.get(word, NONE) for s in spellings)
    return exact or _union(s.loose.get(key, NONE) for s in spellings) or imagenet().lemmas.get(key, NONE)


@cache
def _loosen(name: str) -> str:
    return re.sub(r"[\W_]+", " ", nfc(name).casefold()).strip()


def _gather(pairs: Iterable[tuple[int, str]]) -> dict[str, Ids]:
    found: dict[str, set[int]] = {}
    for i, name in pairs:
        found.setdefault(name, set()).add(i)
    return {name: frozenset(ids) for name, ids in found.items()}


def _union(parts: Iterable[Ids]) -> Ids:
    return reduce(frozenset.union, parts, NONE)
