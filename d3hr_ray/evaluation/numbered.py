"""Sets that others made with numbers for classes (RDED's 00000, SRe2L's new000): the n-th is the n-th of the data.

That is torchvision's order, of names sorted as text, by which such sets were made.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.imagenet import is_wnid
from d3hr_ray.datasets.listing import list_images
from d3hr_ray.datasets.reading import Reading
from d3hr_ray.evaluation.sets import DistilledSet, images_of
from d3hr_ray.store import Store

_NUMBERED = re.compile(r"(?P<prefix>[A-Za-z]*[-_]?)(?P<number>\d+)")


def numbers(names: Sequence[str]) -> list[int] | None:
    """What classes are numbered with, if that is all that they are called: 0 to K - 1, after a prefix or none."""
    parts = [_NUMBERED.fullmatch(name) for name in names]
    found = [int(part["number"]) for part in parts if part]
    one_prefix = len({part["prefix"] for part in parts if part}) == 1
    return found if one_prefix and sorted(found) == list(range(len(names))) else None


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Classes as numbers stand for them: by their own number where they are numbered too, else in text order."""
    own = numbers(names)
    return tuple(sorted(names) if own is None else (name for _, name in sorted(zip(own, names, strict=True))))


def is_numbered(found: DistilledSet) -> bool:
    """Whether a set that others made has but numbers for classes."""
    return found.source is None and numbers(found.images.classes) is not None


def named_by(
    found: DistilledSet, store: Store, side: int, classes: Sequence[str], order: Sequence[str]
) -> DistilledSet:
    """A numbered set with these `classes`, as many as it has; `order` has the name of each that numbers follow."""
    folder_of = dict(zip(in_order(order), in_order(found.images.classes), strict=True))
    folders = tuple(folder_of[name] for name in order)
    listing = list_images(DataConfig(images_of(store).uri, "imagefolder", folders), len(folders), list(folders))
    wnids = tuple(order) if all(map(is_wnid, order)) else None
    return replace(found, images=Reading.of(listing, tuple(classes), side), wnids=wnids)


def numbered_note(found: DistilledSet, order: Sequence[str]) -> str:
    """What a person should hear: which class the first and the last number are taken for."""
    folders, names = in_order(found.images.classes), in_order(order)
    ends = f"{folders[0]} is taken for {names[0]}, ..., {folders[-1]} for {names[-1]}"
    return f"{found.name}: its folders are numbered: {ends}"
