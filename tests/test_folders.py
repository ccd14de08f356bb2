"""Image folders as people have them: links, hidden folders, groups, splits, names in any bytes."""

import os
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_images, write_parquet, write_webdataset

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.decode import RejectedImage, decode
from d3hr_ray.datasets.imagefolder import ImageFolder
from d3hr_ray.datasets.listing import Listing, list_images, open_source
from d3hr_ray.datasets.source import thread_map

IMAGE = make_images(1)[0][2]
TWO = ("n01440764", "n01443537")


def put(root: Path, *paths: str, data: bytes = IMAGE) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def folders(root: Path, *classes: str, count: int = 3) -> None:
    put(root, *(f"{name}/{name}_{i}.png" for name in classes or TWO for i in range(count)))


def listed(uri: object, **options) -> Listing:
    """With the classes that are found, as pretraining lists."""
    data = DataConfig(str(uri), **options)
    names = sorted(set(open_source(data).scan(thread_map).images["class_name"].to_pylist()))
    return list_images(data, len(names), names)


def refusal(uri: object, **options) -> str:
    with pytest.raises(ValueError) as error:
        listed(uri, **options)
    return str(error.value)


def test_dead_links_are_counted_and_named(tmp_path):
    folders(tmp_path)
    (tmp_path / TWO[0] / "dead.png").symlink_to("/gone/3.png")
    (tmp_path / TWO[0] / "self.png").symlink_to("self.png")
    (tmp_path / "notes.txt").symlink_to("/gone/notes.txt")
    found = listed(tmp_path)
    assert found.counts() == [3, 3]
    assert [rows.tolist() for rows in found.rows()] == [[0, 1, 2], [3, 4, 5]]
    assert found.notes == (f"--data {tmp_path}: not taken as images: 3 dead links (first: notes.txt)",)


def test_a_class_that_vanished_with_its_links_is_refused(tmp_path):
    folders(tmp_path)
    (tmp_path / "n02102040").symlink_to("/gone/class")
    assert "class folder 'n02102040' is a dead link" in refusal(tmp_path)
    assert listed(tmp_path, classes=TWO).counts() == [3, 3]  # not one of those that are asked for
    (tmp_path / "n02102040").unlink()
    (tmp_path / "n02102040").mkdir()
    (tmp_path / "n02102040" / "0.png").symlink_to("/gone/0.png")
    assert "'n02102040' holds no image (passed over: 1 dead links (first: n02102040/0.png))" in refusal(tmp_path)


@pytest.mark.parametrize("target", ["..", ".", f"../{TWO[1]}", "../.."])
def test_every_real_folder_is_visited_once(tmp_path, target):
    root = tmp_path / "data"
    folders(root)
    (root / TWO[0] / "all").symlink_to(target)
    found = listed(root)
    assert found.counts() == [3, 3]
    assert f"1 links back into the data (first: {TWO[0]}/all)" in found.notes[0]


def test_links_that_lead_elsewhere_are_followed(tmp_path):
    folders(tmp_path / "store")
    (tmp_path / "data" / "animals").mkdir(parents=True)
    (tmp_path / "data" / TWO[0]).symlink_to(tmp_path / "store" / TWO[0])
    for name in ("first", "again"):
        (tmp_path / "data" / "animals" / name).symlink_to(tmp_path / "store" / TWO[1])
    found = listed(tmp_path / "data")
    assert found.counts() == [3, 3]  # the second link to the same folder adds nothing
    assert list(found.source.read(found.entries)) == [IMAGE] * 6


HIDDEN = (".ipynb_checkpoints", ".thumbnails", ".Trash-1000", ".any", "@eaDir", "__MACOSX")


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("place", ["", f"{TWO[0]}/"])
def test_hidden_folders_hold_no_images(tmp_path, name, place):
    folders(tmp_path)
    put(tmp_path, f"{place}{name}/0.png", f"{place}._0.png")
    found = listed(tmp_path)
    assert found.counts() == [3, 3]
    assert found.notes == (f"--data {tmp_path}: not taken as images: 1 hidden folders (first: {place}{name})",)


