"""What --data names: files, folders, patterns; and the pattern that a message offers works as it is typed."""

import gzip
import shlex
from pathlib import Path

import pytest
from conftest import make_images, write_parquet, write_webdataset

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.files import list_files
from d3hr_ray.datasets.listing import open_source
from d3hr_ray.datasets.parquet import ParquetImages
from d3hr_ray.datasets.patterns import expand_braces
from d3hr_ray.datasets.webdataset import WebDataset

BOTH = (".tar", ".parquet")


def lay(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


HUB = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet")
LAYOUTS = {
    "hub": ((*HUB, "data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"), HUB),
    "converted": (("train/0000.parquet", "train/0001.parquet", "test/0000.parquet"), None),
    "timm": (("imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar", "imagenet1k-validation-00.tar"), None),
    "languages": (("en/train/0.parquet", "fr/train/0.parquet", "en/test/0.parquet"), None),
    "at the end": (("a_train.parquet", "b_train.parquet", "a_test.parquet"), None),
    "one file each": (("train.parquet", "test.parquet"), None),
    "signs": (("a[1] {x,y}/train-0.parquet", "a[1] {x,y}/train-1.parquet", "a[1] {x,y}/test-0.parquet"), None),
    "of any depth": (("train/a/0.parquet", "train/1.parquet", "test/0.parquet"), None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pattern_offered_for_several_splits_works_as_typed(tmp_path, layout):
    names, train = LAYOUTS[layout]
    lay(tmp_path, *names)
    with pytest.raises(ValueError, match="of several splits") as refused:
        list_files(str(tmp_path), BOTH)
    offered = shlex.split(str(refused.value).partition("such as ")[2].replace("--data ", "").replace(" or ", " "))
    found = [list_files(uri, BOTH) for uri in offered]
    assert all(found)
    named = [sorted(f"{folder}/{name}" for name in inside) for folder, inside in found]
    wanted = train or [name for name in names if "train" in name]
    assert sorted(f"{tmp_path}/{name}" for name in wanted) in named
    assert sorted(name for one in named for name in one) == sorted(f"{tmp_path}/{name}" for name in names)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("a/x?.tar", "a/x1.tar a/x2.tar"),
        ("a/x[0-1].tar", "a/x1.tar"),
        ("*/x1.tar", "a/x1.tar b/x1.tar"),
        ("**/x1.tar", "a/x1.tar b/c/x1.tar b/x1.tar"),
        ("a/x{1..2}.tar", "a/x1.tar a/x2.tar"),
        ("{a,b}/x1.tar", "a/x1.tar b/x1.tar"),
        ("{a,b/c}/x*.tar", "a/x1.tar a/x2.tar b/c/x1.tar"),
        ("[b]", "b/c/x1.tar b/x1.tar"),
        ("b*/", "b/c/x1.tar b/x1.tar"),
        ("a/y*.tar", ""),
    ],
)
def test_patterns_in_any_part_of_a_path(tmp_path, pattern, wanted):
    lay(tmp_path, "a/x1.tar", "a/x2.tar", "a/x1.txt", "a/._x1.tar", "b/x1.tar", "b/c/x1.tar", "b/.cache/x1.tar")
    found = list_files(f"{tmp_path}/{pattern}".rstrip("/"), BOTH)
    folder, names = found or (str(tmp_path), ())
    assert [f"{folder}/{name}" for name in names] == [f"{tmp_path}/{name}" for name in wanted.split()]


def test_braces_are_a_shells_and_every_file_they_name_must_be_there(tmp_path):
    assert expand_braces("x-{08..11}{a,b}") == [f"x-{n}{c}" for n in ("08", "09", "10", "11") for c in "ab"]
    assert expand_braces("x{y}z") == ["x{y}z"]
    lay(tmp_path, "x-0.tar", "x-2.tar")
    with pytest.raises(ValueError, match=r"names 4 files, of which 2 are not there, such as x-1\.tar"):
        list_files(f"{tmp_path}/x-{{0..3}}.tar", BOTH)
    with pytest.raises(ValueError, match=r"more than 100,000; use \*"):
        list_files(f"{tmp_path}/x-{{0..99999999}}.tar", BOTH)
    with pytest.raises(ValueError, match=r"no \.tar, \.parquet or idx file matches"):
        open_source(DataConfig(f"{tmp_path}/y-?.tar"))


def test_a_name_with_signs_is_taken_to_the_letter_where_it_is_there(tmp_path):
    lay(tmp_path, "a[1]/x{1,2}.tar", "a1/x1.tar")
    assert list_files(f"{tmp_path}/a[1]", BOTH) == (f"{tmp_path}/a[1]", ("x{1,2}.tar",))
    assert list_files(f"{tmp_path}/a[1]/x{{1,2}}.tar", BOTH) == (f"{tmp_path}/a[1]", ("x{1,2}.tar",))


@pytest.mark.parametrize("suffix", ["parquet", "pq", "parq", "PQ"])
def test_other_suffixes_and_patterns_are_detected_as_parquet(tmp_path, suffix):
    write_parquet(tmp_path, make_images(2), per_file=3)
    for path in tmp_path.iterdir():
        path.rename(path.with_suffix(f".{suffix}"))
    (tmp_path / f"._x.{suffix}").write_bytes(b"\0\5\x16\7")
    for uri in (tmp_path, tmp_path / "data-0000?.*", tmp_path / f"data-0000[0-3].{suffix}"):
        source = open_source(DataConfig(str(uri)))
        assert isinstance(source, ParquetImages) and len(source.files) == 2


def test_links_that_lead_round_list_no_file_twice(tmp_path):
    lay(tmp_path, "a/0.tar")
    (tmp_path / "a" / "back").symlink_to("..")
    (tmp_path / "b").symlink_to("a")
    for uri in (tmp_path, f"{tmp_path}/**"):
        assert list_files(str(uri), BOTH) == (str(tmp_path), ("a/0.tar",))


def test_a_tar_whose_name_is_not_utf8_is_refused_by_name(tmp_path):
    lay(tmp_path, "a.tar", "caf\udce9.txt")
    assert list_files(str(tmp_path), BOTH) == (str(tmp_path), ("a.tar",))
    lay(tmp_path, "caf\udce9.tar")
    for uri in (tmp_path, f"{tmp_path}/c*.tar"):
        with pytest.raises(ValueError, match=r"the name of caf\\xe9\.tar is not UTF-8; rename the file"):
            list_files(str(uri), BOTH)


def test_files_of_a_mac_beside_tars_are_no_tars(tmp_path):
    write_webdataset(tmp_path, make_images(2))
    (tmp_path / "._a.tar").write_bytes(b"\0\5\x16\7junk")
    source = open_source(DataConfig(str(tmp_path)))
    assert isinstance(source, WebDataset) and source.files == ("shard-00000.tar",)


@pytest.mark.parametrize(("suffix", "cure"), [(".tar.gz", "gunzip"), (".tgz", "gunzip"), (".tar.zst", "unzstd")])
def test_a_compressed_tar_is_refused_with_its_cure(tmp_path, suffix, cure):
    write_webdataset(tmp_path, make_images(2))
    (tmp_path / f"a b{suffix}").write_bytes(gzip.compress(b"x"))
    for uri in (tmp_path, tmp_path / f"a b{suffix}"):
        with pytest.raises(ValueError, match=f"a b{suffix} is compressed.* unpack it: {cure} 'a b{suffix}'"):
            open_source(DataConfig(str(uri)))
