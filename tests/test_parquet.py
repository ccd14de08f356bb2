"""Parquet as people have it: other columns, categories, folders that say the label, and paths in place of images."""

import base64
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_images, write_imagefolder
from pyarrow import csv

from d3hr_ray.config import DataConfig, ModelConfig, RunConfig, as_dict
from d3hr_ray.datasets.decode import RejectedImage, decode
from d3hr_ray.datasets.listing import Listing, list_images
from d3hr_ray.stages.contents import versions_of

PNG = [data for _, _, data in make_images(2)]
IMAGES = [{"bytes": data, "path": None} for data in PNG]


def listing(uri: Path | str, **options) -> Listing:
    return list_images(DataConfig(str(uri), **options), 2, None)


def read(found: Listing) -> list[bytes]:
    return list(found.source.read(found.entries))


def labels(found: Listing) -> list[str]:
    return [found.classes.sources[label] for label in found.entries["label"].to_pylist()]


def write(path: Path, write_statistics: bool = True, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2, write_statistics=write_statistics)
    return path


def test_columns_of_other_names_are_named_by_flags(tmp_path):
    path = write(tmp_path / "x.parquet", scan=IMAGES, diagnosis=[0, 1] * 3, label=["a", "b", "c"] * 2)
    with pytest.raises(ValueError, match=r"no image column.*has scan, diagnosis, label: name it by --image-column"):
        listing(path)
    with pytest.raises(
        ValueError, match=r"no label column 'sort' .*has scan, diagnosis, label: name it by --label-col"
    ):
        listing(path, image_column="scan", label_column="sort")
    with pytest.raises(ValueError, match="no image column 'diagnosis'"):
        listing(path, image_column="diagnosis")
    found = listing(path, image_column="scan", label_column="diagnosis")
    assert labels(found) == ["0", "1"] * 3 and read(found) == PNG
    with pytest.raises(ValueError, match="--label-column is for Parquet, and this is imagefolder"):
        listing(write_imagefolder(tmp_path / "folder", make_images(2)), label_column="diagnosis")


@pytest.mark.parametrize("values", [["cat", "dog", "cat"] * 2, [3, 5, 3] * 2])
def test_categories_are_labels(tmp_path, values):
    """As pandas writes a Categorical: a dictionary of strings or of numbers."""
    found = listing(write(tmp_path / "x.parquet", image=IMAGES, label=pa.array(values).dictionary_encode()))
    assert labels(found) == list(map(str, values))


