"""Presets: one function per dataset, with what it needs, what it costs and what it should reach.

`fixed` presets are ours; `--fidelity official` replaces their method settings by the authors' (`as_official`).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from d3hr_ray.config import (
    OFFICIAL_SKEW_WEIGHT,
    CaO2Config,
    DataConfig,
    InversionConfig,
    ModelConfig,
    RunConfig,
    SynthesisConfig,
)
from d3hr_ray.datasets.idxclasses import FASHION
from d3hr_ray.datasets.named import FASHION_MNIST
from d3hr_ray.datasets.subsets import SUBSETS
from d3hr_ray.models.card import ModelCard, locate, read_card
from d3hr_ray.models.geometry import DIT_XL, DIT_XL_CARD

CAO2_CLASSIFIER, CAO2_GUIDANCE = "resnet18.tv_in1k", 2.7  # torchvision's ResNet-18; on 3 of 4 channels if official


def digits() -> RunConfig:
    """1,297 real 8x8 digits at 16x16, embedded with their model: a CPU, under a minute."""
    return _embedded("digits")


def digits_affine() -> RunConfig:
    """10,376 rotated, scaled and shifted digits at 16x16, embedded with their model: a CPU, minutes."""
    return _embedded("digits-affine")


def fashion_mnist() -> RunConfig:
    """60,000 garments of 28x28, with the embedded model, which takes them at 32x32: a CPU, an hour; saved at 28x28.

    t was swept on training images (docs/results.md): the accuracy of one Gaussian a class does not depend on it, and
    its images are better at 600 than at 200. Of --components those at 200 train better. Classes are in the set's own
    order, so that labels are those of its files.
    """
    return RunConfig(
        data=DataConfig(uri=FASHION_MNIST, format="idx", classes=FASHION, shard_size=1024),
        model=ModelConfig(FASHION_MNIST),
        inversion=InversionConfig(timesteps=(600,), guidance=1.5),
        synthesis=SynthesisConfig(guidance=1.5, image_size=28),
    )


def imagenet1k() -> RunConfig:
    """ImageNet-1K train, 1,281,167 images, DiT-XL/2-256: GPUs, see --dry-run. D3HR reports 44.3 / 59.4 / 62.5 %
    (ResNet-18, IPC 10 / 50 / 100, soft labels) with --fidelity official."""
    return RunConfig(
        data=DataConfig(uri=""),
        model=ModelConfig(DIT_XL),
        inversion=InversionConfig(timesteps=(600,), guidance=1.0),
        synthesis=SynthesisConfig(guidance=4.0),
    )


def imagewoof() -> RunConfig:
    """Ten dog breeds of ImageNet-1K, in the order of the distillation papers; about 13,000 images."""
    return _subset("imagewoof")


def imagenette() -> RunConfig:
    """Ten easy classes of ImageNet-1K; about 13,000 images."""
    return _subset("imagenette")


def imagenet100() -> RunConfig:
    """CMC's 100 classes of ImageNet-1K; about 126,700 images."""
    return _subset("imagenet100")


def tinyimagenet() -> RunConfig:
    """Tiny-ImageNet, 100,000 images of 64x64; needs a DiT trained on it (--model), and saves 64x64 images."""
    return _own_model(64)


def cifar10() -> RunConfig:
    """CIFAR-10, 50,000 images of 32x32; needs a DiT trained on it (--model), and saves 32x32 images."""
    return _own_model(32)


def cifar100() -> RunConfig:
    """CIFAR-100, 50,000 images of 32x32; needs a DiT trained on it (--model), and saves 32x32 images."""
    return _own_model(32)


def own(model: str) -> RunConfig:
    """Images and a model of one's own, without a preset; the run folder is named after the images.

    t = 600 and guidance 2 both ways were best, or within half a point of it, for both models that jobs/pretrain.py made
    here (docs/results.md); jobs/sweep.py finds what suits another.
    """
    base = _embedded("digits")
    return replace(base, data=replace(base.data, uri="", format="auto"), model=ModelConfig(model))


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "digits": digits,
    "digits-affine": digits_affine,
    "fashion-mnist": fashion_mnist,
    "imagenet1k": imagenet1k,
    "imagewoof": imagewoof,
    "imagenette": imagenette,
    "imagenet100": imagenet100,
    "tinyimagenet": tinyimagenet,
    "cifar10": cifar10,
    "cifar100": cifar100,
}
# Images and classes of the full training set, for a --dry-run without --data.
SIZES = {
    "fashion-mnist": (60_000, 10),
    "imagenet1k": (1_281_167, 1000),
    "imagewoof": (13_000, 10),
    "imagenette": (13_000, 10),
    "imagenet100": (126_689, 100),
    "tinyimagenet": (100_000, 200),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
}


