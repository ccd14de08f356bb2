"""Class maps: names, wnids, numbers and subsets meet the model's classes by name, or not at all."""

import json
import random
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import encode
from timm.data import ImageNetInfo
from torchvision.models._meta import _IMAGENET_CATEGORIES

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.classes import build_class_map, folder_names, read_classes
from d3hr_ray.datasets.imagenet import distinct, imagenet, wordnet
from d3hr_ray.datasets.listing import list_images
from d3hr_ray.datasets.subsets import SUBSETS
from d3hr_ray.evaluation.comparison import list_real

IMAGE = encode(np.zeros((8, 8, 3), np.uint8))
INFO = ImageNetInfo("imagenet-1k")
TIMM = [INFO.label_name_to_description(wnid, detailed=False) for wnid in INFO.label_names()]
SHORT = [name.split(",")[0] for name in TIMM]
CLIP = [next(n for n in s.exact if s.exact[n] == {i}) for s in imagenet().spellings[-1:] for i in range(1000)]
SPELLINGS = {
    "wnids": INFO.label_names(),
    "numbers": list(map(str, range(1000))),
    "Hugging Face": [*TIMM[:517], "crane2", *TIMM[518:]],
    "torchvision": list(_IMAGENET_CATEGORIES),
    "timm": distinct(TIMM),
    "timm's first": distinct(SHORT),
    "Keras": distinct([name.replace(" ", "_") for name in SHORT]),
    "CLIP": CLIP,
}


def test_named_subsets_are_imagenet_classes_without_doubles():
    wnids = set(ImageNetInfo("imagenet-1k").label_names())
    for name, size in (("imagenette", 10), ("imagewoof", 10), ("imagenet100", 100)):
        assert len(set(SUBSETS[name])) == size
        assert set(SUBSETS[name]) <= wnids
        assert read_classes([name]) == SUBSETS[name]


def test_wordnets_lists_are_timms_without_importing_it():
    assert wordnet() == (tuple(INFO.label_names()), INFO.label_descriptions())


def test_wnids_numbers_and_names_are_the_same_imagenet_class():
    for found in (["n01440764", "n01443537"], ["0", "1"], ["tench", "goldfish"], ["tench, Tinca tinca", "goldfish"]):
        classes = build_class_map(found, [], 1000, None)
        assert sorted(classes.model_classes) == [0, 1]
        for wanted in ("n01443537", "goldfish", "1"):
            assert build_class_map(found, [wanted], 1000, None).model_classes == (1,)


@pytest.mark.parametrize("names", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_of_imagenet_is_read_as_a_list(names):
    """All 1,000, whatever the order they are listed in, and in an order of one's own."""
    found = random.Random(0).sample(names, len(names))
    classes = build_class_map(found, [], 1000, None)
    assert {s: i for s, i in zip(classes.sources, classes.model_classes, strict=True)} == {
        name: i for i, name in enumerate(names)
    }
    wanted = build_class_map(found, INFO.label_names()[::-1], 1000, None)
    assert wanted.sources == tuple(names[::-1])


@pytest.mark.parametrize("names", [n for s, n in SPELLINGS.items() if s not in ("wnids", "numbers")])
def test_names_that_lost_their_case_or_took_underscores_are_matched_or_refused(names):
    """Every name but the few that fit two classes then; those are never guessed."""
    folders = [name.lower().replace(" ", "_").replace("/", "_") for name in names]
    twice = {f for f in folders if folders.count(f) > 1}
    found = sorted(set(folders) - twice)
    classes = build_class_map(found, [], 1000, None)
    assert all(folders[i] == source for source, i in zip(classes.sources, classes.model_classes, strict=True))
    for name in twice:
        with pytest.raises(ValueError, match=f"class '{name}' may be 264 .* or 474 "):
            build_class_map([*found, name], [], 1000, None)


def test_the_same_1000_names_in_clips_own_list():
    """CLIP calls two classes missile and two sunglasses: by position, or not at all."""
    assert [i for i, name in enumerate(CLIP) if name.startswith(("missile", "sunglasses"))] == [657, 744, 836, 837]
    assert CLIP[264] == "Cardigan Welsh Corgi" and CLIP[639] == "one-piece bathing suit" and CLIP[0] == "tench"


@pytest.mark.parametrize(
    ("found", "ids"),
    [
        (["Cardigan"], [264]),
        (["cardigan"], [474]),
        (["Cardigan", "cardigan"], [264, 474]),
        (["crane", "crane2", "stingray"], [134, 517, 6]),  # Hugging Face's
        (["crane bird", "crane", "tench"], [134, 517, 0]),  # torchvision's
        (["missile", "projectile"], [657, 744]),
        (["polecat", "skunk"], [358, 361]),
        (["persian cat", "Jack_o_lantern"], [283, 607]),
        (["american robin", "n01440764", "1"], [15, 0, 1]),
        ([unicodedata.normalize("NFD", "tench")], [0]),
    ],
)
def test_names_are_read_together_and_case_counts(found, ids):
    classes = build_class_map(found, found, 1000, None)
    assert classes.model_classes == tuple(ids)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (["crane", "tench"], "'crane' may be 134 .n02012849, crane bird. or 517 .n03126707, crane. of ImageNet"),
        (["maillot"], "'maillot' may be 638 .n03710637, maillot. or 639 .n03710721, maillot tank suit."),
        (["missile", "tench"], "'missile' may be 657 .* or 744"),
        (["cardigan", "persian_cat"], "'cardigan' may be 264 .n02113186, Cardigan. or 474"),
        (["panda"], "'panda' may be 387 .* or 388"),
        (["sea robin"], "no ImageNet wnid"),
    ],
)
def test_a_name_of_two_classes_is_refused_with_both(found, words):
    with pytest.raises(ValueError, match=words):
        build_class_map(found, [], 1000, None)


