"""Which files a --data names: one file, all of a folder, or those of a pattern, such as 'DIR/*/train-{00..09}.tar'."""

import os
import re
import shlex
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from glob import escape
from itertools import product, takewhile
from pathlib import Path

import pyarrow.fs as pafs

from d3hr_ray.filesystems import patient, resolve, split_query

MAX_NAMES = 100_000  # of a pattern's braces
BRACES = re.compile(r"(?<!\[)\{([^{}]*(?:,|\.\.)[^{}]*)\}")
SPLIT = re.compile(r"(?:^|[/_.-])(train|test|val)(?=[a-z]*[/_.-])")


def is_pattern(uri: str) -> bool:
    """Whether a path has * ? [...] {a,b} or {0..9} in any part, and is no local file's very name.

    In a URI, ? begins the query.
    """
    if not _has_signs(split_query(uri)[0]):
        return False
    return "://" in uri or not Path(uri).exists()


def get_kind(uri: str) -> pafs.FileType:
    """Whether a path that is no pattern is a file, a folder or nothing."""
    filesystem, root = resolve(uri)
    return filesystem.get_file_info(root).type


def _has_signs(text: str) -> bool:
    return re.search(r"[*?[]", text) is not None or BRACES.search(text) is not None


@patient
def list_files(uri: str, suffixes: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """A file, a pattern or a folder => (folder, sorted names in it); None without any. Hidden files are none.

    Raises ValueError if the names tell of several splits, because mixing them would leak test images, and if a
    pattern's braces name a file that is not there.
    """
    folder, names = _find(uri)
    names = sorted(n for n in names if n.lower().endswith(suffixes) and not re.search(r"(^|/)\.", n))
    _check_splits(uri, folder, names)
    return (folder, tuple(names)) if names else None


def _find(uri: str) -> tuple[str, list[str]]:
    """=> the folder, and the names of the files in it that are meant."""
    if is_pattern(uri):
        folder, patterns = _split(uri)
        return folder, _match(uri, folder, patterns)
    base, query = split_query(uri)
    if get_kind(uri) == pafs.FileType.File:
        parent, _, last = base.rpartition("/")
        return parent + query, [last]
    filesystem, root = resolve(uri)
    return uri, _names(_inside(filesystem, root, recursive=True), root)


def _split(uri: str) -> tuple[str, list[str]]:
    """A pattern => the folder that all of its files are in, and what to match there, without braces."""
    base, query = split_query(uri)
    parts = base.split("/")
    first = next(i for i, part in enumerate(parts) if _has_signs(part) or "{" in part)
    return "/".join(parts[:first]) + query, expand_braces("/".join(parts[first:]))


def expand_braces(pattern: str) -> list[str]:
    """'{a,b}' and '{00..12}' in any place => the patterns that they stand for, as in a shell."""
    pieces = BRACES.split(pattern)  # text, braces, text, ...
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MAX_NAMES:
        raise ValueError(f"--data: the braces of {pattern} name {count:,} files, more than {MAX_NAMES:,}; use *")
    return ["".join(found) for found in product(*choices)]


def _choices(inner: str) -> Sequence[str]:
    limits = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inner)
    if limits is None:
        return inner.split(",")
    low, high = limits.groups()
    numbers = range(int(low), int(high) + 1)
    if len(numbers) > MAX_NAMES:
        raise ValueError(f"--data: {{{inner}}} names {len(numbers):,} files, more than {MAX_NAMES:,}; use *")
    width = len(low) if low.startswith("0") else 0
    return [str(number).zfill(width) for number in numbers]


