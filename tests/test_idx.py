"""Sets of idx files: as they are distributed, whole or broken, and Fashion-MNIST by its name."""

import gzip
import pickle
import string
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_images, write_imagefolder
from idx_files import pack, pixels, write_set, write_split

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets import idxfiles, named
from d3hr_ray.datasets.decode import decode
from d3hr_ray.datasets.detect import detect
from d3hr_ray.datasets.idxclasses import FASHION, HIRAGANA
from d3hr_ray.datasets.listing import Listing, list_images, open_source
from d3hr_ray.datasets.matching import as_folder
from d3hr_ray.datasets.splits import held_out_of, to_test_on
from d3hr_ray.evaluation.comparison import list_real


def listing(uri: object, known: int = 10, **options) -> Listing:
    """The images, for a model of `known` classes without names."""
    return list_images(DataConfig(str(uri), **options), known, None)


def refuses(words: str, uri: object, **options) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        listing(uri, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_is_its_training_split_and_a_pattern_or_file_any(tmp_path, packed):
    uri = write_set(tmp_path / "set", packed)
    assert detect(uri) == "idx"
    found = {
        name: listing(f"{uri}{name}") for name in ("", "/train*", "/t10k*", f"/t10k-images-idx3-ubyte{'.gz' * packed}")
    }
    assert [len(each) for each in found.values()] == [20, 20, 10, 10]
    for name, count in (("", 20), ("/t10k*", 10)):
        read = list(found[name].source.read(found[name].entries))
        for data, stored in zip(read, pixels(count), strict=True):
            assert data == b"P5 3 4 255\n" + stored.tobytes()


def test_packed_and_unpacked_files_are_the_same_listing(tmp_path):
    digests = {listing(write_set(tmp_path / str(packed), packed)).digest for packed in (False, True)}
    assert len(digests) == 1
    write_set(tmp_path / "False", packed=True)  # both there, as torchvision leaves them
    assert listing(tmp_path / "False").source.images == "train-images-idx3-ubyte"


def test_what_is_packed_is_told_by_its_bytes_not_its_name(tmp_path):
    uri = write_set(tmp_path, packed=True)
    for path in tmp_path.iterdir():
        path.rename(path.with_suffix(""))
    assert listing(uri).counts() == [2] * 10


def test_grey_images_become_rgb(tmp_path):
    found = listing(write_set(tmp_path))
    image = decode(next(found.source.read(found.entries.slice(7, 1))), 4)
    assert image.shape == (4, 4, 3) and (image == image[..., :1]).all()


def test_a_packed_file_is_unpacked_once_in_a_process_until_it_is_written_again(tmp_path, monkeypatch):
    unpacked, parse = [], idxfiles.parse
    monkeypatch.setattr(idxfiles, "parse", lambda *given: unpacked.append(given[1]) or parse(*given))
    found = listing(write_set(tmp_path, packed=True))
    source = pickle.loads(pickle.dumps(found.source))  # as it comes to a worker
    for at in range(20):
        list(source.read(found.entries.slice(at, 1)))
    assert sorted(unpacked) == [1, 3]
    write_split(tmp_path, "train", 30, packed=True)
    again = listing(tmp_path)
    assert len(again) == 30 and again.entries["version"][0] != found.entries["version"][0]


def test_images_that_are_gone_since_they_were_listed_are_said(tmp_path):
    found = listing(write_set(tmp_path))
    write_split(tmp_path, "train", 10)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte had more than 10 images when it was listed"):
        list(found.source.read(found.entries))


def test_torchvisions_root_is_taken_if_it_holds_one_set(tmp_path):
    write_set(tmp_path / "FashionMNIST" / "raw")
    for uri in (tmp_path, tmp_path / "FashionMNIST", tmp_path / "FashionMNIST" / "raw"):
        assert detect(str(uri)) == "idx"
        assert listing(uri).source.uri == str(tmp_path / "FashionMNIST" / "raw")
    assert set(listing(tmp_path).classes.names) == set(FASHION)
    write_set(tmp_path / "KMNIST" / "raw")
    refuses(f"holds 2 sets of idx files; name one of them, such as --data {tmp_path}/FashionMNIST/raw or", tmp_path)
    assert set(listing(tmp_path / "KMNIST").classes.names) == set(HIRAGANA)


def test_folders_of_images_beside_idx_files_are_what_is_meant(tmp_path):
    uri = write_imagefolder(tmp_path / "both", make_images(2))
    write_set(Path(uri))
    assert detect(uri) == "imagefolder"
    assert len(listing(uri, format="idx")) == 20


def test_emnist_is_turned_upright_and_named_by_its_letters(tmp_path):
    labels = np.arange(52) % 26 + 1
    for split in ("emnist-letters-train", "emnist-letters-test"):
        write_split(tmp_path, split, 52, labels=labels)
    found = listing(tmp_path, 26)
    assert found.classes.names == tuple("abcdefghijklmnopqrstuvwxyz") and found.counts() == [2] * 26
    assert next(found.source.read(found.entries)) == b"P5 4 3 255\n" + pixels(52)[0].T.tobytes()
    assert listing(tmp_path / "emnist-letters-test*", 26).source.images.startswith("emnist-letters-test-images")
    write_split(tmp_path, "emnist-digits-train", 20)
    refuses(f"such as --data '{tmp_path}/emnist-digits-\\*' or --data '{tmp_path}/emnist-letters-\\*'", tmp_path)
    assert listing(tmp_path / "emnist-digits-*").classes.names == tuple("0123456789")


ALIKE = "cijklmopsuvwxyz"  # letters whose two cases EMNIST merges
EMNIST = {"balanced": ALIKE, "bymerge": ALIKE, "byclass": "", "digits": string.ascii_letters}


@pytest.mark.parametrize("name", EMNIST)
def test_emnists_sets_have_the_classes_of_their_authors(tmp_path, name):
    classes = sorted(set(string.digits + string.ascii_letters) - set(EMNIST[name]))
    write_split(tmp_path, f"emnist-{name}-train", 2 * len(classes), labels=np.arange(2 * len(classes)) % len(classes))
    found = listing(tmp_path, len(classes))
    assert list(found.classes.names) == classes
    assert found.entries["label"][: len(classes)].to_pylist() == list(range(len(classes)))


def test_classes_in_an_order_of_ones_own(tmp_path):
    write_set(tmp_path / "fashion-mnist")
    found = listing(tmp_path / "fashion-mnist", classes=FASHION)
    assert found.classes.names == FASHION
    assert found.entries["label"].to_pylist() == [i % 10 for i in range(20)]


def test_a_set_with_a_name_of_its_own_may_have_any_labels(tmp_path):
    write_split(tmp_path, "glyphs-train", 60, labels=np.repeat([3, 77, 200], 20))
    assert listing(tmp_path, 201).classes.sources == ("3", "77", "200")


BROKEN = {
    "is cut off: it ends 12 bytes too early; copy it again": lambda data: data[:-12],
    "is cut off: it ends 3 bytes too early": lambda data: data[:13],
    "goes on after the 20 x 4 x 3 bytes": lambda data: data + b"\0",
    "is cut off: its header tells of 4294967295 x": lambda data: data[:4] + b"\xff" * 12 + data[16:],
    r"is no idx file, it begins with b'<!DO'; download it again": lambda data: b"<!DOCTYPE html>",
    r"is no idx file, it begins with b''": lambda data: b"",
    "holds 32-bit integers; only unsigned bytes are read": lambda data: b"\0\0\x0c\3" + data[4:],
    r"has 1 size\(s\) in its header, and grey images \(number, height, width\) have 3": lambda data: (
        b"\0\0\x08\1" + data[4:]
    ),
    "holds images of 0 x 3 pixels": lambda data: data[:8] + bytes(4) + data[12:16],
}


@pytest.mark.parametrize("words", BROKEN)
@pytest.mark.parametrize("packed", [False, True])
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, words, packed):
    path = tmp_path / "train-images-idx3-ubyte"
    write_set(tmp_path)
    broken = BROKEN[words](path.read_bytes())
    path.write_bytes(gzip.compress(broken) if packed else broken)
    refuses(f"--data {tmp_path}: train-images-idx3-ubyte {words}", tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-30], lambda data: data[:60] + bytes(20) + data[80:]])