def test_class_ids_say_what_a_class_is_and_leave_none_out():
    found = ["crane", "tench", "dog"]
    classes = build_class_map(found, [], 1000, None, ["crane=134", "dog=207"])
    assert classes.sources == ("crane", "dog", "tench")
    assert classes.model_classes == (134, 207, 0)
    assert build_class_map(found, ["n02012849", "tench"], 1000, None, ["crane=134", "dog=207"]).model_classes == (
        134,
        0,
    )
    assert build_class_map(["hund", "cat"], [], 2, ["cat", "dog"], ["hund=1"]).model_classes == (0, 1)
    assert build_class_map(["hund", "cat"], ["dog", "cat"], 2, ["cat", "dog"], ["hund=1"]).sources == ("hund", "cat")
    with pytest.raises(ValueError, match="--class-ids wolf: the data has no such class"):
        build_class_map(found, [], 1000, None, ["wolf=3"])
    with pytest.raises(ValueError, match="--class-ids a=b: write NAME=ID"):
        DataConfig("x", class_ids=("a=b",))


def test_a_class_may_be_called_like_an_id():
    classes = build_class_map(["a=1", "a"], ["a=1=1", "a=0"], 2, None)
    assert classes.sources == ("a=1", "a") and classes.model_classes == (1, 0)
    assert build_class_map(["a=1", "a"], ["a=1"], 3, ["a", "b", "a=1"]).model_classes == (2,)


def test_composed_and_decomposed_accents_are_one_name():
    mac = unicodedata.normalize("NFD", "Vögel")
    assert build_class_map([mac, "x"], ["Vögel"], 2, ["Vögel", "x"]).sources == (mac,)
    assert build_class_map([mac], [], 2, ["x", "Vögel"]).model_classes == (1,)


@pytest.mark.parametrize("style", ["{name}", "{label:04d}_{name}"])
def test_folders_are_the_classes_that_no_folder_can_be_named_as(style):
    """T-shirt/top lies in T-shirt_top, or, as in our sets, in 0000_T-shirt_top; what may be two is neither."""
    clothes, safe = ("T-shirt/top", "Ankle boot", "Bag"), ("T-shirt_top", "Ankle_boot", "Bag")
    folders = [style.format(name=name, label=label) for label, name in enumerate(safe)]
    there = build_class_map(clothes, folders, 3, folders)
    assert there.sources == clothes and there.model_classes == (0, 1, 2)
    back = build_class_map(sorted(folders), clothes, 3, clothes)
    assert back.sources == tuple(folders) and back.model_classes == (0, 1, 2)
    with pytest.raises(ValueError, match="no such class"):
        build_class_map(("a/b", "a b"), [style.format(name="a_b", label=0)], 2, ["x", "y"])
    with pytest.raises(ValueError, match="no such class"):
        build_class_map(("civic", "x"), ["2019_civic"], 2, ["civic", "x"])  # not its position: part of a name


def test_hugging_faces_parquet_of_all_classes_and_its_test_images(tmp_path):
    """Labels are positions in the file's names; a set that knows wnids finds its classes there."""
    names, labels = SPELLINGS["Hugging Face"], [517, 134, 264, 474, 0, 999]
    names_of = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pa.table({"image": [{"bytes": IMAGE, "path": None}] * 6, "label": labels})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names_of)}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no such class"):
        list_images(DataConfig(str(tmp_path), classes=("goldfish",)), 1000, None)
    wnids = tuple(INFO.label_names()[i] for i in (474, 264, 517))
    assert list_real(DataConfig(str(tmp_path)), ("a", "b", "c"), wnids).classes.model_classes == (474, 264, 517)


