"""Networks for images of one's own, by size: what --size of jobs/pretrain.py chooses."""

from collections.abc import Callable

from d3hr_ray.config import DataConfig
from d3hr_ray.pretraining.settings import Architecture, Phase, PretrainConfig, custom, small_networks


def tiny(uri: str) -> PretrainConfig:
    """Small images on a CPU: latents of 8 channels and an eighth of the side, a DiT of 4 layers; 32 pixels by default.

    Most of a CPU's time is spent at the VAE's full resolution, which therefore has 8 channels only. Of 120 images at 48
    pixels 2,400 steps of 8 images gave a mean squared error of 0.024, 1,200 of 16 of 0.034, 600 of 32 of 0.044.
    """
    shape = small_networks(32, dit_width=128, vae_channels=(8, 16, 32, 32))
    return PretrainConfig(DataConfig(uri), shape, Phase(1500, 8, 2e-3), Phase(2000, 64, 1e-3), kl_weight=3e-3)


def base(uri: str) -> PretrainConfig:
    """`custom` with a DiT-B/2 (Peebles and Xie, 2023). For GPUs, not measured."""
    return PretrainConfig(DataConfig(uri), Architecture(dit_layers=12, dit_heads=12, dit_width=768))


def xl(uri: str) -> PretrainConfig:
    """The same with a DiT-XL/2, as large as facebook/DiT-XL-2-256, which --init fine-tunes instead. Not measured."""
    return PretrainConfig(DataConfig(uri), Architecture(dit_layers=28, dit_heads=16, dit_width=1152))


SIZES: dict[str, Callable[[str], PretrainConfig]] = {"tiny": tiny, "small": custom, "base": base, "xl": xl}
