"""A tar's members => its samples: which of them are images, what is the label of each, and what was read how.

Every sample that a tar names is listed; those whose image cannot be read are rejected, and so counted, later.
"""

import json
import posixpath
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from d3hr_ray.datasets.folders import escaped, is_hidden
from d3hr_ray.datasets.imagenet import VAL, is_wnid, sorting
from d3hr_ray.datasets.source import IMAGE_SUFFIXES, UNREAD_SUFFIXES, add_passed, suffix_of
from d3hr_ray.datasets.tarfiles import Member, Span, Tar, followed

PICTURES = (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)
LABELS = (".cls", ".json")
JSON_KEYS = ("label", "cls", "class", "class_id", "class_name")
MAX_LABEL_BYTES = 1 << 20
NO_MEMBER, NO_FILE = -1, -2  # lengths of what cannot be read
UNREADABLE = {NO_MEMBER: "the sample has a label and no image", NO_FILE: "a link or device that is no file of the tar"}
REPLACED, DOTS, PARTS, FOLDERS = "replaced", "dots", "parts", "folders"
NOTES = {  # with how many, and the first
    REPLACED: "{:,} members come twice in their tar: the last one counts, as when it is unpacked (first: {})",
    DOTS: "{:,} samples are named up to their last dot, because up to the first, webdataset's rule, several would be "
    "one (first: {})",
    PARTS: "{:,} images are other parts of a sample that has an image of its plain name, and not taken (first: {})",
    FOLDERS: "the class of {:,} images without .cls and .json is the name of their folder or tar (first: {})",
}
Teller = Callable[[str, str], None]  # counts a kind of NOTES, or a suffix that is passed over, with a member's name
Label = str | ValueError | None  # its text, what is wrong with it, or no label in it


@dataclass
class Contents:
    """A tar's files by name, the later of two alike; labels and tars in it; names that came twice; what is hidden."""

    files: dict[str, Member] = field(default_factory=dict)
    labels: dict[str, Label] = field(default_factory=dict)
    tars: list[Span] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    hidden: dict[str, Member] = field(default_factory=dict)

    @property
    def targets(self) -> Mapping[str, Member]:
        """What links may lead to."""
        return ChainMap(self.files, self.hidden)


@dataclass(frozen=True)
class Sample:
    """An image's key in its tar, its class, and the range of its bytes."""

    key: str
    label: str
    start: int
    length: int


def list_contents(tar: Tar, span: Span) -> Contents:
    """Read a tar's headers and labels."""
    made = Contents()
    for member in tar.members():
        if posixpath.basename(member.name).startswith("."):
            continue
        if any(is_hidden(part) for part in posixpath.dirname(member.name).split("/")):
            made.hidden[member.name] = member
            continue
        if member.name in made.files:
            made.replaced.append(member.name)
        made.files[member.name] = member
        if _suffix(member.name) in LABELS:
            made.labels[member.name] = _label(tar, member) if member.is_file else None
    for name, member in made.files.items():
        target = followed(member, made.targets)
        if not member.is_file and target is not None and name in made.labels:
            made.labels[name] = made.labels.get(target.name) or _label(tar, target, name)
        if _suffix(name) == ".tar" and member.is_file and not span.inner:
            made.tars.append(Span(span.file, name, member.start, member.size))
    return made


def _label(tar: Tar, member: Member, name: str | None = None) -> Label:
    """A label's text, under the name that says what it is."""
    name = name or member.name
    if member.size > MAX_LABEL_BYTES:
        return ValueError(f"label {name!r} is {member.size} bytes long")
    data = tar.read(member)
    try:
        if _suffix(name) == ".cls":
            return data.decode("utf-8-sig").strip() or None
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        return ValueError(f"label {name!r} cannot be read ({error}); write it in UTF-8")
    found = [value[k] for k in JSON_KEYS if k in value] if isinstance(value, dict) else [value]
    return str(found[0]) if found and isinstance(found[0], int | str) else None


def list_samples(contents: Contents, span: Span, where: str, passed: dict[str, tuple[int, str]]) -> Iterator[Sample]:
    """The samples in the tar's order; what is to be told is added to `passed`. Raises ValueError without a label."""
    groups: dict[str, list[str]] = {}
    for name in contents.files:
        groups.setdefault(_split(name)[0], []).append(name)

    def tell(kind: str, name: str) -> None:
        add_passed(passed, {kind: (1, escaped(f"{span.name}/{name}"))})

    for name in contents.replaced:
        tell(REPLACED, name)
    for name in contents.hidden:
        tell("files in hidden folders", name)
    images = [name for name in contents.files if _suffix(name) in PICTURES]
    if images and not any(isinstance(label, str | ValueError) for label in contents.labels.values()):
        class_of = _classes_of(images, span, where)
        for name in images:
            tell(FOLDERS, name)
            yield _sample(contents, name, name, class_of[name])
        images_alone = set(images)
        groups = {key: [n for n in names if n not in images_alone] for key, names in groups.items()}
    for key, names in groups.items():
        yield from _of_key(contents, key, names, where, tell)


