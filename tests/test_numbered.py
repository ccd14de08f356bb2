"""Sets whose class folders are numbered, as RDED's and SRe2L's are."""

from dataclasses import replace

import numpy as np
import pytest
from idx_files import write_set as write_idx
from stripes import stripes, write_set

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.images import Images
from d3hr_ray.evaluation.comparison import open_comparison
from d3hr_ray.evaluation.numbered import numbers
from d3hr_ray.evaluation.recipes import Recipe

pytestmark = pytest.mark.usefixtures("ray_session")  # in which a comparison holds its test images
WNIDS = ("n02086240", "n01440764", "n03445777")  # not in order


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("00000", "00001", "00002"), [0, 1, 2]),
        (("new002", "new000", "new001"), [2, 0, 1]),
        (("0", "1", "10"), None),
        (("class_0", "class1"), None),
        (("cat", "dog"), None),
        (WNIDS, None),
    ],
)
def test_what_is_numbered(names, wanted):
    assert numbers(names) == wanted


def opened(tmp_path, folders, real=WNIDS):
    """A comparison of a set in folders of these names, its classes being those of `real` in sorted order."""
    images = stripes(2)
    path = write_set(tmp_path / "theirs", replace(images, classes=folders))
    data = write_set(tmp_path / "real", replace(images, classes=tuple(sorted(real))))
    return images, open_comparison((path,), DataConfig(f"{data}/train"), None, ["convnet-d3"], None, Recipe())


@pytest.mark.parametrize("folders", [("00000", "00001", "00002"), ("new000", "new001", "new002"), ("0", "1", "2")])
def test_the_nth_number_is_the_datas_nth_class(folders, tmp_path):
    images, made = opened(tmp_path, folders)
    assert made.test.classes == made.sets[0].images.classes == made.sets[0].wnids == tuple(sorted(WNIDS))
    own, real = made.sets[0].images.load(), made.test.load()
    assert own.labels.tolist() == images.labels.tolist()
    np.testing.assert_array_equal(own.pixels, images.pixels)
    np.testing.assert_array_equal(real.pixels, images.pixels)
    assert f"theirs: its folders are numbered: {folders[0]} is taken for n01440764, ..., {folders[2]} for" in "".join(
        made.notes
    )


def twelve(classes) -> Images:
    """An image of each of 12 classes, the same for the same place."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    return Images(pixels, np.arange(12), tuple(classes))


PLAIN, PADDED = [str(k) for k in range(12)], [f"{k:05d}" for k in range(12)]


@pytest.mark.parametrize("folders", [PLAIN, PADDED], ids=["plain", "padded"])
@pytest.mark.parametrize("names", ["abcdefghijkl", PLAIN, PADDED], ids=["letters", "plain", "padded"])
def test_numbers_are_counted_and_not_spelt(folders, names, tmp_path):
    """As text 10 comes before 2. In a set, and in data that are numbered too, the eleventh class is 10 all the same."""
    images = twelve(names)
    path = write_set(tmp_path / "theirs", replace(images, classes=tuple(folders)))
    data = DataConfig(f"{write_set(tmp_path / 'real', images)}/train")
    made = open_comparison((path,), data, None, ["convnet-d3"], None, Recipe())
    own, real = made.sets[0].images.load(), made.test.load()
    assert own.classes == real.classes and set(own.classes) == set(names)
    for found in (own, real):
        by_name = {found.classes[label]: pixels for label, pixels in zip(found.labels, found.pixels, strict=True)}
        np.testing.assert_array_equal([by_name[name] for name in names], images.pixels)


def test_two_numberings_are_one_whichever_comes_first(tmp_path):
    paths = [write_set(tmp_path / kind, twelve(names)) for kind, names in (("plain", PLAIN), ("padded", PADDED))]
    data = DataConfig(f"{write_set(tmp_path / 'real', twelve(PLAIN))}/train")
    for order in (paths, paths[::-1]):
        made = open_comparison(tuple(order), data, None, ["convnet-d3"], None, Recipe())
        first, second = (found.images.load() for found in made.sets)
        np.testing.assert_array_equal(first.pixels[np.argsort(first.labels)], second.pixels[np.argsort(second.labels)])


def test_numbers_that_the_data_share_in_part_are_refused(tmp_path):
    """Class 1 of a set of 0, 1, 2 is not the second of data called 1, 2, 3."""
    path = write_set(tmp_path / "theirs", replace(stripes(1), classes=("0", "1", "2")))
    data = DataConfig(f"{write_set(tmp_path / 'real', replace(stripes(1), classes=('1', '2', '3')))}/train")
    with pytest.raises(ValueError, match="the set has 0, 1, 2, the data 1, 2, 3"):
        open_comparison((path,), data, None, ["convnet-d3"], None, Recipe())


def test_a_named_set_without_wnids_does_not_say_what_numbers_are(tmp_path):
    named = write_set(tmp_path / "named", replace(stripes(1), classes=("trouser", "bag", "coat")))
    path = write_set(tmp_path / "theirs", replace(stripes(1), classes=("0", "1", "2")))
    data = DataConfig(f"{named}/train")
    with pytest.raises(ValueError, match="differ in classes"):
        open_comparison((named, path), data, None, ["convnet-d3"], None, Recipe())


def test_another_number_of_classes_is_refused(tmp_path):
    path = write_set(tmp_path / "theirs", replace(stripes(1), classes=("00000", "00001", "00002")))
    data = DataConfig(f"{write_set(tmp_path / 'real', stripes(1, classes=2))}/train")
    with pytest.raises(
        ValueError,
        match=r"folders called 00000, 00001, 00002 are the data's classes in order, and --data \S+ has 2, not 3",
    ):
        open_comparison((path,), data, None, ["convnet-d3"], None, Recipe())


def test_numbers_of_data_in_no_folders_are_not_guessed(tmp_path):
    """Fashion-MNIST's numbers are labels, in an order that its names do not have."""
    draw = np.random.default_rng(0)
    images = replace(
        stripes(1),
        pixels=draw.integers(0, 256, (10, 16, 16, 3), np.uint8),
        labels=np.arange(10),
        classes=tuple("0123456789"),
    )
    path = write_set(tmp_path / "theirs", images)
    data = DataConfig(write_idx(tmp_path / "FashionMNIST" / "raw"))
    with pytest.raises(ValueError, match=r"the set has 0, 1, 2, \.\.\., 9 \(10 classes\), the data Ankle boot, "):
        open_comparison((path,), data, None, ["convnet-d3"], None, Recipe())
