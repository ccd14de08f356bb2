"""Which files a --data names: one file, all of a folder, or those of a pattern, such as 'DIR/*/train-{00..09}.tar'."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow.fs as pafs

from d3hr_ray.datasets.folders import escaped, is_utf8, list_folder, walk
from d3hr_ray.datasets.patterns import expand_braces, has_signs, literal, pattern_of
from d3hr_ray.filesystems import absolute, patient, resolve, split_query

# In the name of a file: train2017, test_data and dev-00000 are splits; devkit is none.
SPLIT = re.compile(r"(?:^|[/_.-])((?:train|test|val)(?=[a-z]*\d*[/_.-])|(?:dev|eval)(?=\d*[/_.-]))")


def is_pattern(uri: str) -> bool:
    """Whether a path has * ? [...] {a,b} or {0..9} in any part, and is no local file's very name.

    In a URI, ? begins the query.
    """
    if not has_signs(split_query(uri)[0]):
        return False
    return "://" in uri or not Path(uri).exists()


@patient
def get_kind(uri: str) -> pafs.FileType:
    """Whether a path that is no pattern is a file, a folder or nothing."""
    filesystem, root = resolve(uri)
    return filesystem.get_file_info(root).type


def require_folder(flag: str, path: str, wanted: str = "a folder") -> None:
    """Raise ValueError for a file where a folder, there or not, is wanted."""
    if get_kind(absolute(path)) == pafs.FileType.File:
        raise ValueError(f"{flag} {path} is a file; give {wanted}")


@patient
def list_files(uri: str, suffixes: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """As `find_files`; None without any. Raises ValueError, too, if the names tell of several splits, because mixing
    them would leak test images.
    """
    folder, names = find_files(uri, suffixes)
    _check_splits(uri, folder, names)
    return (folder, names) if names else None


def find_files(uri: str, suffixes: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """A file, a pattern or a folder => the folder, and the sorted names in it, of all splits. Hidden files are none.

    Raises ValueError if a pattern's braces name a file that is not there, and for a name that is not UTF-8.
    """
    folder, found = _find(uri)
    names = sorted(n for n in found if n.lower().endswith(suffixes) and not re.search(r"(^|/)\.", n))
    if bad := [n for n in names if not is_utf8(n)]:
        raise ValueError(f"--data {uri}: the name of {escaped(bad[0])} is not UTF-8; rename the file")
    return folder, tuple(names)


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
    return uri, _names(_below(filesystem, root), root)


def _split(uri: str) -> tuple[str, list[str]]:
    """A pattern => the folder that all of its files are in, and what to match there, without braces."""
    base, query = split_query(uri)
    parts = base.split("/")
    first = next(i for i, part in enumerate(parts) if has_signs(part) or "{" in part)
    return "/".join(parts[:first]) + query, expand_braces("/".join(parts[first:]))


def _match(uri: str, folder: str, patterns: list[str]) -> list[str]:
    """The files under `folder` that any pattern matches, and those in the folders that it matches."""
    filesystem, root = resolve(folder)
    exact = [p for p in patterns if not has_signs(p)]
    infos = filesystem.get_file_info([f"{root}/{p}" for p in exact]) if exact else []
    missing = [p for p, info in zip(exact, infos, strict=True) if info.type == pafs.FileType.NotFound]
    if missing:
        raise ValueError(
            f"--data {uri}: names {len(exact)} files, of which {len(missing)} are not there, such as {missing[0]}"
        )
    found = [_Found(info.path, info.type == pafs.FileType.Directory) for info in infos]
    for pattern in set(patterns) - set(exact):
        found += _glob(filesystem, root, pattern.split("/"))
    inside = [each for one in found if one.is_folder for each in _below(filesystem, one.path)]
    return sorted(set(_names([*found, *inside], root)))


@dataclass(frozen=True)
class _Found:
    """A file or folder, by its path on its filesystem."""

    path: str
    is_folder: bool


def _glob(filesystem: pafs.FileSystem, root: str, parts: list[str]) -> list[_Found]:
    """What matches, part by part; ** is any number of folders."""
    folders, found = [root], list[_Found]()
    for part in parts:
        if part == "**":
            found = [each for path in folders for each in _below(filesystem, path)]
            folders += [each.path for each in found if each.is_folder]
        else:
            listed = [each for path in folders for each in _in(filesystem, path)]
            found = [each for each in listed if fnmatchcase(each.path.rpartition("/")[2], part)]
            folders = [each.path for each in found if each.is_folder]
    return found


def _in(filesystem: pafs.FileSystem, path: str) -> list[_Found]:
    """What lies directly in a folder."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        return [_Found(f"{path}/{entry.name}", entry.is_folder) for entry in list_folder(path) if not entry.is_dead]
    return _select(filesystem, path, recursive=False)


def _below(filesystem: pafs.FileSystem, path: str) -> list[_Found]:
    """What lies in a folder and those within it; locally each real folder once, whatever links lead to it."""
    if not isinstance(filesystem, pafs.LocalFileSystem):
        return _select(filesystem, path, recursive=True)
    found = walk(path, "")
    return [
        *(_Found(f"{path}{name}", False) for name in found.files),
        *(_Found(f"{path}{name}", True) for name in found.folders),
    ]


def _select(filesystem: pafs.FileSystem, path: str, recursive: bool) -> list[_Found]:
    infos = filesystem.get_file_info(pafs.FileSelector(path, True, recursive))
    return [_Found(info.path, info.type == pafs.FileType.Directory) for info in infos]


def _names(found: Iterable[_Found], root: str) -> list[str]:
    start = len(root.rstrip("/")) + 1
    return [each.path[start:] for each in found if not each.is_folder]


def _check_splits(uri: str, folder: str, names: Sequence[str]) -> None:
    of_split: dict[str, list[str]] = {}
    for name in names:
        if words := SPLIT.findall(name.lower()):
            of_split.setdefault("/".join(words), []).append(name)
    if len(of_split) < 2:
        return
    base, query = split_query(folder)
    patterns = [pattern_of(own, names) for _, own in sorted(of_split.items())]
    typed = [shlex.quote(f"{literal(base)}/{pattern}{query}") for pattern in patterns if pattern is not None]
    cure = f"name one of them, such as --data {' or --data '.join(typed)}" if typed else "give each a folder of its own"
    raise ValueError(f"--data {uri}: its files are of several splits ({', '.join(sorted(of_split))}); {cure}")
