"""ImageNet's own layout: ROOT/<class>/**/<image>, or ROOT/<group>/<class>/**/<image> with a class depth of 2."""

import re
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from d3hr_ray.datasets.decode import MAX_BYTES, NoImage
from d3hr_ray.datasets.folders import BACK, DEAD, Entry, Walk, escaped, is_utf8, leads_back, list_folder, walk
from d3hr_ray.datasets.imagenet import sorting
from d3hr_ray.datasets.source import IMAGE_SUFFIXES, READERS, Mapper, Scan, join_scans, scan_table, suffix_of, summary
from d3hr_ray.filesystems import patient, resolve, split_query

NO_FILE = -1  # the length of a pipe or socket with an image's name: reading it could wait for ever
BAD_NAME = -2  # the length of an image whose name is not UTF-8
UNREADABLE = {NO_FILE: NoImage("not a regular file"), BAD_NAME: NoImage("its name is not UTF-8; rename it")}
PACKED = {".parquet": "parquet", ".tar": "webdataset"}  # what may be the data, deeper than detection looks
SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
SPLIT_WORD = re.compile(rf"(?:^|[_.-])({'|'.join(SPLITS)}|dev|eval)\d*(?=$|[_.-])")  # seg_train, val2017; no testis


class EmptyClass(ValueError):
    """A class folder without images."""


@dataclass(frozen=True)
class ImageFolder:
    """A folder with one folder per class, on any filesystem. `strict`: every folder is a class and must hold images.

    `depth` is the level of the class folders: 1, or 2 if groups of classes lie above them. None is 1 where nothing
    speaks against it.
    """

    uri: str
    strict: bool = True
    depth: int | None = None

    def scan(self, each: Mapper) -> Scan:
        """Images sorted by folder, then path. Files without an image suffix are not images.

        Raises ValueError for a folder of splits, for a class folder without images, and where it is not clear which
        level is the class.
        """
        top = Walk()
        names = list(_top_folders(self.uri, self.strict, top))
        _refuse_splits(self.uri, names, self.depth)
        flat = list(filter(_is_image, top.files))
        if not names:
            raise ValueError(_no_classes(self.uri, flat, top))
        _pass_files(top, {path: entry for path, entry in top.files.items() if not _is_image(path)})
        for path in flat:
            top.pass_over("images outside of class folders", path)
        try:
            scans = list(each(partial(_scan_folder, self.uri, self.strict, self.depth), names))
        except EmptyClass as error:
            raise ValueError(f"{error}{f'. Or is it these: {_sort_them(self.uri, flat)}' if flat else ''}") from error
        made = join_scans([Scan(scan_table([]), top.passed), *scans])
        if self.depth is None and self.strict:  # classes that are chosen say by their names where they lie
            _refuse_lone_split(self.uri, names)
            _refuse_wrapped(self.uri, made.images)
        return Scan(made.images, made.passed, tuple(_notes(self.uri, made.images, self.depth)))

    def read(self, entries: pa.Table) -> Iterator[bytes]:
        """One file per image, read ahead by threads where storage is remote and each read waits."""
        read = partial(_read_file, self.uri)
        rows = (entries["image_id"].to_pylist(), entries["length"].to_pylist())
        if "://" not in self.uri:
            yield from map(read, *rows)
            return
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(read, *rows)


@patient
def _read_file(uri: str, image_id: str, length: int) -> bytes:
    if length in UNREADABLE:
        return UNREADABLE[length]
    filesystem, root = resolve(uri)
    with filesystem.open_input_stream(f"{root}/{image_id}") as stream:
        data: bytes = stream.read(MAX_BYTES + 1)
        return data