def test_a_packed_file_that_is_cut_off_or_damaged_is_refused(tmp_path, damage):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_set(tmp_path, packed=True)
    path.write_bytes(damage(path.read_bytes()))
    refuses("train-images-idx3-ubyte.gz (cannot be unpacked, so it is cut off or damaged|is cut off)", tmp_path)


def test_images_and_labels_must_belong_together(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(pack(np.zeros(19, np.uint8)))
    refuses("train-images-idx3-ubyte has 20 images and train-labels-idx1-ubyte 19 labels", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    refuses("train-images-idx3-ubyte is there and its labels are not; put train-labels-idx1-ubyte or", tmp_path)
    write_set(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    refuses("train-labels-idx1-ubyte is there and its images are not; put train-images-idx3-ubyte", tmp_path)


def test_a_label_that_the_set_does_not_have_is_refused(tmp_path):
    write_split(tmp_path, "train", 20, labels=np.array([*range(10)] * 2) + 4 * (np.arange(20) == 17))
    refuses("train-labels-idx1-ubyte gives image 17 the label 11, and the classes of MNIST are 0 to 9", tmp_path)


def test_a_split_that_is_not_there_is_not_replaced_by_the_other(tmp_path):
    write_split(tmp_path, "t10k", 10)
    refuses(
        rf"has t10k files and no train-images-idx3-ubyte .* name what is there: --data '{tmp_path}/t10k\*'", tmp_path
    )
    assert len(listing(tmp_path / "t10k*")) == 10


def test_test_images_are_those_of_the_same_set(tmp_path):
    uri = write_set(tmp_path / "set")
    test = DataConfig(f"{uri}/t10k-images-idx3-ubyte", "idx")
    assert held_out_of(DataConfig(uri)) == held_out_of(DataConfig(uri, "idx")) == test
    assert to_test_on(DataConfig(uri)) == test and len(listing(test.uri)) == 10
    for other in (f"{uri}/t10k*", f"{uri}/train*", str(tmp_path / "nowhere")):
        assert to_test_on(DataConfig(other)) == DataConfig(other)
    assert held_out_of(DataConfig("digits-affine")) == DataConfig("digits-affine/test", "digits")
    assert held_out_of(DataConfig(str(tmp_path / "nowhere"))) is None


def test_a_folder_of_training_images_alone_has_no_test_images(tmp_path):
    """Its sets are made and reported; only who asks to test on it is told what it lacks."""
    write_split(tmp_path, "train", 10)
    assert held_out_of(DataConfig(str(tmp_path))) is held_out_of(DataConfig(str(tmp_path), "idx")) is None
    with pytest.raises(ValueError, match="no t10k-images-idx3-ubyte"):
        to_test_on(DataConfig(str(tmp_path)))


@pytest.fixture
def places(tmp_path, monkeypatch) -> Path:
    """Where Fashion-MNIST is looked for: a folder of two."""
    monkeypatch.setattr(named, "PLACES", (str(tmp_path / "debian"), str(tmp_path / "torchvision/raw")))
    return tmp_path


def test_fashion_mnist_is_found_by_its_name(places):
    with pytest.raises(ValueError, match=r"not on this machine .*apt-get install dataset-fashion-mnist, or python -c"):
        open_source(DataConfig("fashion-mnist"))
    write_set(places / "torchvision/raw")
    assert open_source(DataConfig("fashion-mnist")).uri == str(places / "torchvision/raw")
    write_set(places / "debian")
    assert open_source(DataConfig("fashion-mnist", "idx")).uri == str(places / "debian")
    assert open_source(DataConfig("fashion-mnist/test")).images == "t10k-images-idx3-ubyte"
    for name in ("fashion-mnist", "digits", "digits-affine"):
        assert to_test_on(DataConfig(name)).uri == to_test_on(DataConfig(f"{name}/test")).uri == f"{name}/test"
    assert to_test_on(DataConfig("digits/train")).uri == "digits/train"
    assert held_out_of(DataConfig("fashion-mnist", "idx")) == DataConfig("fashion-mnist/test", "idx")
    with pytest.raises(ValueError, match="fashion-mnist has no split 'val'; it has train and test"):
        open_source(DataConfig("fashion-mnist/val"))
    with pytest.raises(ValueError, match="no such file or folder"):
        open_source(DataConfig("fashion-mnist", "imagefolder"))


def test_a_set_in_folders_finds_its_classes_among_images_that_have_none(tmp_path):
    write_set(tmp_path / "fashion-mnist")
    listing = list_real(DataConfig(str(tmp_path / "fashion-mnist")), tuple(as_folder(name) for name in FASHION), None)
    assert listing.classes.sources == FASHION and listing.classes.model_classes == tuple(range(10))


def test_digits_and_fashion_mnist_have_no_format_but_their_own():
    with pytest.raises(ValueError, match="--format digits has digits and digits-affine"):
        open_source(DataConfig("fashion-mnist", "digits"))


@pytest.mark.skipif(not Path(named.PLACES[0]).is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist(tmp_path):
    train, test = (listing(f"fashion-mnist{split}", classes=FASHION) for split in ("", "/test"))
    assert (train.counts(), test.counts()) == ([6000] * 10, [1000] * 10)
    assert train.entries["label"][:10].to_pylist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):  # told by its labels, wherever it lies
        (tmp_path / name).symlink_to(Path(named.PLACES[0]) / name)
    copied = listing(tmp_path, classes=FASHION)
    assert copied.digest == train.digest
    stored = np.frombuffer(gzip.decompress(Path(named.PLACES[0], "train-images-idx3-ubyte.gz").read_bytes()), np.uint8)
    rows = [59_999, 0, 31_415, 0]
    for row, data in zip(rows, copied.source.read(copied.entries.take(pa.array(rows))), strict=True):
        assert (decode(data, 28)[..., 0].ravel() == stored[16 + 784 * row :][:784]).all()
