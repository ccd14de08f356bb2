"""Images in tars: WebDataset's samples, whose members share a key (0001.jpg + 0001.cls or 0001.json), or folders of
images in a tar, or a tar per class, be they files of their own or members of one tar, as ImageNet's training set is.

A scan reads headers and labels only and records where each image's bytes lie, so that any run of images can later be
read on its own.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import pyarrow as pa

from d3hr_ray.datasets.decode import MAX_BYTES, NoImage
from d3hr_ray.datasets.files import list_files
from d3hr_ray.datasets.folders import escaped
from d3hr_ray.datasets.samples import NOTES, UNREADABLE, Contents, list_contents, list_samples
from d3hr_ray.datasets.source import Mapper, Scan, file_version, join_scans, scan_table
from d3hr_ray.datasets.tarfiles import BROKEN, Span, Tar
from d3hr_ray.filesystems import patient, resolve

TAR = ".tar"
CURES = {  # what makes a .tar of a compressed one
    ".tar.gz": "gunzip",
    ".tgz": "gunzip",
    ".tar.bz2": "bunzip2",
    ".tar.xz": "unxz",
    ".tar.zst": "unzstd",
}
TARS = (TAR, *CURES)


@dataclass(frozen=True)
class WebDataset:
    """`files` are tar names under `uri`, in order."""

    uri: str
    files: tuple[str, ...]

    def scan(self, each: Mapper) -> Scan:
        """Images in tar order, those of tars within tars last.

        Raises ValueError naming the tar that is cut off, and the sample without a label.
        """
        outer = list(each(partial(_scan_tar, self.uri), [Span(file) for file in self.files]))
        spans = [span for _, inner in outer for span in inner]
        inside = each(partial(_scan_tar, self.uri), spans) if spans else []
        made = join_scans([scan for scan, _ in (*outer, *inside)])
        told = {kind: found for kind, found in made.passed.items() if kind in NOTES}
        passed = {kind: found for kind, found in made.passed.items() if kind not in NOTES}
        notes = (f"--data {self.uri}: " + NOTES[kind].format(*found) for kind, found in told.items())
        return Scan(made.images, passed, tuple(notes))

    def read(self, entries: pa.Table) -> Iterator[bytes]:
        """Byte ranges of the tars; entries in order make it one forward pass."""
        filesystem, root = resolve(self.uri)
        rows = zip(*(entries[c].to_pylist() for c in ("file", "start", "length")), strict=True)
        for file, group in groupby(rows, key=lambda row: row[0]):
            with patient(filesystem.open_input_file)(f"{root}/{file}") as stream:
                for _, start, length in group:
                    if length in UNREADABLE:
                        yield NoImage(UNREADABLE[length])
                    else:
                        yield patient(stream.read_at)(min(length, MAX_BYTES + 1), start)


@patient
def _scan_tar(uri: str, span: Span) -> tuple[Scan, list[Span]]:
    """A tar's images, and the tars that lie in it."""
    filesystem, root = resolve(uri)
    where = f"{uri.rstrip('/')}/{escaped(span.name)}"
    with filesystem.open_input_file(f"{root}/{span.file}") as raw:
        contents = _contents(raw, span, where, "://" in uri)
    passed: dict[str, tuple[int, str]] = {}
    rows = [
        (f"{escaped(span.name)}/{escaped(sample.key)}", sample.label, span.file, sample.start, sample.length)
        for sample in list_samples(contents, span, where, passed)
    ]
    version = file_version(filesystem.get_file_info(f"{root}/{span.file}"))
    return Scan(scan_table(rows, version), passed), contents.tars if not span.inner else []


def _contents(raw: pa.NativeFile, span: Span, where: str, remote: bool) -> Contents:
    tar = Tar(raw, span, remote)
    try:
        return list_contents(tar, span)
    except BROKEN as error:
        if cure := tar.cure():
            raise ValueError(f"--data {where}: compressed, though it is called .tar; unpack it: {cure}") from error
        raise ValueError(
            f"--data {where}: not a whole uncompressed tar ({error}); it may be cut off: copy or pack it again"
        ) from error
    except ValueError as error:
        raise ValueError(f"--data {where}: {error}") from error


def list_tars(uri: str) -> WebDataset | None:
    """The tars of a folder, of a pattern such as DIR/train-*.tar, or a single tar; None if there are none."""
    found = list_files(uri, TARS)
    if found is None:
        return None
    for name in found[1]:
        if not name.lower().endswith(TAR):
            cure = next(cure for suffix, cure in CURES.items() if name.lower().endswith(suffix))
            raise ValueError(
                f"--data {uri}: {name} is compressed, and an image in it cannot be read on its own; "
                f"unpack it: {cure} {shlex.quote(name)}"
            )
    return WebDataset(*found)