def _top_folders(uri: str, strict: bool, top: Walk) -> Iterator[str]:
    """The class folders; the other things beside them go to `top`. Raises ValueError for a class that is lost."""
    for entry in list_folder(uri):
        name = entry.name
        if entry.is_dead and not name.startswith("."):
            if strict and "." not in name:
                raise ValueError(f"--data {uri}: class folder {escaped(name)!r} is a dead link; mend or remove it")
            top.pass_over(DEAD, name)
        elif entry.is_folder and entry.is_hidden:
            top.pass_over("hidden folders", name)
        elif entry.is_hidden:
            continue
        elif not entry.is_folder:
            top.files[name] = entry
        elif entry.is_link and leads_back(uri, name):
            top.pass_over(BACK, name)
        elif is_utf8(name):
            yield name
        elif strict:
            raise ValueError(f"--data {uri}: the name of class folder '{escaped(name)}' is not UTF-8; rename it")
        else:
            top.pass_over("folders whose names are not UTF-8", name)


def _refuse_splits(uri: str, names: Sequence[str], depth: int | None) -> None:
    """Raise ValueError for train/ beside val/; or, unless the level is said, for seg_train/ and seg_test/ alone."""
    splits = [name for name in names if name.lower() in SPLITS]
    words = [tuple(SPLIT_WORD.findall(name.lower())) for name in names]
    cure = ""
    if len(splits) < 2 and depth is None and all(words) and len(set(words)) > 1:
        splits, cure = list(names), ", or --class-depth 1 if they are classes"
    if len(splits) > 1:
        train = next((name for name in splits if "train" in name.lower()), splits[0])
        raise ValueError(
            f"--data {uri}: its folders are several splits ({', '.join(splits)}); give one of them, such as --data "
            f"{_typed(uri, train)}{cure}"
        )


def _refuse_lone_split(uri: str, names: Sequence[str]) -> None:
    """Raise ValueError for val/<image>, where a split would be the only class."""
    if len(names) == 1 and names[0].lower() in SPLITS:
        raise ValueError(
            f"--data {uri}: {names[0]!r}, its only folder, is called as a split; give --data {_typed(uri, names[0])}, "
            "or --class-depth 1 if it is the class"
        )


def _refuse_wrapped(uri: str, images: pa.Table) -> None:
    """Raise ValueError if the images of classes, none of them in the class's own folder, lie in unlike ones within it.

    In like ones, as in Tiny-ImageNet's <class>/images/ or where an archive's name comes twice, they do not tell classes
    apart. Within a lone folder all levels are looked at.
    """
    deep, classes = _is_deep(images), images["class_name"].cast(pa.string())
    direct = pc.unique(classes.filter(pc.invert(deep)))
    apart = images["image_id"].filter(pc.and_(deep, pc.invert(pc.is_in(classes, direct))))
    folders = sorted(pc.unique(pc.replace_substring_regex(apart, "/[^/]*$", "")).to_pylist(), reverse=True)
    lone = len(pc.unique(classes)) == 1
    inner = {_within(folder, lone): folder for folder in folders}
    if len(inner) < 2:
        return
    first, other = sorted(inner.values())[:2]
    raise ValueError(
        f"--data {uri}: its images lie in {first!r}, {other!r}{', ...' if len(inner) > 2 else ''}, so it is not clear "
        f"which folders are the classes: give --class-depth 1 for {first.partition('/')[0]!r} and those beside it, "
        f"--class-depth 2 for the folders in them; or as --data the folder that all class folders are in"
    )


def _within(folder: str, whole: bool) -> str:
    """What a folder within a class's is called: its `whole` path there, or the first part; .. if as the class is."""
    name, _, rest = folder.partition("/")
    own = rest if whole else rest.partition("/")[0]
    return ".." if own == name else own


def _is_deep(images: pa.Table) -> pa.ChunkedArray:
    """Whether each image lies in a folder within its class's."""
    return pc.greater(pc.count_substring(images["image_id"], "/"), 1)


def _typed(uri: str, folder: str) -> str:
    """A folder of the data as a shell takes it."""
    base, query = split_query(uri)
    return shlex.quote(f"{base}/{folder}{query}")


def _no_classes(uri: str, images: Sequence[str], top: Walk) -> str:
    """What to do about a folder without class folders."""
    if images:
        return f"--data {uri}: no class folders, but {_sort_them(uri, images)}"
    passed = "".join(f"; it has {words}" for words in summary(top.passed))
    return f"--data {uri}: no class folders in it; the layout is FOLDER/<class>/<image>{passed}"


