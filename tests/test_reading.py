"""Reading: every source gives back the entries that are asked for, in any order, as often as asked."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import encode, make_images, write_imagefolder, write_parquet, write_webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from idx_files import pixels, write_split

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets import parquetread, reading
from d3hr_ray.datasets.listing import Listing, list_images
from d3hr_ray.datasets.reading import Reading
from d3hr_ray.evaluation.baselines import random_set
from d3hr_ray.evaluation.comparison import list_real

IMAGES = make_images(9)
WRITERS = {"imagefolder": write_imagefolder, "webdataset": write_webdataset, "parquet": write_parquet}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple[Listing, list[bytes]]]:
    """Every kind of source, with the bytes of its first 27 images."""
    root, found = tmp_path_factory.mktemp("sources"), {}
    for form, write in WRITERS.items():
        uri = write(root / form, IMAGES)
        found[form] = (list_images(DataConfig(uri), 1000, None), [data for _, _, data in IMAGES])
    for name in ("digits", "digits-affine"):
        listing = list_images(DataConfig(name), 10, None)
        found[name] = (listing, [next(listing.source.read(listing.entries.slice(i, 1))) for i in range(27)])
    for name in ("idx", "idx packed"):
        write_split(root / name, "train", 27, packed=name == "idx packed")
        found[name] = (list_images(DataConfig(str(root / name)), 10, None), [pgm(image) for image in pixels(27)])
    return found


def pgm(image: np.ndarray) -> bytes:
    return f"P5 {image.shape[1]} {image.shape[0]} 255\n".encode() + image.tobytes()


@pytest.mark.parametrize("form", [*WRITERS, "digits", "digits-affine", "idx", "idx packed"])
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, 26), max_size=40), held=st.sampled_from([0, 3000, 1 << 20]))
def test_entries_come_back_in_the_order_asked(sources, form, rows, held):
    """Shuffled, repeated or none, and however few bytes may wait for their turn."""
    listing, images = sources[form]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(parquetread, "HELD_BYTES", held)
        entries = listing.entries.take(pa.array(rows, pa.int64()))
        assert list(listing.source.read(entries)) == [images[i] for i in rows]


def test_each_row_group_is_read_once_in_any_order(tmp_path, monkeypatch):
    listing = list_images(DataConfig(write_parquet(tmp_path, IMAGES, per_file=27, group=5)), 1000, None)
    read, groups = parquetread._read_group, []

    def counting(file, group, *rest):
        groups.append(group)
        return read(file, group, *rest)

    monkeypatch.setattr(parquetread, "_read_group", counting)
    order = np.random.default_rng(0).permutation(27)
    list(listing.source.read(listing.entries.take(order)))
    assert groups == [0, 1, 2, 3, 4, 5]


@pytest.fixture
def shuffled(tmp_path) -> str:
    """Fifty images over many row groups, labels in no order: class k is the grey 20 k + 10."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 5)).tolist()
    rows = [encode(np.full((16, 16, 3), 20 * label + 10, np.uint8)) for label in labels]
    table = pa.table({"image": [{"bytes": data, "path": None} for data in rows], "label": labels})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=4)
    return str(tmp_path / "train.parquet")


def test_random_real_images_of_shuffled_parquet_are_of_their_class(shuffled):
    classes = tuple(map(str, range(10)))
    listing = list_real(DataConfig(shuffled), classes, None)
    for seed in range(3):
        images = random_set(listing, classes, 16, 3, seed).load()
        assert images.labels.tolist() == [k for k in range(10) for _ in range(3)]
        assert (images.pixels == (20 * images.labels + 10)[:, None, None, None]).all()


def test_rows_of_a_listing_keep_their_order_over_many_parts(shuffled, monkeypatch):
    monkeypatch.setattr(reading, "READ_AT_ONCE", 7)
    listing = list_images(DataConfig(shuffled), 10, None)
    rows = np.random.default_rng(2).integers(0, 50, 60)
    for chosen in (rows, None):
        images = Reading.of(listing, listing.classes.sources, 16, chosen)
        found = images.load()
        assert (found.pixels == (20 * found.labels + 10)[:, None, None, None]).all()
        assert found.labels.tolist() == [
            listing.entries["label"][int(i)].as_py() for i in (range(50) if chosen is None else rows)
        ]
        assert images.survey()[0] == found.digest