@pytest.mark.parametrize(
    "splits",
    [
        ("train", "val"),
        ("Training", "test"),
        ("train", "validation", "annotations"),
        ("seg_train", "seg_test"),
        ("train2017", "val2017"),
    ],
)
def test_folders_of_splits_are_refused_with_the_one_to_use(tmp_path, splits):
    for split in splits:
        folders(tmp_path / split)
    words = refusal(tmp_path)
    assert "several splits" in words
    cure = words.rpartition("--data ")[2].partition(",")[0]
    assert cure == f"{tmp_path}/{splits[0]}" and listed(cure).counts() == [3, 3]


def test_one_split_above_the_classes_is_named_among_the_levels(tmp_path):
    folders(tmp_path / "train")
    assert f"or give --data {tmp_path}/train, if train is a split" in refusal(tmp_path)


def test_groups_of_classes_need_the_level_to_be_said(tmp_path):
    put(tmp_path, *(f"{path}/{i}.png" for path in ("dogs/beagle", "dogs/collie", "fish/tench") for i in range(2)))
    words = refusal(tmp_path)
    assert "folder 'dogs' holds 2 folders of images (beagle, collie)" in words
    assert "--class-depth 1 for 'dogs'" in words and "--class-depth 2 for 'beagle', 'collie'" in words
    one, two = listed(tmp_path, class_depth=1), listed(tmp_path, class_depth=2)
    assert (one.classes.sources, one.counts()) == (("dogs", "fish"), [4, 2])
    assert (two.classes.sources, two.counts()) == (("beagle", "collie", "tench"), [2, 2, 2])
    assert not one.notes and not two.notes
    put(tmp_path, "dogs/stray.png")
    assert "1 images above the class folders (first: dogs/stray.png)" in listed(tmp_path, class_depth=2).notes[0]
    (tmp_path / "fish" / "cod").mkdir()
    assert "class folder 'fish/cod' holds no image" in refusal(tmp_path, class_depth=2)
    with pytest.raises(ValueError, match="--class-depth 0"):
        DataConfig("x", class_depth=0)


def test_tiny_imagenets_level_of_images_is_said_once(tmp_path):
    put(tmp_path, *(f"{name}/images/{name}_{i}.JPEG" for name in TWO for i in range(3)))
    found = listed(tmp_path)
    assert (found.classes.sources, found.counts()) == (TWO, [3, 3])
    assert found.notes == (
        f"--data {tmp_path}: 2 classes hold images in a folder within their own (first: {TWO[0]}/images/{TWO[0]}_0"
        ".JPEG); each is one class",
    )


def test_images_without_class_folders_are_told_how_to_be_sorted(tmp_path):
    put(tmp_path, *(f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(4)))
    words = refusal(tmp_path)
    assert "no class folders, but 4 images (first: ILSVRC2012_val_00000000.JPEG)" in words
    # The command does what it says.
    rows = (f"ILSVRC2012_val_{i:08d},{TWO[i % 2]} 1 2 3 4\n" for i in range(4))
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    assert os.system(words.split("sort them by: ")[1].split(" (Kaggle")[0]) == 0
    assert listed(tmp_path).counts() == [2, 2]


def test_any_flat_folder_is_told_how_to_be_sorted(tmp_path):
    """Whatever is in names, and though the list's last line has no end."""
    data = tmp_path / "my data"
    put(data, "0.png", "1.png")
    command = refusal(data).split("sort them by: ")[1]
    (data / "LIST").write_text("0.png great white shark\n1.png dog")
    assert os.system(command) == 0
    assert listed(data).classes.sources == ("dog", "great white shark")


def test_flat_images_beside_an_empty_folder_are_told_how_to_be_sorted_too(tmp_path):
    put(tmp_path, "0.png", "1.png", "devkit/readme.txt")
    words = refusal(tmp_path)
    assert "class folder 'devkit' holds no image" in words and "Or is it these: 2 images (first: 0.png)" in words


