"""Tars: every sample that one names is listed or refused by name, whatever order, names and links its members have."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from conftest import WNIDS, make_images

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.decode import RejectedImage, decode
from d3hr_ray.datasets.listing import Listing, list_images

PNG = [data for _, _, data in make_images(3)]
GOOD = [(f"{i}.{suffix}", data) for i in range(3) for suffix, data in (("png", PNG[i]), ("cls", b"%d" % (i % 2)))]
TWO = WNIDS[:2]


def pack(path: Path, members, mode: str = "w") -> str:
    """A tar of (name, bytes), (name, target) for a symbolic link, and (name, (target,)) for a hard one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if isinstance(data, str):
                info.type, info.linkname, info.size = tarfile.SYMTYPE, data, 0
            elif isinstance(data, tuple):
                info.type, info.linkname, info.size = tarfile.LNKTYPE, data[0], 0
            tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return str(path)


def listing(uri: str, count: int = 2) -> Listing:
    return list_images(DataConfig(str(uri)), count, None)


def read(found: Listing) -> list[bytes]:
    return list(found.source.read(found.entries))


def labels(found: Listing) -> list[str]:
    return [found.classes.sources[label] for label in found.entries["label"].to_pylist()]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([("3.v2.png", PNG[3]), ("3.v2.cls", b"1")], None),
        ([("3.jfif", PNG[3]), ("3.cls", b"1")], None),
        ([("3.pgm", PNG[3]), ("3.cls", b"\xef\xbb\xbf1")], None),
        ([("3.JPEG", PNG[3]), ("3.json", b'\xef\xbb\xbf{"label": 1}')], None),
        ([("caf\udce9.png", PNG[3]), ("caf\udce9.cls", b"1")], None),
        ([("3.avif", b"avif"), ("3.cls", b"1")], "not an image"),
        ([("3.cls", b"1")], "a label and no image"),
        ([("3.json", b'{"label": 1}'), ("3.txt", b"words")], "a label and no image"),
        ([("a/3.png", "../0.png"), ("a/3.cls", b"1")], PNG[0]),
        ([("3.png", ("0.png",)), ("3.cls", ("1.cls",))], PNG[0]),
        ([("3.png", "4.png"), ("4.png", "0.png"), ("3.cls", b"1"), ("4.cls", b"1")], PNG[0]),
        ([("3.png", "3.png"), ("3.cls", b"1")], "no file of the tar"),
        ([("3.png", "/etc/passwd"), ("3.cls", b"1")], "no file of the tar"),
    ],
)
def test_no_sample_vanishes(tmp_path, more, reason):
    """It is read, or rejected with its reason."""
    found = listing(pack(tmp_path / "a.tar", GOOD + more))
    assert labels(found)[:4] == ["0", "1", "0", "1"] and len(found) == (5 if "4.png" in dict(more) else 4)
    data = read(found)
    assert data[:3] == PNG[:3]
    if isinstance(reason, str):
        with pytest.raises(RejectedImage, match=reason):
            decode(data[3], 8)
    else:
        assert data[3] == (reason or PNG[3])


def test_a_label_that_is_appended_counts_and_is_told(tmp_path):
    path = pack(tmp_path / "a.tar", GOOD)
    pack(Path(path), [("./0.cls", b"1")], "a")
    found = listing(path)
    assert labels(found) == ["1", "1", "0"]
    assert "1 members come twice in their tar: the last one counts" in found.notes[0]


def test_parts_that_are_apart_are_found(tmp_path):
    found = listing(pack(tmp_path / "a.tar", [*GOOD[0::2], *GOOD[1::2]]))
    assert labels(found) == ["0", "1", "0"] and read(found) == PNG[:3]


def test_names_with_dots_are_read_one_way_and_it_is_said(tmp_path):
    many = [(f"photo.{i}.{s}", d) for i in range(3) for s, d in (("png", PNG[i]), ("cls", b"%d" % (i % 2)))]
    found = listing(pack(tmp_path / "a.tar", many))
    assert labels(found) == ["0", "1", "0"] and read(found) == PNG[:3]
    assert "3 samples are named up to their last dot" in found.notes[0]
    found = listing(pack(tmp_path / "b.tar", [*GOOD, ("0.mask.png", PNG[4])]))
    assert read(found) == PNG[:3]
    assert "1 images are other parts of a sample" in found.notes[0] and "b.tar/0.mask.png" in found.notes[0]
    with pytest.raises(ValueError, match=r"a.tar: sample '0' has two images"):
        listing(pack(tmp_path / "a.tar", [("0.left.png", PNG[0]), ("0.right.png", PNG[1]), ("0.cls", b"1")]))


def test_what_belongs_to_no_sample_is_counted(tmp_path):
    extra = [("readme.txt", b"x"), ("info.json", b'{"version": 1}'), ("._0.png", b"junk"), ("0.txt", b"caption")]
    found = listing(pack(tmp_path / "a.tar", [*GOOD, *extra]))
    assert len(found) == 3
    assert any("1 .txt (first: a.tar/readme.txt)" in note and "1 .json" in note for note in found.notes)


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".thumbnails", "@eaDir", "a/.any"])
def test_hidden_folders_in_a_tar_hold_no_images(tmp_path, hidden):
    """Neither samples nor classes; a link may still lead there, as git-annex has it."""
    found = listing(pack(tmp_path / "a.tar", [*GOOD, (f"{hidden}/0.png", PNG[0]), (f"{hidden}/0.cls", b"1")]))
    assert len(found) == 3
    assert f"2 files in hidden folders (first: a.tar/{hidden}/0.png)" in found.notes[0]
    folders = [(f"./{name}/{i}.png", PNG[i]) for name in TWO for i in range(2)]
    found = listing(pack(tmp_path / "b" / "a.tar", [*folders, (f"./{hidden}/x.png", PNG[3])]))
    assert found.counts() == [2, 2]
    linked = [(f"{hidden}/x", PNG[3]), ("3.png", f"{hidden}/x"), ("3.cls", b"1")]
    found = listing(pack(tmp_path / "c" / "a.tar", [*GOOD, *linked]))
    assert read(found) == PNG[:4]