def as_official(config: RunConfig) -> RunConfig:
    """The authors' settings (docs/design.md): guidance 4 both ways, random search over 10^6 subsets, 224-pixel PNGs.

    Guidance and side are those of ImageNet's model; others keep their own: it would confound a comparison with `fixed`.
    """
    config = replace(
        config,
        fidelity="official",
        inversion=replace(config.inversion, posterior="sample"),
        search=replace(config.search, method="random", candidates=1_000_000, skew_weight=OFFICIAL_SKEW_WEIGHT),
    )
    if not _is_imagenets(config.model.name):
        return config
    inversion = replace(config.inversion, guidance=4.0)
    return replace(config, inversion=inversion, synthesis=SynthesisConfig(guidance=4.0, image_size=224))


def with_classifier(config: RunConfig) -> RunConfig:
    """A pool's default classifier where the model is ImageNet's and brings none."""
    if config.has_pool and config.cao2.classifier is None and config.model.name == DIT_XL:
        return replace(config, cao2=replace(config.cao2, classifier=CAO2_CLASSIFIER))
    return config


def as_cao2(config: RunConfig, preset: str) -> RunConfig:
    """CaO2's settings: per dataset those of its authors' scripts if official (docs/design.md), else one for all.

    There is no script for the embedded models, nor for others that the authors do not know; they keep their guidance.
    """
    if config.method == "d3hr+cao2":  # an earlier setting's, whose default is to leave stage 2 out
        config = replace(config, cao2=replace(config.cao2, iterations=CaO2Config().iterations))
    if not _is_imagenets(config.model.name):
        return config
    synthesis = replace(config.synthesis, guidance=CAO2_GUIDANCE)
    if config.fidelity != "official":
        return replace(config, synthesis=synthesis)
    own: dict[str, dict[str, Any]] = {
        "imagenette": {"pool": 2, "condition": "class", "iterations": 0},
        "imagenet100": {"pool": 2, "select": "hard", "levels": (1, 5)},
    }
    return replace(
        config, cao2=replace(config.cao2, **own.get(preset, {})), synthesis=replace(synthesis, image_size=None)
    )


def becomes_cao2(base: RunConfig, method: str | None, fidelity: str | None) -> bool:
    """Whether flags make a config CaO2's anew: one that is so already keeps what it has, unless it becomes official."""
    return (method or base.method) == "cao2" and (base.method != "cao2" or fidelity == "official")


def _is_imagenets(model: str) -> bool:
    """Whether a model is the authors': DiT-XL/2 of the hub, or a folder here of one of its shape and classes."""
    if model in ("", DIT_XL):
        return model == DIT_XL
    try:
        card = read_card(model) if Path(locate(model)).is_dir() else None
    except ValueError:  # said where the model is read
        return False
    return card is not None and _shape(card) == _shape(DIT_XL_CARD)


def _shape(card: ModelCard) -> tuple[Any, ...]:
    return card.latent_shape, card.blocks, card.num_classes, card.class_names


def _embedded(name: str) -> RunConfig:
    """t and both guidances were chosen on the digits' training split (docs/results.md)."""
    return RunConfig(
        data=DataConfig(uri=name, format="digits", shard_size=256),
        model=ModelConfig(name),
        inversion=InversionConfig(timesteps=(600,), guidance=2.0),
        synthesis=SynthesisConfig(guidance=2.0),
    )


def _subset(name: str) -> RunConfig:
    base = imagenet1k()
    return replace(base, data=replace(base.data, classes=SUBSETS[name]))


def _own_model(side: int) -> RunConfig:
    base = imagenet1k()
    return replace(base, model=ModelConfig(""), synthesis=replace(base.synthesis, image_size=side))