def _sort_them(uri: str, images: Sequence[str]) -> str:
    """How images that lie flat get class folders."""
    first = min(images)
    return (
        f"{len(images):,} images (first: {escaped(first)}) in no folder, so nothing says their classes; the layout is "
        f"FOLDER/<class>/<image>. With a list of true classes, sort them by: cd {shlex.quote(uri)} && {sorting(first)}"
    )


def _scan_folder(uri: str, strict: bool, depth: int | None, name: str) -> Scan:
    """The images of a class folder, or of a group of them."""
    found = walk(uri, name)
    images = {path: entry for path, entry in found.files.items() if _is_image(path)}
    _pass_files(found, {path: entry for path, entry in found.files.items() if path not in images})
    if depth is None:
        _refuse_levels(uri, name, images)
    level = depth or 1
    for path in [path for path in images if path.count("/") < level]:
        found.pass_over("images above the class folders", path)
        images.pop(path)
    classes = [path for path in (name, *found.folders) if path.count("/") == level - 1] or [name]
    if strict and (empty := set(classes) - {_class_folder(path, level) for path in images}):
        words = ", ".join(summary(found.passed))
        packed = next((form for suffix, form in PACKED.items() if suffix in found.passed), None)
        raise EmptyClass(
            f"--data {uri}: class folder '{escaped(min(empty))}' holds no image{words and f' (passed over: {words})'}; "
            f"fill it, remove it, or choose --classes{(packed and f', or give --format {packed}') or ''}"
        )
    rows = sorted((escaped(path), *_row(path, entry, level)) for path, entry in images.items())
    table = scan_table([(path, label, "", 0, length) for path, label, length, _ in rows], [row[3] for row in rows])
    return Scan(table, found.passed)


def _row(path: str, entry: Entry, level: int) -> tuple[str, int, int]:
    """The class, length and version of an image. The length is no place; it lets the digest see a replaced image."""
    length = entry.size if entry.regular else NO_FILE
    label = escaped(path.split("/")[level - 1])
    return label, length if is_utf8(path) else BAD_NAME, entry.modified


def _class_folder(path: str, level: int) -> str:
    return "/".join(path.split("/")[:level])


def _refuse_levels(uri: str, name: str, images: dict[str, Entry]) -> None:
    """Raise ValueError for a folder whose images lie in several folders: each may be a class, or all of them one."""
    inner = sorted({escaped(path.split("/")[1]) for path in images if path.count("/") > 1})
    if len(inner) < 2:
        return
    split = f"; or give --data {_typed(uri, name)}, if {name} is a split" if name.lower() in SPLITS else ""
    raise ValueError(
        f"--data {uri}: folder {name!r} holds {len(inner)} folders of images ({', '.join(inner[:3])}"
        f"{', ...' if len(inner) > 3 else ''}), so it is not clear which are the classes: give --class-depth 1 for "
        f"{name!r} and those beside it, --class-depth 2 for {inner[0]!r}, {inner[1]!r} and those beside them{split}"
    )


def _notes(uri: str, images: pa.Table, depth: int | None) -> Iterator[str]:
    """What people should know of the images that are listed."""
    deep = images.filter(_is_deep(images))
    if depth is None and len(deep):
        yield (
            f"--data {uri}: {len(pc.unique(deep['class_name'])):,} classes hold images in a folder within their own "
            f"(first: {deep['image_id'][0]}); each is one class"
        )
    bad = images.filter(pc.equal(images["length"], BAD_NAME))
    if len(bad):
        yield (
            f"--data {uri}: {len(bad):,} images are rejected because their names are not UTF-8 "
            f"(first: {bad['image_id'][0]}); rename them"
        )


def _pass_files(found: Walk, files: dict[str, Entry]) -> None:
    for path in sorted(files):
        found.pass_over(suffix_of(escaped(path)), path)


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES)
