"""Class maps: names, wnids, numbers and subsets meet the model's classes by name, or not at all."""

import pytest
from timm.data import ImageNetInfo

from d3hr_ray.datasets.classes import build_class_map, folder_names, read_classes
from d3hr_ray.datasets.subsets import SUBSETS


def test_named_subsets_are_imagenet_classes_without_doubles():
    wnids = set(ImageNetInfo("imagenet-1k").label_names())
    for name, size in (("imagenette", 10), ("imagewoof", 10), ("imagenet100", 100)):
        assert len(set(SUBSETS[name])) == size
        assert set(SUBSETS[name]) <= wnids
        assert read_classes([name]) == SUBSETS[name]


def test_wnids_numbers_and_names_are_the_same_imagenet_class():
    for found in (["n01440764", "n01443537"], ["0", "1"], ["tench", "goldfish"], ["tench, Tinca tinca", "goldfish"]):
        classes = build_class_map(found, [], 1000, None)
        assert sorted(classes.model_classes) == [0, 1]
        for wanted in ("n01443537", "goldfish", "1"):
            assert build_class_map(found, [wanted], 1000, None).model_classes == (1,)


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
        (["crane"], [], 1000, None, "no ImageNet wnid"),  # two ImageNet classes are called crane
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


def test_folder_names_are_safe_and_unique():
    hostile = ["../../etc", "a/b", "a_b", "..", ""]
    classes = build_class_map(hostile, [f"{n}={i}" for i, n in enumerate(hostile)], 5, None)
    names = folder_names(classes.table())
    assert len({n.lower() for n in names}) == 5
    assert all(n and "/" not in n and "." not in n for n in names)
    assert folder_names(build_class_map(["n01440764"], [], 1000, None).table()) == ["n01440764"]