def test_folders_say_the_label_as_hive_has_it(tmp_path):
    write(tmp_path / "label=1" / "0.parquet", image=IMAGES[:2])
    write(tmp_path / "label=a%20b" / "0.parquet", image=IMAGES[2:4])
    found = listing(tmp_path)
    assert labels(found) == ["1", "1", "a b", "a b"] and read(found) == PNG[:4]
    assert len(list_images(DataConfig(f"{tmp_path}/label=1"), 1, None)) == 2
    write(tmp_path / "label=__HIVE_DEFAULT_PARTITION__" / "0.parquet", image=IMAGES[:2])
    with pytest.raises(ValueError, match="lies in a folder without 'label'"):
        listing(tmp_path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six images in class folders, in a folder with things beside it that are none of the data."""
    write_imagefolder(tmp_path / "data" / "images", make_images(2))
    (tmp_path / "secret.png").write_bytes(PNG[0])
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "linked").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "data" / "pipe.png")
    return tmp_path / "data"


@pytest.mark.parametrize("fields", [["bytes", "path"], ["path"]])
def test_paths_beside_bytes_of_no_type_are_read(folder, fields):
    """As pyarrow writes rows whose bytes are all None."""
    names = sorted(str(path.relative_to(folder)) for path in folder.glob("images/*/*.png"))
    rows = [{field: name if field == "path" else None for field in fields} for name in names]
    assert read(listing(write(folder / "train.parquet", image=rows, label=[0, 1] * 3))) == PNG
    rows[1]["path"] = "images/none.png"
    with pytest.raises(ValueError, match=r"the first, 'images/none\.png', is not there"):
        listing(write(folder / "train.parquet", image=rows, label=[0, 1] * 3))


def paths_only(path: Path, paths: list[str | None], images: list[bytes | None] | None = None, **how) -> Path:
    images = images or [None] * len(paths)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": data, "path": name} for data, name in zip(images, paths, strict=True)]
    return write(path, image=pa.array(rows, kind), label=[i % 2 for i in range(len(paths))], **how)


@pytest.mark.parametrize("absolute", [False, True])
def test_images_that_rows_name_are_read_beside_the_file(folder, absolute):
    names = sorted(str(path.relative_to(folder)) for path in folder.glob("images/*/*.png"))
    listed = [str(folder / name) for name in names] if absolute else names
    found = listing(paths_only(folder / "train.parquet", listed))
    assert read(found) == PNG
    again = listing(folder, format="parquet")
    assert read(again) == PNG and again.digest == found.digest
    (folder / names[3]).write_bytes(PNG[3] + b"more")
    assert listing(folder / "train.parquet").digest != found.digest


def test_a_list_of_paths_and_labels_in_csv_is_read_as_the_documentation_says(folder):
    names = sorted(str(path.relative_to(folder)) for path in folder.glob("images/*/*.png"))
    rows = (f"{name},{'cat' if i % 2 else 'dog'}\n" for i, name in enumerate(names))
    (folder / "labels.csv").write_text("file,label\n" + "".join(rows))
    pq.write_table(csv.read_csv(folder / "labels.csv"), folder / "labels.parquet")
    with pytest.raises(ValueError, match=r"no image column; it must be bytes.*has file, label: name it by --image-col"):
        listing(folder / "labels.parquet")
    found = listing(folder / "labels.parquet", image_column="file")
    assert labels(found) == ["dog", "cat"] * 3 and read(found) == PNG
    (folder / names[3]).write_bytes(PNG[3] + b"more")
    assert listing(folder / "labels.parquet", image_column="file").digest != found.digest
    (folder / names[3]).unlink()
    with pytest.raises(ValueError, match=f"1 of 6 cannot be read, and the first, '{names[3]}', is not there"):
        listing(folder / "labels.parquet", image_column="file")


def test_text_that_is_no_path_is_not_shown_whole_and_bytes_come_before_it(tmp_path):
    text = [base64.b64encode(data).decode() * 9 for data in PNG]
    path = write(tmp_path / "x.parquet", image=text, label=[0, 1] * 3)
    with pytest.raises(ValueError, match="holds paths of images and not the images; 2 of 2") as refused:
        listing(path)
    assert len(str(refused.value)) < 800
    assert read(listing(write(path, image=text, bytes=PNG, label=[0, 1] * 3))) == PNG


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("images/none.png", "is not there"),
        ("pipe.png", "is not there"),
        ("images", "is not there"),
        ("../secret.png", "is not in the data's folder"),
        ("images/../../secret.png", "is not in the data's folder"),
        ("/etc/passwd", "is not in the data's folder"),
        ("link.png", "is not in the data's folder"),
        ("linked/secret.png", "is not in the data's folder"),
        ("a\0b", "is not in the data's folder"),
        ("", "is not in the data's folder"),
        (None, "is not in the data's folder"),
    ],
)
def test_a_path_that_leads_nowhere_or_out_of_the_data_is_refused_when_listed(folder, path, why):
    good = str(next(folder.glob("images/*/*.png")))
    file = paths_only(folder / "train.parquet", [good, path])
    with pytest.raises(ValueError, match="holds paths of images and not the images; 1 of 2 cannot") as refused:
        listing(file)
    assert f"the first, {path!r}, {why}" in str(refused.value)
    mixed = listing(paths_only(folder / "train.parquet", [good, path], [PNG[0], None]))
    with pytest.raises(RejectedImage, match="path"):
        decode(read(mixed)[1], 8)


def test_what_datasets_writes_of_an_image_folder_is_read(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    cache = str(tmp_path / "cache")
    made = datasets.load_dataset("imagefolder", data_dir=str(folder / "images"), split="train", cache_dir=cache)
    made.to_parquet(str(folder / "train.parquet"))
    assert pq.read_table(folder / "train.parquet")["image"][0].as_py()["bytes"] is None
    found = list_images(DataConfig(str(folder), "parquet"), 1000, None)
    assert found.counts() == [2, 2, 2] and read(found) == PNG
    (tmp_path / "elsewhere").mkdir()
    made.to_parquet(str(tmp_path / "elsewhere" / "train.parquet"))
    with pytest.raises(ValueError, match=r"Move the file to the images' folder, or write it with their bytes"):
        listing(tmp_path / "elsewhere")


def test_every_job_takes_the_names_of_the_columns():
    from d3hr_ray.cli import evaluate_checks, overlay, sweep_checks
    from d3hr_ray.cli.distill_flags import DistillFlags
    from d3hr_ray.cli.evaluate_flags import EvaluateFlags
    from d3hr_ray.cli.sweep_flags import SweepFlags
    from jobs import pretrain

    named = {"image_column": "scan", "label_column": "diagnosis"}
    base = RunConfig(DataConfig(""), ModelConfig("digits"))
    evaluated = EvaluateFlags(data="x", train_data="x", **named)
    made = [
        overlay.overlay(base, DistillFlags(data="x", **named)).data,
        *evaluate_checks.real_data(evaluated),
        sweep_checks.test_data(SweepFlags(data="x", **named)),
        pretrain.build_config(pretrain.PretrainFlags("custom", data="x", **named)).data,
    ]
    assert [(data.image_column, data.label_column) for data in made] == [("scan", "diagnosis")] * 5
    assert "image_column" not in as_dict(DataConfig("x")), "runs of older versions keep their fingerprints"


def test_columns_are_of_the_parquet_file_where_the_other_images_of_an_evaluation_are_a_folder(tmp_path):
    """One --image-column serves --data and --train-data; a folder beside a Parquet file was refused for having none."""
    from d3hr_ray.cli.evaluate_checks import real_data
    from d3hr_ray.cli.evaluate_flags import EvaluateFlags

    rows = str(write(tmp_path / "x.parquet", scan=IMAGES, diagnosis=[0, 1] * 3))
    folder = str(write_imagefolder(tmp_path / "folder", make_images(2)))
    named = {"image_column": "scan", "label_column": "diagnosis"}

    def columns(test: str, train: str) -> list[tuple[str | None, str | None]]:
        both = real_data(EvaluateFlags(data=test, train_data=train, **named))
        return [(data.image_column, data.label_column) for data in both if data]

    scan, none = ("scan", "diagnosis"), (None, None)
    assert columns(rows, folder) == [scan, none] and columns(folder, rows) == [none, scan]
    assert columns(rows, rows) == [scan, scan]
    assert columns(folder, folder) == [scan, scan], "and are refused when the folders are opened"


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize(("first", "statistics"), [(None, True), (None, False), (PNG[0], True)])
def test_an_image_that_a_row_names_is_seen_when_it_is_written_again(folder, at, first, statistics):
    """The version of a Parquet file is that of all its images: the least of theirs hid most replacements."""
    paths = [str(path) for path in sorted(folder.glob("images/*/*.png"))][:4]
    file = paths_only(folder / "train.parquet", paths, [first, None, None, None], write_statistics=statistics)
    before = versions_of(listing(file))
    os.utime(paths[at], ns=(1, 1))
    after = versions_of(listing(file))
    assert before["file"].equals(after["file"]) and not before.equals(after)
    assert versions_of(listing(file)).equals(after)


def test_a_file_of_paths_may_be_empty(folder):
    rows = pq.read_table(paths_only(folder / "train.parquet", [str(next(folder.glob("images/*/*.png")))] * 2))
    pq.write_table(rows.slice(0, 0), folder / "empty.parquet")
    assert len(list_images(DataConfig(f"{folder}/*.parquet"), 2, None)) == 2


def test_a_path_beside_bytes_that_leads_nowhere_is_named_when_it_is_read(folder):
    file = paths_only(folder / "train.parquet", ["images/gone.png", "x"], [None, PNG[0]])
    found = read(listing(file))
    assert found[1] == PNG[0]
    with pytest.raises(RejectedImage, match=r"the file that its path names, images/gone\.png, is not there"):
        decode(found[0], 8)
