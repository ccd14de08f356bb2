"""Presets and own data: which settings a command line gives when it does not say."""

import json
import shlex
from dataclasses import replace

import pytest
from conftest import PIPELINE

from d3hr_ray.cli import presets
from d3hr_ray.cli.defaults import default_out
from d3hr_ray.cli.distill_config import build_config
from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.parsing import parse
from d3hr_ray.cli.presets import PRESETS, as_official
from d3hr_ray.cli.pretrain_config import build_config as pretraining_config
from d3hr_ray.cli.pretrain_config import find_splits
from d3hr_ray.cli.pretrain_flags import PretrainFlags
from d3hr_ray.cli.resolve import on_grid, resolve_auto
from d3hr_ray.cli.variants import vary
from d3hr_ray.config import ModelConfig, as_dict
from d3hr_ray.datasets.idxclasses import FASHION
from d3hr_ray.models.card import sampling_grid
from d3hr_ray.models.geometry import DIT_XL_CARD
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.store import Store


def test_official_settings_are_the_authors():
    config = as_official(PRESETS["imagenet1k"]())
    assert (config.inversion.guidance, config.synthesis.guidance, config.inversion.timesteps) == (4.0, 4.0, (600,))
    assert (config.search.method, config.search.candidates, config.search.skew_weight) == ("random", 1_000_000, 0.1)
    assert config.synthesis.image_size == 224


OUTS = {
    "": "digits", "--preset imagenet1k --data /x/y": "imagenet1k", "--preset a/best.json": "best",
    "--data digits-affine --model digits-affine": "digits-affine", "--data digits-affine/test": "digits-affine",
    "--data digits --model digits-affine": "digits-affine", "--data flowers --model m": "flowers",
    "--data /data/flowers/train/ --model m": "flowers", "--data s3://bucket/train?scheme=http --model m": "bucket",
    "--data /x/pets.parquet --model m": "pets", "--data '/x/pets/train-*.parquet' --model m": "pets",
    "--data /x/pets --model digits": "pets", "--method dit --model ./my-dit": "my-dit",
    "--data fashion-mnist": "fashion-mnist", "--preset fashion-mnist --data /x/y": "fashion-mnist",
    "--data fashion-mnist --model m": "m", "--model fashion-mnist": "fashion-mnist",
    "--data /train --model m": "own", "--data '/x/my pets' --model m": "my-pets",
}  # fmt: skip


@pytest.mark.parametrize("command", OUTS)
def test_the_default_folder_is_named_after_ones_own_data(command):
    assert default_out(parse(DistillFlags, "", shlex.split(command))) == f"runs/{OUTS[command]}"


@pytest.mark.parametrize("method", ["d3hr", "cao2"])
@pytest.mark.parametrize("fidelity", ["fixed", "official"])
def test_own_data_and_model_take_no_preset(fidelity, method):
    """Neutral t and guidance, images as large as the model's, and nothing of the digits."""
    made = build_config(DistillFlags(data="pets", model=PIPELINE, fidelity=fidelity, method=method, limit_per_class=3))
    assert (made.data.format, made.data.limit_per_class, made.model.name) == ("auto", 3, PIPELINE)
    assert made.inversion.timesteps == (600,) and made.synthesis.image_size is None
    assert made.inversion.guidance == made.synthesis.guidance == 2.0


def test_a_default_t_is_the_nearest_on_the_models_grid():
    made = build_config(DistillFlags(data="pets", model=PIPELINE, ddim_steps=30))
    assert on_grid(made, sampling_grid(PIPELINE, 30)).inversion.timesteps == (594,)
    assert on_grid(made, sampling_grid(PIPELINE, 50)) == replace(
        made, inversion=replace(made.inversion, timesteps=(600,))
    )
    assert on_grid(made, (0, 900)).inversion.timesteps == (900,)


def test_a_model_of_digits_brings_their_images_and_another_asks_for_its_own(tmp_path):
    card = tmp_path / "training.json"
    card.write_text(json.dumps({"settings": {"data": {"uri": "digits-affine"}}}))
    made = build_config(DistillFlags(model=str(tmp_path)))
    assert (made.data, made.model.name) == (PRESETS["digits-affine"]().data, str(tmp_path))
    card.write_text(json.dumps({"settings": {"data": {"uri": "/data/pets"}}}))
    with pytest.raises(ValueError, match=f"--data is needed: the images of --model {tmp_path} do not come"):
        build_config(DistillFlags(model=str(tmp_path)))
    made = build_config(DistillFlags(model="facebook/DiT-XL-2-256", data="/data/pets"))
    assert (made.inversion.guidance, made.synthesis.guidance) == (1.0, 4.0)  # ImageNet's


