"""--size of jobs/pretrain.py: networks for images of one's own, whose help, first line and record say the same."""

import re
from dataclasses import replace

import pytest

from d3hr_ray.cli.pretrain_config import build_config
from d3hr_ray.cli.pretrain_flags import RECIPES, PretrainFlags, check_flags
from d3hr_ray.config.fields import settings_of
from d3hr_ray.pretraining.networks import build, describe
from d3hr_ray.pretraining.sizes import SIZES


def made(**flags: object):
    return build_config(PretrainFlags(preset="custom", data="photos", **flags))


@pytest.mark.parametrize("size", SIZES)
def test_a_size_chooses_the_networks_and_their_training(size):
    assert made(size=size) == SIZES[size]("photos") == replace(RECIPES[size], data=made().data)
    assert made(size=size, dit_steps=7).dit.steps == 7


def test_without_a_size_custom_is_small():
    assert made() == made(size="small")


def test_tiny_takes_small_images_of_several_sides():
    for side in (32, 48, 64):
        assert made(size="tiny", image_size=side).architecture.latent_side == side // 8
    with pytest.raises(ValueError, match="--image-size 50 is no multiple of 16"):
        made(size="tiny", image_size=50)


@pytest.mark.parametrize(
    ("flags", "cure"),
    [({"preset": "digits"}, "give --preset custom"), ({"preset": "custom", "init": "my-dit"}, "leave it out: --init")],
)
def test_a_size_of_networks_that_are_given_is_refused(flags, cure):
    with pytest.raises(ValueError, match=f"--size tiny is of networks from scratch .*{cure}"):
        check_flags(PretrainFlags(size="tiny", data="photos", **flags))


def test_what_is_said_at_the_start_is_what_is_trained():
    config = made(size="tiny", image_size=48)
    networks = build(config, ["a", "b", "c"])
    said = describe(config, 3)
    assert said.startswith("images of 48 pixels, latents 8x6x6, ")
    for name, count in networks.parameters().items():
        assert f"{name} of {count:,} parameters" in said


def test_a_training_of_hours_says_what_it_costs():
    """DiT-XL/2 has 118.6 G multiply-adds a forward (Peebles and Xie, 2023, table 4)."""
    said = re.search(r"the DiT's 400,000 steps take (\d+) hours of an H100", describe(made(size="xl"), 1000))
    assert int(said[1]) == pytest.approx(3 * 2 * 118.6e9 * 256 * 400_000 / 300e12 / 3600, rel=0.02)
    assert "hours" not in describe(made(size="tiny"), 3)


def test_fine_tuning_is_shorter_than_training_from_scratch():
    assert made(init="my-dit").dit.steps == 20_000 < made().dit.steps
    assert made(init="my-dit", dit_steps=7).dit.steps == 7
    recipe = build_config(PretrainFlags(preset="digits", init="my-dit"))
    assert recipe.dit.steps == build_config(PretrainFlags(preset="digits")).dit.steps


def test_the_help_states_the_defaults_of_every_preset():
    shown = {name: setting.flag.shown for name, setting in settings_of(PretrainFlags).items()}
    assert shown["vae_steps"].startswith("digits 1000; digits-affine 2500") and "tiny 1500" in shown["vae_steps"]
    assert shown["latent_channels"].startswith("digits, digits-affine, fashion-mnist, tiny 8; ")
    assert shown["patch_size"] == "2" and "the preset's" not in [s for n, s in shown.items() if n != "data"]
