"""Sources: three formats list and read the same images; whatever is wrong with them is said by name."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import WNIDS, make_images, write_imagefolder, write_parquet, write_webdataset

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.listing import Listing, list_images, open_source, require_variance
from d3hr_ray.datasets.source import thread_map

IMAGES = make_images(9)


def listing(uri: str, **options) -> Listing:
    return list_images(DataConfig(uri, **options), num_classes=1000, model_names=None)


WRITERS = {
    "imagefolder": write_imagefolder,
    "webdataset": write_webdataset,
    "parquet": write_parquet,
    "webdataset-json": lambda root, images: write_webdataset(root, images, label="json"),
}


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_is_detected_and_holds_the_same_images(tmp_path, form):
    found = listing(WRITERS[form](tmp_path / "data", IMAGES))
    assert type(open_source(DataConfig(str(tmp_path / "data")))) is type(found.source)
    assert found.classes.wnids == WNIDS
    assert found.classes.model_classes == (1, 207, 999)
    assert found.counts() == [9, 9, 9]
    assert len(set(found.entries["image_id"].to_pylist())) == 27
    for size in (4, 27):
        read = [data for shard in found.shards(size) for data in found.source.read(shard)]
        assert read == [data for _, _, data in IMAGES]


@pytest.mark.parametrize("form", WRITERS)
def test_any_selection_can_be_read_on_its_own(tmp_path, form):
    found = listing(WRITERS[form](tmp_path, IMAGES))
    chosen = [2, 3, 11, 20, 26]
    assert list(found.source.read(found.entries.take(chosen))) == [IMAGES[i][2] for i in chosen]


def test_limit_and_classes_keep_their_order(tmp_path):
    uri = write_webdataset(tmp_path, IMAGES)
    found = listing(uri, classes=(WNIDS[2], WNIDS[0]), limit_per_class=3)
    assert found.classes.wnids == (WNIDS[2], WNIDS[0])
    assert found.counts() == [3, 3]
    label = pc.equal(found.entries["label"], 0)
    assert [d for d in found.source.read(found.entries.filter(label))] == [d for w, _, d in IMAGES if w == WNIDS[2]][:3]


def test_a_single_tar_or_parquet_file_is_a_source(tmp_path):
    write_webdataset(tmp_path / "t", IMAGES, per_tar=27)
    write_parquet(tmp_path / "p", IMAGES, per_file=27)
    for file in ("t/shard-00000.tar", "p/data-00000.parquet"):
        found = listing(str(tmp_path / file))
        assert len(found) == 27
        assert next(found.source.read(found.entries)) == IMAGES[0][2]


def test_hugging_face_class_labels_are_used(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(WNIDS)}}
    table = pa.table(
        {"image": [{"bytes": d, "path": None} for _, _, d in IMAGES], "label": [i // 9 for i in range(27)]}
    )
    table = table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})
    pq.write_table(table, tmp_path / "x.parquet")
    assert listing(str(tmp_path)).classes.wnids == WNIDS


def test_the_digest_sees_a_relabelled_or_missing_image(tmp_path):
    whole = listing(write_imagefolder(tmp_path / "a", IMAGES)).digest
    assert listing(write_imagefolder(tmp_path / "b", IMAGES)).digest == whole
    assert listing(write_imagefolder(tmp_path / "c", IMAGES[:-1])).digest != whole


def test_splits_are_never_mixed_and_a_pattern_chooses_one(tmp_path):
    write_parquet(tmp_path, IMAGES, per_file=14)
    first, second = sorted(tmp_path.iterdir())
    first.rename(tmp_path / "train-00000-of-00001.parquet")
    second.rename(tmp_path / "validation-00000-of-00001.parquet")
    refuses("of several splits .train, val.", tmp_path)
    assert len(listing(f"{tmp_path}/train*.parquet")) == 14


def test_a_replaced_image_changes_the_digest(tmp_path):
    before = listing(write_imagefolder(tmp_path, IMAGES)).digest
    (tmp_path / WNIDS[0] / "0000.png").write_bytes(IMAGES[0][2] + b"more")
    assert listing(str(tmp_path)).digest != before


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".pgm", ".pbm", ".pnm", ".apng", ".JPEG"])
def test_every_suffix_of_a_format_that_is_decoded_is_an_image(tmp_path, suffix):
    write_imagefolder(tmp_path, IMAGES)
    (tmp_path / WNIDS[0] / f"x{suffix}").write_bytes(IMAGES[0][2])
    assert listing(str(tmp_path)).counts() == [10, 9, 9]


@pytest.mark.parametrize("each", [thread_map, lambda function, items: [function(item) for item in items]])
def test_files_that_are_not_taken_as_images_are_counted_by_suffix(tmp_path, each):
    write_imagefolder(tmp_path, IMAGES)
    for k, name in enumerate(("a.gif", "b.GIF", "c.tif", "d.avif", "notes.txt", "README", ".DS_Store", "._a.png")):
        (tmp_path / WNIDS[k % 2] / name).write_bytes(b"x")
    found = list_images(DataConfig(str(tmp_path)), 1000, None, each)
    assert found.counts() == [9, 9, 9]
    first = f"{WNIDS[0]}/a.gif"
    assert found.notes == (
        f"--data {tmp_path}: not taken as images: 2 .gif (first: {first}), 1 .avif (first: {WNIDS[1]}/d.avif), "
        f"1 .tif (first: {WNIDS[0]}/c.tif), 1 .txt (first: {WNIDS[0]}/notes.txt), "
        f"1 without suffix (first: {WNIDS[1]}/README)",
    )


def refuses(words: str, uri: object, **options) -> None:
    with pytest.raises(ValueError, match=words):
        require_variance(listing(str(uri), **options))


def test_missing_or_empty_sources_are_refused(tmp_path):
    refuses("no such file or folder", tmp_path / "none")
    refuses("no class folders", tmp_path)
    (tmp_path / WNIDS[0]).mkdir()
    refuses(f"class folder '{WNIDS[0]}' holds no image", tmp_path)


def test_an_empty_folder_beside_the_classes_that_are_named_is_passed_over(tmp_path):
    write_imagefolder(tmp_path, make_images(2))
    (tmp_path / "annotations").mkdir()
    assert list_images(DataConfig(str(tmp_path), classes=WNIDS), 1000, None).counts() == [2, 2, 2]
    refuses("class folder 'annotations' holds no image", tmp_path)
    refuses("no webdataset file", tmp_path, format="webdataset")
    (tmp_path / "notes.txt").write_text("x")
    refuses("not a .tar, .parquet or idx file", tmp_path / "notes.txt")


def test_unknown_and_single_image_classes_are_refused(tmp_path):
    uri = write_imagefolder(tmp_path, IMAGES[:10])
    refuses("--classes n99999999: the data has no such class", uri, classes=("n99999999",))
    refuses("class 'n02099601' has 1 image", uri)


@pytest.mark.parametrize("keep", ["inside a file", "between files"])
def test_a_tar_that_is_cut_off_is_refused_by_name(tmp_path, keep):
    write_webdataset(tmp_path, IMAGES, per_tar=27)
    path = tmp_path / "shard-00000.tar"
    with tarfile.open(path) as tar:
        member = tar.getmembers()[20]
    end = member.offset_data + 100 if keep == "inside a file" else member.offset
    path.write_bytes(path.read_bytes()[:end])
    refuses("shard-00000.tar: .*cut off", tmp_path)


def test_joined_and_compressed_tars_are_refused(tmp_path):
    write_webdataset(tmp_path, IMAGES, per_tar=14)
    first, second = sorted(tmp_path.iterdir())
    first.write_bytes(first.read_bytes() + second.read_bytes())
    refuses("data follows the tar's end mark", tmp_path)
    with tarfile.open(first, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    refuses("compressed, though it is called .tar; unpack it: gunzip", tmp_path)


def test_samples_without_label_or_with_two_images_are_refused(tmp_path):
    def write(*names: str) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(b"1"))

    write("a.png", "b.png", "b.cls")
    refuses("sample 'a' has no .cls", tmp_path)
    write("a.png", "a.jpg", "a.cls")
    refuses("sample 'a' has two images", tmp_path)


def test_names_in_a_tar_never_become_paths(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for k in range(2):
            for name, data in ((f"../../evil{k}.png", IMAGES[k][2]), (f"../../evil{k}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    found = listing(str(tmp_path))
    assert list(found.source.read(found.entries)) == [IMAGES[0][2], IMAGES[1][2]]
    assert not list(tmp_path.parent.glob("evil*"))


def test_parquet_without_label_or_image_or_end_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"x"]}), path)
    refuses("x.parquet: no label column", tmp_path)
    pq.write_table(pa.table({"label": [1], "caption": ["x"]}), path)
    refuses("x.parquet: no image column", tmp_path)
    pq.write_table(pa.table({"image": [b"x"], "label": [[1]]}), path)
    refuses("label column 'label' is list", tmp_path)
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [1, None]}), path)
    refuses("row 1 has no 'label'", tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    refuses("not a whole Parquet file", tmp_path)


def test_a_parquet_image_without_bytes_is_read_as_empty(tmp_path):
    table = pa.table({"image": [{"bytes": None, "path": "a.png"}, {"bytes": b"x", "path": None}], "label": [1, 1]})
    pq.write_table(table, tmp_path / "x.parquet")
    found = listing(str(tmp_path))
    assert list(found.source.read(found.entries)) == [b"", b"x"]  # a.png is not there


def test_digits_have_a_fixed_stratified_split():
    def find(uri: str) -> Listing:
        return list_images(DataConfig(uri), 10, None, thread_map)

    train, test = find("digits"), find("digits/test")
    assert (len(train), len(test)) == (1297, 500)
    assert not set(train.entries["start"].to_pylist()) & set(test.entries["start"].to_pylist())
    assert max(test.counts()) - min(test.counts()) <= 3
    assert len(find("digits-affine")) == 8 * 1297
    assert train.digest == find("digits/train").digest