def test_labels_that_cannot_be_read_are_refused_by_name(tmp_path):
    for data, words in ((b"caf\xe9", "write it in UTF-8"), (b"x" * (1 << 21), "2097152 bytes long")):
        with pytest.raises(ValueError, match=rf"a\.tar: label '0\.cls'.*{words}"):
            listing(pack(tmp_path / "a.tar", [("0.png", PNG[0]), ("0.cls", data)]))


def inner(wnid: str) -> bytes:
    """The tar of one ImageNet class, as its download has it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for k in range(3):
            info = tarfile.TarInfo(f"{wnid}_{k}.JPEG")
            info.size = len(PNG[k])
            tar.addfile(info, io.BytesIO(PNG[k]))
    return out.getvalue()


IMAGENET = {
    "as downloaded": lambda root: pack(
        root / "ILSVRC2012_img_train.tar", [(f"{wnid}.tar", inner(wnid)) for wnid in TWO]
    ),
    "a tar per class": lambda root: [(root / f"{wnid}.tar").write_bytes(inner(wnid)) for wnid in TWO] and root,
    "folders": lambda root: pack(root / "x.tar", [(f"train/{w}/{w}_{k}.JPEG", PNG[k]) for w in TWO for k in range(3)]),
    "images below": lambda root: pack(
        root / "x.tar", [(f"{w}/images/{k}.JPEG", PNG[k]) for w in TWO for k in range(3)]
    ),
}


@pytest.mark.parametrize("layout", IMAGENET)
def test_imagenet_is_read_as_it_is_downloaded(tmp_path, layout):
    found = listing(IMAGENET[layout](tmp_path), 1000)
    assert [found.classes.wnids[label] for label in found.entries["label"].to_pylist()] == [
        w for w in TWO for _ in "012"
    ]
    assert read(found) == PNG[:3] * 2
    assert len(set(found.entries["image_id"].to_pylist())) == 6
    assert "the class of 6 images without .cls and .json is the name of their folder or tar" in found.notes[0]


def test_imagenets_validation_images_as_downloaded_are_told_what_their_classes_need(tmp_path):
    """The tar holds 50,000 images and no word on their classes: these are in another download."""
    tar = pack(tmp_path / "ILSVRC2012_img_val.tar", [(f"ILSVRC2012_val_{i:08d}.JPEG", PNG[i]) for i in range(3)])
    with pytest.raises(ValueError, match=r"img_val\.tar: nothing in this tar.*sort them there by: ") as refused:
        listing(tar)
    folder = tmp_path / "val"
    shutil.unpack_archive(tar, folder)
    rows = (f"ILSVRC2012_val_{i:08d},{TWO[i % 2]} 1 2 3 4\n" for i in range(3))
    (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    command = str(refused.value).split("sort them there by: ")[1].split(" (Kaggle")[0]
    subprocess.run(command, shell=True, cwd=folder, check=True)
    assert listing(folder).counts() == [2, 1]


def test_the_class_of_a_tars_image_is_never_guessed(tmp_path):
    with pytest.raises(ValueError, match=r"shard-0\.tar: sample '0' has no .cls and no .json"):
        listing(pack(tmp_path / "shard-0.tar", GOOD[0::2]))
    deep = [("dogs/beagle/0.png", PNG[0]), ("fish/tench/0.png", PNG[1])]
    with pytest.raises(
        ValueError, match=r"shard-0\.tar: folders of images lie at several levels, such as 'dogs/beagle'"
    ):
        listing(pack(tmp_path / "shard-0.tar", deep))


def test_an_inner_tar_that_is_cut_off_is_named(tmp_path):
    path = pack(tmp_path / "x.tar", [("n01440764.tar", inner("n01440764")[:2000])])
    with pytest.raises(ValueError, match=r"x\.tar/n01440764\.tar: not a whole uncompressed tar .* cut off"):
        listing(path)


def test_headers_alone_are_read_of_tars_of_gigabytes(tmp_path):
    """16 images of 1 GB each, in a sparse file: reading them would take a minute, and room in the page cache."""
    size = 1 << 30
    with open(tmp_path / "ILSVRC2012_img_train.tar", "wb") as file:
        whole = tarfile.TarInfo(f"{WNIDS[0]}.tar")
        whole.size = 16 * (512 + size) + 1024
        file.write(whole.tobuf(tarfile.GNU_FORMAT))
        for k in range(16):
            info = tarfile.TarInfo(f"{k}.JPEG")
            info.size = size
            file.write(info.tobuf())
            file.seek(size, io.SEEK_CUR)
        file.truncate(file.tell() + 2048)
    before = _read_bytes()
    assert len(listing(tmp_path, 1000)) == 16
    assert _read_bytes() - before < 4 << 20


def _read_bytes() -> int:
    """What this process has read from files."""
    return int(Path("/proc/self/io").read_text().split()[1])