def _match(uri: str, folder: str, patterns: list[str]) -> list[str]:
    """The files under `folder` that any pattern matches, and those in the folders that it matches."""
    filesystem, root = resolve(folder)
    exact = [p for p in patterns if not _has_signs(p)]
    found = filesystem.get_file_info([f"{root}/{p}" for p in exact]) if exact else []
    missing = [p for p, info in zip(exact, found, strict=True) if info.type == pafs.FileType.NotFound]
    if missing:
        raise ValueError(
            f"--data {uri}: names {len(exact)} files, of which {len(missing)} are not there, such as {missing[0]}"
        )
    for pattern in set(patterns) - set(exact):
        found += _glob(filesystem, root, pattern.split("/"))
    folders = [i.path for i in found if i.type == pafs.FileType.Directory]
    inside = [info for path in folders for info in _inside(filesystem, path, recursive=True)]
    return sorted(set(_names([*found, *inside], root)))


def _glob(filesystem: pafs.FileSystem, root: str, parts: list[str]) -> list[pafs.FileInfo]:
    """What matches, part by part; ** is any number of folders."""
    folders, found = [root], []
    for part in parts:
        listed = [info for path in folders for info in _inside(filesystem, path, recursive=part == "**")]
        found = [info for info in listed if part == "**" or fnmatchcase(info.base_name, part)]
        above = folders if part == "**" else []
        folders = [*above, *(info.path for info in found if info.type == pafs.FileType.Directory)]
    return found


def _inside(filesystem: pafs.FileSystem, path: str, recursive: bool) -> list[pafs.FileInfo]:
    infos: list[pafs.FileInfo] = filesystem.get_file_info(pafs.FileSelector(path, True, recursive))
    return infos


def _names(infos: Sequence[pafs.FileInfo], root: str) -> list[str]:
    start = len(root.rstrip("/")) + 1
    return [info.path[start:] for info in infos if info.type == pafs.FileType.File]


def _check_splits(uri: str, folder: str, names: Sequence[str]) -> None:
    of_split: dict[str, list[str]] = {}
    for name in names:
        if words := SPLIT.findall(name.lower()):
            of_split.setdefault("/".join(words), []).append(name)
    if len(of_split) < 2:
        return
    base, query = split_query(folder)
    patterns = [pattern_of(own, names) for _, own in sorted(of_split.items())]
    typed = [shlex.quote(f"{_literal(base)}/{pattern}{query}") for pattern in patterns if pattern is not None]
    cure = f"name one of them, such as --data {' or --data '.join(typed)}" if typed else "give each a folder of its own"
    raise ValueError(f"--data {uri}: its files are of several splits ({', '.join(sorted(of_split))}); {cure}")


def pattern_of(wanted: Collection[str], names: Sequence[str]) -> str | None:
    """A folder or a short pattern that names the files wanted and no other; None if there is none."""
    wanted = frozenset(wanted)
    shared = os.path.commonpath([os.path.dirname(name) for name in wanted])
    if shared and all((name in wanted) == name.startswith(f"{shared}/") for name in names):
        return _literal(shared)
    columns = [list(column) for column in zip(*(name.split("/") for name in wanted), strict=False)]
    ways = (
        lambda column: _literal(_start(column).rstrip("0123456789")) + "*",
        lambda column: "*" + _literal(_end(column)),
        lambda column: "*",
    )
    for way in ways:
        parts = [_literal(column[0]) if len(set(column)) == 1 else way(column) for column in columns]
        tail = _end(columns[-1]).rpartition(".")[1:]
        if parts[-1].endswith("*"):
            parts[-1] += _literal("".join(tail))
        if {name for name in names if _matches(name, parts)} == wanted:
            return "/".join(parts)
    return None


def _matches(name: str, parts: list[str]) -> bool:
    own = name.split("/")
    return len(own) == len(parts) and all(map(fnmatchcase, own, parts))


def _start(words: Sequence[str]) -> str:
    """The letters that all words begin with."""
    return "".join(letters[0] for letters in takewhile(lambda found: len(set(found)) == 1, zip(*words, strict=False)))


def _end(words: Sequence[str]) -> str:
    return _start([word[::-1] for word in words])[::-1]


def _literal(text: str) -> str:
    """Text as a pattern that matches it alone."""
    return re.sub(r"[{]", "[{]", escape(text))
