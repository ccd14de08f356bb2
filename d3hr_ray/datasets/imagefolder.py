"""ImageNet's own layout: ROOT/<class>/**/<image>."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.fs as pafs

from d3hr_ray.datasets.source import IMAGE_SUFFIXES, Mapper, scan_table
from d3hr_ray.store import resolve


@dataclass(frozen=True)
class ImageFolder:
    """A folder with one folder per class, on any filesystem."""

    uri: str

    def scan(self, each: Mapper) -> pa.Table:
        """Images sorted by class folder, then path. Files without an image suffix are not images."""
        filesystem, root = resolve(self.uri)
        infos = filesystem.get_file_info(pafs.FileSelector(root))
        names = sorted(i.base_name for i in infos if i.type == pafs.FileType.Directory)
        names = [n for n in names if not n.startswith(".")]
        if not names:
            raise ValueError(f"--data {self.uri}: no class folders in it; the layout is FOLDER/<class>/<image>")
        return pa.concat_tables(each(partial(_scan_class, self.uri), names)).unify_dictionaries()

    def read(self, entries: pa.Table) -> Iterator[bytes]:
        """One file per image."""
        filesystem, root = resolve(self.uri)
        for image_id in entries["image_id"]:
            with filesystem.open_input_stream(f"{root}/{image_id.as_py()}") as stream:
                yield stream.read()


def _scan_class(uri: str, name: str) -> pa.Table:
    filesystem, root = resolve(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(f"{root}/{name}", recursive=True))
    paths = sorted(
        i.path[len(root.rstrip("/")) + 1 :]
        for i in infos
        if i.type == pafs.FileType.File
        and i.base_name.lower().endswith(IMAGE_SUFFIXES)
        and not i.base_name.startswith(".")
    )
    return scan_table([(path, name, "", 0, 0) for path in paths])