def test_a_named_set_brings_its_preset_and_its_classes_in_order(tmp_path):
    made, named = PRESETS["fashion-mnist"](), build_config(DistillFlags(data="fashion-mnist"))
    assert replace(named, data=replace(named.data, format="idx")) == made and made.data.classes == FASHION
    elsewhere = build_config(DistillFlags(preset="fashion-mnist", data=str(tmp_path)))
    assert elsewhere == replace(made, data=replace(made.data, uri=str(tmp_path), format="auto"))
    pretrained = pretraining_config(PretrainFlags(preset="fashion-mnist"))
    assert (pretrained.data.uri, pretrained.data.classes) == ("fashion-mnist", FASHION)
    assert pretraining_config(PretrainFlags(preset="fashion-mnist", classes=("Bag", "Coat"))).data.classes == (
        "Bag", "Coat",
    )  # fmt: skip
    assert pretraining_config(PretrainFlags(preset="fashion-mnist", data=str(tmp_path))).data.classes == ()
    (tmp_path / "training.json").write_text(json.dumps({"settings": as_dict(pretrained)}))
    assert find_splits(str(tmp_path), None) == (pretrained.data, replace(pretrained.data, uri="fashion-mnist/test"))
    assert build_config(DistillFlags(model=str(tmp_path))).data == made.data


def test_distorted_digits_bring_the_model_that_knows_them():
    told = build_config(DistillFlags(data="digits-affine"))
    assert (told.data.uri, told.model.name) == ("digits-affine", "digits-affine")
    assert build_config(DistillFlags(model="digits-affine")) == PRESETS["digits-affine"]()


def test_flags_override_the_preset_and_nothing_else():
    base, ours = PRESETS["digits"](), build_config(DistillFlags(ipc=(3,), guidance=2.0, search="random"))
    assert ours.search.ipc == (3,) and ours.synthesis.guidance == 2.0
    assert ours.search.candidates == 1_000_000
    assert ours.inversion == base.inversion and ours.data == base.data and ours.model == base.model


def test_a_pool_on_imagenet_has_its_classifier_and_float32_where_latents_are_optimised(tmp_path):
    pooled = build_config(DistillFlags(preset="imagenet1k", data="x", method="d3hr+cao2"))
    assert pooled.cao2.classifier == "resnet18.tv_in1k"
    config = replace(PRESETS["digits"](), model=ModelConfig("digits", "bfloat16"))
    Store(str(tmp_path)).write_json("run.json", {"config": as_dict(config), "inputs": {}})
    again = build_config(DistillFlags(from_gaussians=str(tmp_path), method="d3hr+cao2", optimise=100))
    assert again.model.dtype == "float32" and again.cao2.iterations == 100
    again = build_config(DistillFlags(from_gaussians=str(tmp_path), method="d3hr+cao2"))
    assert again.model.dtype == "bfloat16" and again.cao2.iterations == 0


def test_stage_2_is_on_for_cao2_and_off_for_d3hr_cao2_unless_asked_for(tmp_path):
    def steps(**flags) -> int:
        return build_config(DistillFlags(**flags)).cao2.iterations

    assert (steps(method="cao2"), steps(method="d3hr+cao2"), steps(method="d3hr+cao2", optimise=7)) == (100, 0, 7)
    base = PRESETS["digits"]()
    assert [vary(base, f"method={m}").cao2.iterations for m in ("cao2", "d3hr+cao2", "d3hr+cao2 optimise=100")] == [
        100, 0, 100,
    ]  # fmt: skip
    assert vary(base, "method=d3hr+cao2") == build_config(DistillFlags(method="d3hr+cao2"))
    file = tmp_path / "best.json"
    for iterations in (0, 30):
        own = replace(base, method="d3hr+cao2", cao2=replace(base.cao2, iterations=iterations))
        file.write_text(json.dumps({"config": as_dict(own)}))
        assert steps(preset=str(file)) == steps(preset=str(file), method="d3hr+cao2") == iterations
        assert steps(preset=str(file), method="cao2") == 100
    with pytest.raises(ValueError, match="--optimise 0, the default here, leaves stage 2 out; leave out --linf"):
        steps(method="d3hr+cao2", linf=1.0)


