"""The flags of jobs/pretrain.py over a preset => its PretrainConfig; and the images that a model is checked on."""

from dataclasses import replace
from typing import Any

from d3hr_ray.cli.data_flags import data_of
from d3hr_ray.cli.pretrain_flags import FINE_TUNING_STEPS, RECIPES, PretrainFlags
from d3hr_ray.config import DataConfig, flag_of
from d3hr_ray.datasets.splits import held_out_of, to_test_on
from d3hr_ray.pretraining.settings import PretrainConfig
from d3hr_ray.pretraining.sizes import SIZES


def build_config(flags: PretrainFlags) -> PretrainConfig:
    """Flags over the preset. Raises ValueError naming the flag that is wrong."""
    config = _preset(flags)
    shape = _given(
        image_size=flags.image_size,
        latent_channels=flags.latent_channels,
        vae_channels=flags.vae_channels or None,
        patch_size=flags.patch_size,
        dit_layers=flags.dit_layers,
        dit_heads=flags.dit_heads,
        dit_width=flags.dit_width,
    )
    if flags.init and shape:
        raise ValueError(
            f"{flag_of(next(iter(shape)))} cannot be changed with --init: the model has its own; leave it out"
        )
    vae_steps = 0 if flags.init and flags.vae_steps is None else flags.vae_steps
    tuned = flags.init and flags.preset == "custom" and flags.dit_steps is None
    dit_steps = FINE_TUNING_STEPS if tuned else flags.dit_steps
    both = _given(batch_size=flags.batch_size, ema=flags.ema)
    return replace(
        config,
        data=_data(flags, config.data),
        architecture=replace(config.architecture, **shape),
        vae=replace(config.vae, **both, **_given(steps=vae_steps, lr=flags.vae_lr)),
        dit=replace(config.dit, **both, **_given(steps=dit_steps, lr=flags.dit_lr)),
        init=flags.init,
        **_given(
            kl_weight=flags.kl_weight,
            class_dropout=flags.class_dropout,
            seed=flags.seed,
            checkpoint_every=flags.checkpoint_every,
        ),
    )


def _data(flags: PretrainFlags, preset: DataConfig) -> DataConfig:
    """The images that are named, else the preset's, whose classes have its order unless others are asked for."""
    given = data_of(flags, flags.data or preset.uri)
    return given if flags.data or given.classes else replace(given, classes=preset.classes)


def _preset(flags: PretrainFlags) -> PretrainConfig:
    if flags.preset != "custom":
        return RECIPES[flags.preset]
    if flags.data is None:
        raise ValueError("--preset custom needs --data: the training images")
    return SIZES[flags.size or "small"](flags.data)


def _given(**values: Any) -> dict[str, Any]:
    """The values that were given."""
    return {name: value for name, value in values.items() if value is not None}


def find_splits(model: str, held_out: str | None) -> tuple[DataConfig, DataConfig]:
    """The data a model was trained on, and data it never saw: as given, or the test split of the same set."""
    from d3hr_ray.pretraining.claim import trained_on

    data = trained_on(model)
    if held_out is not None:
        return data, to_test_on(replace(data, uri=held_out))
    test = held_out_of(data)
    if test is None:
        raise ValueError(f"--check {model}: {data.uri} has no known held-out split; name one with --data")
    return data, replace(data, uri=test.uri)
