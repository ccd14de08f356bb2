"""Test images of a set, where its format tells which they are; other formats have them at a --data of their own."""

from dataclasses import replace

import pyarrow.fs as pafs

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.detect import detect
from d3hr_ray.datasets.files import get_kind, is_pattern
from d3hr_ray.datasets.idx import list_idx
from d3hr_ray.datasets.named import FORMATS, set_of
from d3hr_ray.filesystems import absolute, patient


def held_out_of(data: DataConfig) -> DataConfig | None:
    """Training images => the test images of the same set; None where nothing tells of them, or they are not there."""
    if name := set_of(data.uri, data.format):
        return DataConfig(f"{name}/test", FORMATS[name])
    try:
        return _idx_test(data)
    except ValueError:  # a folder of training images alone
        return None


def to_test_on(data: DataConfig) -> DataConfig:
    """What --data means where test images are asked for: of a set that it names as a whole, the test split."""
    name = set_of(data.uri, data.format)
    if name == data.uri:
        return replace(data, uri=f"{name}/test")
    test = None if name else _idx_test(data)
    return replace(data, uri=test.uri, format=test.format) if test else data


@patient
def _idx_test(data: DataConfig) -> DataConfig | None:
    """The images file of the test split in a folder of idx files; None for any other data."""
    uri = absolute(data.uri)
    if data.format not in ("auto", "idx") or is_pattern(uri) or get_kind(uri) != pafs.FileType.Directory:
        return None
    source = list_idx(uri, test=True) if data.format == "idx" or detect(uri) == "idx" else None
    return DataConfig(source.images_uri, "idx") if source else None