def _of_key(contents: Contents, key: str, names: Sequence[str], where: str, tell: Teller) -> Iterator[Sample]:
    """The samples of members that share a key, which is one by webdataset's rule."""
    images = [name for name in names if _suffix(name) in PICTURES]
    labels = [name for name in names if name in contents.labels]
    apart = {_stem(name): [n for n in labels if _stem(n) == _stem(name)] for name in images}
    plain = [name for name in images if _stem(name) == key]
    if len(images) > 1 and len(apart) == len(images) and all(apart.values()):
        for image, (stem, own) in zip(images, apart.items(), strict=True):
            tell(DOTS, stem)
            yield _sample(contents, stem, image, _first_label(contents, stem, own, where))
    elif len(images) > 1 and len(plain) != 1:
        raise ValueError(f"--data {where}: sample {key!r} has two images; give each its own key")
    elif images:
        image = plain[0] if plain else images[0]
        for other in images:
            if other != image:
                tell(PARTS, other)
        nearest = sorted(labels, key=lambda name: _stem(name) != _stem(image))
        yield _sample(contents, key, image, _first_label(contents, key, nearest, where))
    elif any(contents.labels[name] is not None for name in labels):
        yield _sample(contents, key, None, _first_label(contents, key, labels, where))
    else:
        inner = {span.inner for span in contents.tars}
        for name in names:
            if name not in inner:
                tell(suffix_of(name), name)


def _first_label(contents: Contents, key: str, names: Sequence[str], where: str) -> str:
    for name in names:
        label = contents.labels[name]
        if isinstance(label, ValueError):
            raise ValueError(f"--data {where}: {label}")
        if label is not None:
            return label
    raise ValueError(f"--data {where}: sample {key!r} has no .cls and no .json with a label in this tar")


def _sample(contents: Contents, key: str, image: str | None, label: str) -> Sample:
    if image is None:
        return Sample(key, label, 0, NO_MEMBER)
    member = followed(contents.files[image], contents.targets)
    return Sample(key, label, 0, NO_FILE) if member is None else Sample(key, label, member.start, member.size)


def _classes_of(images: Sequence[str], span: Span, where: str) -> dict[str, str]:
    """The class of each image of a tar without labels: the tar's name if it is a wnid, or the image's folder.

    Raises ValueError where neither says it, or where two levels of folders could.
    """
    folders = {name: _class_folder(name) for name in images}
    if is_wnid(span.stem) or (span.inner and not any(folders.values())):
        return dict.fromkeys(images, escaped(span.stem))
    bare = next((name for name, folder in folders.items() if not folder), None)
    if bare is not None:
        if bare.startswith(VAL):
            raise ValueError(
                f"--data {where}: nothing in this tar says the classes of its images (first: {escaped(bare)}); unpack "
                "it to a folder of its own, put the list of true classes there, and sort them there by: "
                + sorting(bare)
            )
        raise ValueError(
            f"--data {where}: sample {_split(bare)[0]!r} has no .cls and no .json with a label in this tar, and no "
            "folder or wnid for the tar's name says its class; pack it with labels, or as <class>/<image>"
        )
    shared = posixpath.commonpath([posixpath.dirname(f"{folder}/") for folder in set(folders.values())])
    levels = {posixpath.relpath(folder, shared or ".") for folder in set(folders.values())}
    if deep := sorted(level for level in levels if "/" in level or (level == "." and len(levels) > 1)):
        raise ValueError(
            f"--data {where}: folders of images lie at several levels, such as {escaped(deep[0])!r}; which is the "
            "class? unpack it, and say --class-depth, or name one split with --data"
        )
    return {name: escaped(posixpath.basename(folder)) for name, folder in folders.items()}


def _class_folder(name: str) -> str:
    """The folder that an image lies in, or the one above images/, which is Tiny-ImageNet's layout."""
    folder = posixpath.dirname(name)
    return posixpath.dirname(folder) if posixpath.basename(folder) == "images" else folder


def _split(name: str) -> tuple[str, str]:
    """Member name => (key, suffix): the key ends at the base name's first dot, as WebDataset has it."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _stem(name: str) -> str:
    """A name up to its last dot."""
    return posixpath.splitext(name)[0]


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()
