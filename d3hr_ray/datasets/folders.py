"""Folders as a listing needs them: every real folder once, hidden ones and dead links counted, any file name."""

import os
import stat
from dataclasses import dataclass, field

import pyarrow.fs as pafs

from d3hr_ray.datasets.source import add_passed
from d3hr_ray.filesystems import patient, resolve

# Folders that desktops, notebooks and storage boxes put beside images, besides those that begin with a dot.
HIDDEN = ("@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found")
DEAD, BACK = "dead links", "links back into the data"


@dataclass(frozen=True)
class Entry:
    """A file or folder. `modified` is in nanoseconds; `regular` is False for pipes, sockets and devices."""

    name: str
    is_folder: bool
    size: int = 0
    modified: int = 0
    regular: bool = True
    is_link: bool = False
    is_dead: bool = False

    @property
    def is_hidden(self) -> bool:
        """Whether it is none of the data."""
        return is_hidden(self.name) if self.is_folder else self.name.startswith(".")


@dataclass
class Walk:
    """`files` and `folders` below a folder, by their paths from the data's root, and what was passed over."""

    files: dict[str, Entry] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    passed: dict[str, tuple[int, str]] = field(default_factory=dict)

    def pass_over(self, kind: str, path: str) -> None:
        """Count what is not taken."""
        add_passed(self.passed, {kind: (1, escaped(path))})


@patient
def list_folder(uri: str, path: str = "") -> list[Entry]:
    """What lies directly in a folder of the data, sorted by name. Local names may hold bytes that are not UTF-8."""
    filesystem, root = resolve(uri)
    where = f"{root.rstrip('/')}/{path}".rstrip("/") or "/"
    if isinstance(filesystem, pafs.LocalFileSystem):
        with os.scandir(where) as found:
            return sorted(map(_local, found), key=lambda entry: entry.name)
    infos = filesystem.get_file_info(pafs.FileSelector(where))
    kinds = pafs.FileType
    return [
        Entry(i.base_name, i.type == kinds.Directory, i.size or 0, i.mtime_ns or 0, i.type == kinds.File)
        for i in sorted(infos, key=lambda info: info.base_name)
    ]


def _local(entry: "os.DirEntry[str]") -> Entry:
    try:
        info = entry.stat()
    except OSError:
        if not entry.is_symlink():
            raise
        return Entry(entry.name, False, is_link=True, is_dead=True)  # to nothing, or to itself
    mode = info.st_mode
    return Entry(entry.name, stat.S_ISDIR(mode), info.st_size, info.st_mtime_ns, stat.S_ISREG(mode), entry.is_symlink())


def walk(uri: str, top: str) -> Walk:
    """All files below the folder `top` of the data.

    Linked folders come last, so that what is passed over as met before is the link, not the real one.
    """
    made, real, linked = Walk(), [top], list[str]()
    visited = set[tuple[int, int]]()
    while real or linked:
        folder = real.pop() if real else linked.pop(0)
        if _is_visited(uri, folder, visited):
            made.pass_over(BACK, folder)
            continue
        for entry, path in ((e, f"{folder}/{e.name}") for e in list_folder(uri, folder)):
            if entry.is_folder and entry.is_hidden:
                made.pass_over("hidden folders", path)
            elif entry.is_hidden:
                continue
            elif entry.is_dead:
                made.pass_over(DEAD, path)
            elif not entry.is_folder:
                made.files[path] = entry
            elif entry.is_link and leads_back(uri, path):
                made.pass_over(BACK, path)
            else:
                made.folders.append(path)
                (linked if entry.is_link else real).append(path)
    return made


def leads_back(uri: str, path: str) -> bool:
    """Whether a link leads to a folder that holds the data's root, or to one within it that is listed anyway."""
    root = os.path.realpath(resolve(uri)[1])
    target = os.path.realpath(f"{root}/{path}")
    if os.path.commonpath([root, target]) == target:
        return True
    within = os.path.relpath(target, root).split(os.sep)
    return within[0] != os.pardir and not any(part.startswith(".") for part in within)


def _is_visited(uri: str, folder: str, visited: set[tuple[int, int]]) -> bool:
    """Whether a local folder was met before, under whatever path; from now on it was."""
    filesystem, root = resolve(uri)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        return False
    info = os.stat(f"{root}/{folder}")
    identity = (info.st_dev, info.st_ino)
    known = identity in visited
    visited.add(identity)
    return known


def is_hidden(folder: str) -> bool:
    """Whether a folder of that name is none of the data; . and .. are no names."""
    return (folder.startswith(".") and folder.strip(".") != "") or folder in HIDDEN


def is_utf8(name: str) -> bool:
    """Whether a local name's bytes are UTF-8: others come as lone surrogates, which no table or message can hold."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def escaped(name: str) -> str:
    r"""A name as it can be printed: bytes that are not UTF-8 as \xe9."""
    return name if is_utf8(name) else os.fsencode(name).decode("utf-8", "backslashreplace")