def test_a_lone_split_of_flat_images_is_no_class(tmp_path):
    put(tmp_path / "a b", "val/0.png", "val/1.png")
    assert f"called as a split; give --data '{tmp_path}/a b/val', or --class-depth 1" in refusal(tmp_path / "a b")
    assert listed(tmp_path / "a b", class_depth=1).classes.sources == ("val",)


@pytest.mark.parametrize(
    ("paths", "first"),
    [
        (("dogs/beagle", "fish/tench"), "'dogs/beagle', 'fish/tench', so"),
        (("dataset/images/cat", "dataset/images/dog", "dataset/images/emu"), "'dataset/images/cat', 'dataset/images/"),
        (("archive/cat", "archive/x/dog"), "'archive'"),
        (("dataset/dataset/cat", "dataset/dataset/dog"), "'dataset/dataset/cat'"),
    ],
)
def test_folders_within_classes_that_are_unlike_need_the_level_to_be_said(tmp_path, paths, first):
    """A single folder in each was taken for none, and the groups for the classes."""
    put(tmp_path, *(f"{path}/{i}.png" for path in paths for i in range(2)))
    words = refusal(tmp_path)
    assert first in words and "not clear" in words and "--class-depth 2" in words


@pytest.mark.parametrize(
    "paths",
    [("cat/cat", "dog/dog"), ("cat/images/a", "cat/images/b", "dog/images/a"), ("testis", "valve")],
)
def test_layouts_that_are_clear_are_listed(tmp_path, paths):
    put(tmp_path, *(f"{path}/{i}.png" for path in paths for i in range(2)))
    assert len(listed(tmp_path).classes.sources) == 2


def test_chosen_classes_say_where_they_lie(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png", "docs/figures/a.png", "demo/shots/b.png")
    found = list_images(DataConfig(str(tmp_path), classes=("cat", "dog")), 2, ["cat", "dog"])
    assert (found.classes.sources, found.counts()) == (("cat", "dog"), [1, 1])


def test_a_class_with_images_of_its_own_may_have_a_folder_of_more(tmp_path):
    put(tmp_path, "cat/0.png", "cat/more/1.png", "dog/0.png", "dog/extra/1.png")
    assert listed(tmp_path).counts() == [2, 2]


def test_class_folders_win_over_a_stray_file_which_is_named(tmp_path):
    folders(tmp_path / "a")
    write_webdataset(tmp_path / "a", make_images(1))
    assert "1 .tar (first: shard-00000.tar)" in listed(tmp_path / "a").notes[0]
    for name in ("metadata.parquet", "metadata.csv", "metadata.jsonl"):
        folders(tmp_path / name)
        pq.write_table(pa.table({"file_name": ["0.png"], "text": ["x"]}), tmp_path / name / name)
        found = listed(tmp_path / name)
        assert isinstance(found.source, ImageFolder) and found.counts() == [3, 3]
        assert name in found.notes[0]


def test_a_table_beside_the_data_is_named_and_not_taken_for_it(tmp_path):
    """metadata.parquet beside Parquet; img2dataset's NAME.parquet of captions beside NAME.tar."""
    table = pa.table({"url": ["x"], "caption": ["x"]})
    write_parquet(tmp_path / "rows", make_images(2))
    pq.write_table(table, tmp_path / "rows" / "metadata.parquet")
    found = listed(tmp_path / "rows")
    assert len(found) == 6 and "1 files of metadata (first: metadata.parquet)" in found.notes[0]
    write_webdataset(tmp_path / "tars", make_images(2))
    for tar in list((tmp_path / "tars").glob("*.tar")):
        pq.write_table(table, tar.with_suffix(".parquet"))
    assert len(listed(tmp_path / "tars")) == 6


def test_parquet_deep_in_folders_is_told_apart_from_classes(tmp_path):
    """As Hugging Face converts a repository: default/train/0000.parquet."""
    write_parquet(tmp_path / "default" / "train", make_images(2))
    assert refusal(tmp_path).endswith("or choose --classes, or give --format parquet")
    assert len(listed(tmp_path, format="parquet")) == 6


def test_a_path_that_is_not_utf8_is_named(tmp_path):
    folders(tmp_path)
    (tmp_path / TWO[0]).rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    assert "\\xe9: the path is not UTF-8" in refusal(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))