@pytest.mark.parametrize("preset", ["digits", "digits-affine", "fashion-mnist"])
@pytest.mark.parametrize("method", ["d3hr", "cao2"])
def test_the_embedded_sets_keep_their_guidance_under_official(preset, method):
    """The authors have none for them; another one would confound a comparison with `fixed`."""
    own, asked = PRESETS[preset](), {"preset": preset, "method": method, "fidelity": "official"}
    made = build_config(DistillFlags(**asked))
    assert (made.inversion.guidance, made.synthesis) == (own.inversion.guidance, own.synthesis)
    assert made.search.skew_weight == 0.1 and made.fidelity == "official"
    assert build_config(DistillFlags(**asked, guidance=4.0)).synthesis.guidance == 4.0
    assert vary(own, f"method={method} fidelity=official").synthesis.guidance == own.synthesis.guidance


@pytest.mark.parametrize("preset", ["cifar10", "tinyimagenet"])
def test_a_model_that_the_authors_do_not_know_keeps_its_side_and_guidance(preset):
    own = build_config(DistillFlags(preset=preset, model="x", data="y"))
    for more in ({"fidelity": "official"}, {"method": "cao2"}, {"fidelity": "official", "method": "cao2"}):
        made = build_config(DistillFlags(preset=preset, model="x", data="y", **more))
        assert (made.inversion.guidance, made.synthesis) == (own.inversion.guidance, own.synthesis)


def test_a_preset_file_keeps_what_its_sweep_found(tmp_path):
    file = tmp_path / "best.json"
    base = PRESETS["digits"]()
    best = replace(base, model=ModelConfig("mine"), synthesis=replace(base.synthesis, guidance=1.5))
    judged = replace(best, method="cao2", cao2=replace(best.cao2, select="none", pool=1))
    fast = replace(best, inversion=replace(best.inversion, solver="adams", steps=25))
    for config in (best, judged, fast):
        file.write_text(json.dumps({"config": as_dict(config)}))
        for more in ({}, {"method": "cao2"}, *([{"fidelity": "official"}] if config is not fast else [])):
            assert build_config(DistillFlags(preset=str(file), **more)).synthesis.guidance == 1.5
            assert vary(config, " ".join(f"{k}={v}" for k, v in more.items())).synthesis.guidance == 1.5

    def made(config, **flags):
        file.write_text(json.dumps({"config": as_dict(config)}))
        return build_config(DistillFlags(preset=str(file), **flags))

    assert made(judged, select="easy").cao2.pool == base.cao2.pool > 1
    assert [made(fast, solver=s).inversion.steps for s in ("adams", "ddim")] == [25, 50]
    assert made(best, solver="adams").inversion.steps == 15


def test_a_folder_of_imagenets_model_is_the_authors_in_a_sweep_too(monkeypatch):
    """As a cluster without a way to the hub has it."""
    monkeypatch.setattr(presets, "read_card", lambda model: DIT_XL_CARD)
    base = build_config(DistillFlags(preset="imagenette", data="x", model=PIPELINE))
    assert vary(base, "method=cao2").synthesis.guidance == 2.7
    assert vary(base, "fidelity=official").synthesis.image_size == 224
    official = build_config(
        DistillFlags(preset="imagenette", data="x", model=PIPELINE, method="cao2", fidelity="official")
    )
    judged = vary(base, "method=cao2")
    for made in (official, vary(judged, "method=cao2 fidelity=official"), vary(judged, "fidelity=official")):
        assert (made.synthesis.guidance, made.synthesis.image_size) == (2.7, None)
        assert (made.cao2.pool, made.cao2.condition, made.cao2.iterations) == (2, "class", 0)


def test_another_grid_keeps_stage_2_at_its_noise():
    made = build_config(DistillFlags(method="cao2", solver="adams"))
    assert (made.inversion.steps, made.cao2.levels) == (15, (1, 3))
    assert build_config(DistillFlags(method="cao2")).cao2.levels == (1, 11)


@pytest.mark.parametrize("spelling", ["{root}/images", "{root}/images/", "images", "images/", "./images"])
def test_data_is_one_place_however_it_is_written(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    typed = spelling.format(root=tmp_path)
    config = build_config(DistillFlags(preset="imagenet1k", data=typed))
    assert config.data.uri == f"{tmp_path}/images"
    old = as_dict(replace(config, data=replace(config.data, uri="images")))  # as older versions kept it
    assert resolve_auto(config, old, Actors((1, 1), 0)).data.uri == "images"
    assert resolve_auto(config, None, Actors((1, 1), 0)).data.uri == f"{tmp_path}/images"


@pytest.mark.parametrize("name", ["digits", "digits-affine/test", "fashion-mnist/test", "s3://bucket/images"])
def test_names_and_uris_of_data_stay_as_they_are(name):
    assert build_config(DistillFlags(data=name, model="digits")).data.uri == name
