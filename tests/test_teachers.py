"""Teachers: whose soft labels students learn, loaded, matched to the set's classes, or refused."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import timm
import torch
from stripes import hard, stripes

from d3hr_ray.config import RunError
from d3hr_ray.datasets.images import Images
from d3hr_ray.evaluation.training import train_student
from d3hr_ray.models.autoencoder import to_images
from d3hr_ray.models.classifiers import evaluate, preflight
from d3hr_ray.models.students import Fitted, build_student
from d3hr_ray.models.teachers import (
    Ensemble,
    Target,
    load_teacher,
    load_teachers,
    save_teacher,
    side_of,
    teacher_id,
)
from d3hr_ray.stages.judge import load_classifier
from d3hr_ray.store import Store


@pytest.fixture
def taught(tmp_path):
    """A folder with a teacher of three classes, in the order c, a, b."""
    images = stripes(8)
    net = train_student("convnet-d3-w32", hard(), images, images, None, 0)
    store = Store(str(tmp_path / "teacher"))
    save_teacher(store, "convnet-d3-w32", images.classes, images.side, net.weights, {})
    return store


def test_a_teacher_answers_in_the_sets_class_order(taught):
    test = stripes(20, 2)
    order = np.array([2, 0, 1])  # the set's label k is the teacher's class order[k]
    turned = Images(test.pixels, np.argsort(order)[test.labels], tuple(np.array(test.classes)[order]))
    teacher = load_teachers([taught.uri], Target(turned.classes, None, 16), "cpu")
    assert preflight(teacher, turned, "t", "cpu") > 0.95
    assert teacher_id([taught.uri]).startswith("convnet-d3-w32@")


def test_a_teacher_with_a_wrong_class_order_is_refused(taught):
    test = stripes(20, 2)
    wrong = replace(test, labels=(test.labels + 1) % 3)
    teacher = load_teachers([taught.uri], Target(test.classes, None, 16), "cpu")
    with pytest.raises(RunError, match="near chance"):
        preflight(teacher, wrong, "t", "cpu")


def test_teachers_that_do_not_fit_are_refused(taught, tmp_path):
    abc = Target(("a", "b", "c"), None, 16)
    with pytest.raises(ValueError, match="takes 16 pixels and the students 32"):
        load_teacher(taught.uri, replace(abc, side=32))
    with pytest.raises(ValueError, match="does not know class 'x'"):
        load_teacher(taught.uri, Target(("a", "x"), None, 16))
    with pytest.raises(ValueError, match="no timm model"):
        load_teacher("resnet17", abc)
    with pytest.raises(ValueError, match="no such file"):
        load_teacher(f"resnet18={tmp_path}/none.pt", abc)
    torch.save({"a": torch.zeros(3, 4)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="the weights are not convnet-d3's"):
        load_teacher(f"convnet-d3={tmp_path}/odd.pt", abc)


@pytest.mark.parametrize("labels", [None, ["c", "a", "b"]], ids=["unnamed", "named"])
def test_a_model_of_the_hub_is_a_teacher_if_it_names_its_classes(monkeypatch, labels):
    made, asked = timm.create_model("resnet18", num_classes=3), []
    made.pretrained_cfg |= {"num_classes": 3, "label_names": labels, "input_size": (3, 16, 16)}
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: asked.append((name, pretrained)) or made)
    abc, images = Target(("a", "b", "c"), None, 16), torch.zeros(1, 3, 16, 16)
    if labels is None:
        with pytest.raises(ValueError, match="--teacher hf-hub:me/net knows 3 classes without names"):
            load_teacher("hf-hub:me/net", abc)
        return
    found = load_teacher("hf-hub:me/net", abc).eval()
    assert asked == [("hf-hub:me/net", True)]
    mean, std = (torch.tensor(made.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(found(images), made(((0.5 - mean) / std).expand_as(images))[:, [1, 2, 0]])


def test_a_model_of_the_hub_that_cannot_be_had_says_what_to_do(monkeypatch):
    def offline(name, pretrained):
        raise OSError("offline mode is enabled\nand more lines")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ValueError, match=r"cannot be had \(offline mode is enabled\); download them and give ARCH=FILE"
    ):
        load_teacher("hf-hub:timm/resnet18.a1_in1k", Target(("a",), None, 16))


def test_a_checkpoint_file_is_a_teacher_and_several_are_averaged(taught, tmp_path):
    abc, test = Target(("a", "b", "c"), None, 16), stripes(20, 2)
    net = load_teacher(taught.uri, abc)
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.net.state_dict().items()}}, tmp_path / "t.pt")
    again = load_teacher(f"convnet-d3-w32={tmp_path}/t.pt", abc).eval()
    images = torch.from_numpy(test.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(again(images), net.eval()(images))
    torch.testing.assert_close(Ensemble([net, again]).eval()(images), net(images))
    assert evaluate(again, test, "cpu").top1 > 0.95


@pytest.mark.parametrize("made", [b"no weights", [torch.ones(2, 2)], {0: torch.ones(2, 2)}, {"epoch": 3}])
def test_a_file_without_weights_is_no_teacher(tmp_path, made):
    if isinstance(made, bytes):
        (tmp_path / "t.pt").write_bytes(made)
    else:
        torch.save(made, tmp_path / "t.pt")
    with pytest.raises(ValueError, match=r"no checkpoint of weights|holds no linear layer"):
        load_teacher(f"convnet-d3-w32={tmp_path}/t.pt", Target(("a",), None, 16))


def test_a_file_of_a_network_for_small_images_judges_them_as_they_are(taught, tmp_path):
    """Enlarged to ImageNet's 224 pixels it would judge by chance."""
    images = stripes(20, 1)
    net = build_student("resnet8-small", 3, 16, 0)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    name = f"resnet8-small={tmp_path}/net.pt"
    assert side_of(name, 16) == 16 and side_of(f"resnet18={tmp_path}/net.pt", 16) == 224
    classes = pa.table({"name": list(images.classes), "wnid": ["", "", ""]})
    judge = load_classifier(name, classes, "cpu", 16)
    seen = to_images(torch.from_numpy(images.pixels))
    with torch.inference_mode():
        torch.testing.assert_close(judge.probabilities(seen), net.eval()(seen).softmax(1))


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "convnext_atto", "mlp", "resnet8-small", "alexnet", "vgg11"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_is_read_in_whatever_order_its_layers_lie(tmp_path, arch, suffix):
    """safetensors sorts them, so that the last layer of the file is not the network's."""
    side = 32 if arch in ("mlp", "resnet8-small", "alexnet") else 16 if arch == "vgg11" else 64
    net = build_student(arch, 3, side, 0)
    plain = net.net.net if isinstance(net.net, Fitted) else net.net
    state = dict(sorted(plain.state_dict().items()))
    path = f"{tmp_path}/net{suffix}"
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    found = load_teacher(f"{arch}={path}", Target(("a", "b", "c"), None, side))
    images = torch.rand(2, 3, side, side) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(found.eval()(images), net.eval()(images))