@pytest.mark.parametrize("splits", [("train", "dev"), ("train", "eval"), ("train2017", "test2017"), ("train0", "val0")])
def test_files_of_splits_by_any_of_their_names_are_refused(tmp_path, splits):
    for split in splits:
        write_parquet(tmp_path / split, make_images(1))
        (file,) = (tmp_path / split).iterdir()
        (tmp_path / "data").mkdir(exist_ok=True)
        file.rename(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    words = refusal(tmp_path / "data")
    assert "of several splits" in words
    assert len(listed(words.rpartition("--data ")[2])) == 3
    (tmp_path / "data" / f"{splits[1]}-00000-of-00001.parquet").rename(tmp_path / "data" / "devkit.parquet")
    assert len(listed(tmp_path / "data")) == 6, "a kit is no split"


@pytest.mark.parametrize("write", [write_parquet, write_webdataset])
def test_macs_shadow_files_are_no_data(tmp_path, write):
    write(tmp_path, make_images(2))
    for path in list(tmp_path.iterdir()):
        put(tmp_path, f"._{path.name}", data=b"\x00\x05\x16\x07")
    assert len(listed(tmp_path)) == 6


def test_a_folder_of_pictures_beside_parquet_is_what_its_rows_name(tmp_path):
    folders(tmp_path / "images")
    write_parquet(tmp_path, make_images(2))
    assert len(listed(tmp_path)) == 6


@pytest.mark.parametrize("name", ["a=1", "b c", "#1", "100%", "a?b", "Über"])
def test_class_folders_have_any_name(tmp_path, name):
    folders(tmp_path, name, "other")
    found = listed(tmp_path)
    assert name in found.classes.sources and found.counts() == [3, 3]
    assert list(found.source.read(found.entries)) == [IMAGE] * 6


def test_file_names_that_are_not_utf8_are_rejected_under_an_escaped_name(tmp_path):
    put(tmp_path, "cat/a.png", "cat/b.png")
    Path(os.fsdecode(os.fsencode(tmp_path / "cat") + b"/caf\xe9.png")).write_bytes(IMAGE)
    found = listed(tmp_path)
    assert found.entries["image_id"].to_pylist() == ["cat/a.png", "cat/b.png", r"cat/caf\xe9.png"]
    assert r"1 images are rejected because their names are not UTF-8 (first: cat/caf\xe9.png)" in found.notes[0]
    *good, bad = found.source.read(found.entries)
    assert good == [IMAGE] * 2
    with pytest.raises(RejectedImage, match="its name is not UTF-8"):
        decode(bad, 8)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).mkdir()
    assert r"class folder 'caf\xe9' is not UTF-8; rename it" in refusal(tmp_path)


def test_a_pipe_is_rejected_unread(tmp_path):
    put(tmp_path, "cat/a.png")
    os.mkfifo(tmp_path / "cat" / "b.png")
    found = listed(tmp_path)
    with pytest.raises(RejectedImage, match="not a regular file"):
        decode(list(found.source.read(found.entries))[1], 8)


def test_two_spellings_of_an_accent_are_one_class(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    folders(tmp_path, apart, "tea")
    for wanted in (composed, apart):
        found = list_images(DataConfig(str(tmp_path), classes=(wanted,)), 2, [apart, "tea"])
        assert found.classes.names == (composed,) and found.classes.model_classes == (0,)
        assert list(found.source.read(found.entries)) == [IMAGE] * 3
    put(tmp_path, f"{composed}/x.png")
    assert list_images(DataConfig(str(tmp_path)), 2, [composed, "tea"]).counts() == [4, 3]


def test_labels_of_two_spellings_are_one_class(tmp_path):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    write_webdataset(tmp_path, [(name, f"{i:04d}", IMAGE) for i, name in enumerate(names)])
    assert list_images(DataConfig(str(tmp_path)), 1, names[:1]).counts() == [2]
