"""Names against names: the classes that a user asks for, those of a source, those of a model."""

import difflib
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from d3hr_ray.datasets.imagenet import CLASSES, NONE, Ids, class_ids, imagenet, nfc
from d3hr_ray.datasets.subsets import SUBSETS


def ordered(found: Sequence[str]) -> list[str]:
    """Integers by value, anything else by name, as torchvision's ImageFolder sorts."""
    return sorted(found, key=int) if all(n.isdecimal() for n in found) else sorted(found)


def as_folder(name: str) -> str:
    """A class's name without anything that a path could abuse."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:64].strip("_")


def split_id(value: str, found: Sequence[str]) -> tuple[str, int | None]:
    """NAME=ID => both; what is a class's name as it stands stays one."""
    name, equals, number = value.rpartition("=")
    told = equals and number.isdecimal() and nfc(value) not in map(nfc, found)
    return (name, int(number)) if told else (value, None)


def given_ids(given: Sequence[str], found: Sequence[str]) -> dict[str, int]:
    """--class-ids, as NAME=ID => the model's class id by the source's name. Raises ValueError for an unknown name."""
    pairs = [(name, int(number)) for name, _, number in (entry.rpartition("=") for entry in given)]
    sources = match_sources([name for name, _ in pairs], found, {}, None, "--class-ids")
    return dict(zip(sources, (number for _, number in pairs), strict=True))


def match_sources(
    names: Sequence[str],
    found: Sequence[str],
    given: Mapping[str, int],
    model_names: Sequence[str] | None,
    flag: str = "--classes",
) -> list[str]:
    """Classes as the user names them => as the source names them: the same text, the same class, or the same folder.

    `given` are the model's class ids of sources that a user said. Raises ValueError for a name without match, or that
    fits two classes.
    """
    exact = {nfc(f): f for f in found}
    rest = [name for name in names if nfc(name) not in exact]
    if not rest:
        return [exact[nfc(name)] for name in names]
    meant = class_ids(rest)
    theirs = {f: ids for f, ids in class_ids(found).items() if f not in given}
    said = {i: f for f, i in given.items()}
    folders = _by_folder(found)
    matched = []
    for at, name in enumerate(names):
        ids = meant.get(name, NONE)
        own = ids if model_names is None else _position(name, model_names)
        if nfc(name) in exact:
            matched.append(exact[nfc(name)])
        elif len(own) == 1 and own <= said.keys():
            matched.append(said[min(own)])
        elif not ids and _folder(name, at) in folders:
            matched.append(found[folders[_folder(name, at)]])
        else:
            matched.append(_same_class(name, ids, theirs, flag))
    return matched


def without_number(name: str, at: int) -> str:
    """A class at a position, without the number that a set of ours writes before it to keep the order."""
    return name.removeprefix(f"{at:04d}_")


def _folder(name: str, at: int) -> str:
    """The folder of a class at a position."""
    return as_folder(without_number(name, at))


def _by_folder(names: Sequence[str]) -> dict[str, int]:
    """Positions of names by their folders, where one name alone has that folder."""
    folders = [_folder(name, at) for at, name in enumerate(names)]
    counts = Counter(folders)
    return {folder: at for at, folder in enumerate(folders) if folder and counts[folder] == 1}


def _position(name: str, names: Sequence[str]) -> Ids:
    known = [nfc(each) for each in names]
    return frozenset({known.index(nfc(name))}) if nfc(name) in known else NONE


def _same_class(name: str, ids: Ids, theirs: Mapping[str, Ids], flag: str) -> str:
    """The one source that is the class that a name means, and no other."""
    if len(ids) > 1:
        raise ValueError(f"{flag} {name}: fits {_described(ids)} of ImageNet; write the wnid or number")
    same = [source for source, other in theirs.items() if other & ids]
    for source in same:
        if len(theirs[source]) > 1:
            raise ValueError(f"{flag} {name}: the data's {two_classes(source, theirs[source])}")
    if len(same) > 1:
        raise ValueError(f"{flag} {name}: the data has that class twice, as {same[0]!r} and {same[1]!r}; join them")
    if same:
        return same[0]
    close = difflib.get_close_matches(name, theirs, 3) or sorted(theirs)[:3]
    known = f"; named subsets are {', '.join(SUBSETS)}" if name.isalnum() else ""
    raise ValueError(f"{flag} {name}: the data has no such class; near it: {', '.join(close)}{known}")


def two_classes(source: str, ids: Ids) -> str:
    """What to say of a class whose name fits several of ImageNet's."""
    flags = " or ".join(f"--class-ids {shlex.quote(f'{source}={i}')}" for i in sorted(ids))
    return f"class {source!r} may be {_described(ids)} of ImageNet; say which: {flags}"


def _described(ids: Ids) -> str:
    return " or ".join(map(imagenet().describe, sorted(ids)))


def model_ids(
    sources: Sequence[str], found: Sequence[str], num_classes: int, model_names: Sequence[str] | None
) -> dict[str, int]:
    """The model's class id of each source, by one rule for all of them. Raises ValueError without a match.

    ImageNet's names are read in the light of all that were `found`: they tell which spelling it is.
    """
    hint = (
        "say the model's class id of such classes with --class-ids NAME=ID ... (the others stay), choose with "
        "--classes, or train a model on this data with jobs/pretrain.py"
    )
    if model_names is not None:
        index, folders = {nfc(name): i for i, name in enumerate(model_names)}, _by_folder(model_names)
        own = {s: _folder(s, at) for at, s in enumerate(found) if nfc(s) not in index}
        index |= {nfc(s): folders[folder] for s, folder in own.items() if folder in folders}
        if unknown := [s for s in sources if nfc(s) not in index]:
            raise ValueError(
                f"--model knows no class {unknown[0]!r} (it knows {', '.join(model_names[:5])}, ...); {hint}"
            )
        return {s: index[nfc(s)] for s in sources}
    if num_classes == CLASSES:
        return _imagenet_ids(sources, found, hint)
    if all(s.isdecimal() and int(s) < num_classes for s in sources):
        return {s: int(s) for s in sources}
    if len(sources) == num_classes:
        return {s: i for i, s in enumerate(ordered(sources))}
    raise ValueError(
        f"class {sources[0]!r} cannot be matched: the model has {num_classes} classes without names; {hint}"
    )


def _imagenet_ids(sources: Sequence[str], found: Sequence[str], hint: str) -> dict[str, int]:
    ids = class_ids(found)
    for source in sources:
        if not ids[source]:
            raise ValueError(f"class {source!r} is no ImageNet wnid, name or number, and the model has those; {hint}")
        if len(ids[source]) > 1:
            raise ValueError(two_classes(source, ids[source]))
    return {source: min(ids[source]) for source in sources}