def test_two_classes_of_one_name_in_a_parquets_list_stay_two(tmp_path):
    names = SHORT[:640]
    table = pa.table({"image": [IMAGE] * 2, "label": [638, 639]})
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    assert list_images(DataConfig(str(tmp_path)), 1000, None).classes.model_classes == (638, 639)


def test_integers_sort_by_value_and_the_given_order_is_kept():
    found = [str(i) for i in range(12)]
    assert build_class_map(found, [], 12, None).names == tuple(found)
    assert build_class_map(found, ["10", "2"], 12, None).model_classes == (10, 2)


def test_full_names_of_imagenet_are_matched_before_their_parts():
    info = ImageNetInfo("imagenet-1k")
    full = [info.label_name_to_description(w, detailed=False) for w in info.label_names()]
    unique = [name for name in full if full.count(name) == 1]
    assert len(unique) >= 996
    classes = build_class_map(unique, unique, 1000, None)
    assert classes.model_classes == tuple(full.index(name) for name in unique)


def test_numbers_from_1_are_not_taken_for_ids():
    """10 classes called 1 to 10: by order, all of them, never some by value and one by order."""
    found = [str(i) for i in range(1, 11)]
    assert build_class_map(found, [], 10, None).model_classes == tuple(range(10))


def test_folders_sort_like_labels_unless_they_are_wnids():
    numbers = build_class_map([str(i) for i in range(12)], [], 12, None)
    names = folder_names(numbers.table())
    assert names == sorted(names) and names[10] == "0010_10"
    woof = build_class_map(SUBSETS["imagewoof"], SUBSETS["imagewoof"], 1000, None)
    assert folder_names(woof.table()) == list(SUBSETS["imagewoof"])


def test_a_models_own_names_decide():
    classes = build_class_map(["dog", "cat"], [], 3, ["bird", "cat", "dog"])
    assert classes.names == ("cat", "dog")
    assert classes.model_classes == (1, 2)


def test_an_id_can_be_written_down():
    assert build_class_map(["dog", "cat"], ["dog=207", "cat=281"], 1000, None).model_classes == (207, 281)


@pytest.mark.parametrize(
    ("found", "wanted", "num", "names", "words"),
    [
        (["a", "b", "c"], [], 2, None, "fewer than the data's 3"),
        (["a", "b"], ["c"], 10, None, "no such class"),
        (["dog", "cat"], [], 1000, None, "no ImageNet wnid"),
        (["n02012849", "n01440764"], ["crane"], 1000, None, "--classes crane: fits 134 .* or 517"),
        (["tench", "n01440764"], [], 1000, None, "one class of the model"),
        (["a", "b"], [], 5, None, "cannot be matched"),
        (["a"], [], 5, ["x"], "knows no class 'a'"),
        (["dog"], ["dog=1000"], 1000, None, "0 to 999"),
        (["n01440764"], ["n01440764", "tench"], 1000, None, "same class twice"),
    ],
)
def test_what_cannot_be_matched_is_refused(found, wanted, num, names, words):
    with pytest.raises(ValueError, match=words):
        build_class_map(found, wanted, num, names)


def test_a_file_of_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("n01443537\n\nn01440764\n")
    assert read_classes([str(path)]) == ("n01443537", "n01440764")
    path.write_text("\n")
    with pytest.raises(ValueError, match="names no class"):
        read_classes([str(path)])
    path.write_bytes("n01443537\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"--classes {path}: not UTF-8 .* save it so"):
        read_classes([str(path)])
    path.write_bytes(b"\xef\xbb\xbfn01443537\n")
    assert read_classes([str(path)]) == ("n01443537",)


def test_folders_sort_as_labels_do_beyond_ten_thousand_classes():
    names = [f"kind {(k * 7919) % 10_007}" for k in range(10_007)]
    folders = folder_names(pa.table({"label": range(10_007), "name": names, "wnid": [None] * 10_007}))
    assert folders == sorted(folders) and folders[-1].startswith("10006_")


def test_folder_names_are_safe_and_unique():
    hostile = ["../../etc", "a/b", "a_b", "..", ""]
    classes = build_class_map(hostile, [f"{n}={i}" for i, n in enumerate(hostile)], 5, None)
    names = folder_names(classes.table())
    assert len({n.lower() for n in names}) == 5
    assert all(n and "/" not in n and "." not in n for n in names)
    assert folder_names(build_class_map(["n01440764"], [], 1000, None).table()) == ["n01440764"]
