"""Every setting that decides a pretrained model's weights, and the presets of the embedded models."""

from dataclasses import dataclass, field

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.idxclasses import FASHION
from d3hr_ray.models.card import read_card

SCRATCH = ".training"  # in the run folder: checkpoints and rejected images, until the model is complete
WRITTEN = (  # a trained model's files, and the curves of its training
    "model_index.json",
    "vae",
    "transformer",
    "scheduler",
    "classes.json",
    "curves.csv",
    "curves.png",
    "training.json",
)
OWN = (*WRITTEN, SCRATCH)  # all that --overwrite deletes; what says whose files they are goes last


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@dataclass(frozen=True)
class Architecture:
    """The networks' shapes. Latents are `latent_channels` maps of side image_size / 2 ** (len(vae_channels) - 1)."""

    image_size: int = 256
    latent_channels: int = 4
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    patch_size: int = 2
    dit_layers: int = 12
    dit_heads: int = 6
    dit_width: int = 384

    def __post_init__(self) -> None:
        cell = 2 ** (len(self.vae_channels) - 1) * self.patch_size
        _check(len(self.vae_channels) >= 1, "--vae-channels is empty; name the width at each resolution")
        for width in self.vae_channels:
            _check(width >= 8 and width % 8 == 0, f"--vae-channels {width} is no multiple of 8")
        _check(
            self.image_size >= cell and self.image_size % cell == 0,
            f"--image-size {self.image_size} is no multiple of {cell}, the pixels under one DiT patch "
            "(each of --vae-channels but the first halves the side; --patch-size multiplies)",
        )
        _check(
            self.dit_heads >= 1 and self.dit_width % self.dit_heads == 0,
            f"--dit-width {self.dit_width} cannot be split over --dit-heads {self.dit_heads}",
        )
        _check(self.dit_width % 4 == 0, f"--dit-width {self.dit_width} is no multiple of 4, as its position codes need")
        for flag, value in (("--latent-channels", self.latent_channels), ("--dit-layers", self.dit_layers)):
            _check(value >= 1, f"{flag} {value} must be at least 1")

    @property
    def latent_side(self) -> int:
        """Latent cells along one side."""
        return self.image_size // 2 ** (len(self.vae_channels) - 1)


@dataclass(frozen=True)
class Phase:
    """One optimisation: AdamW, `warmup` steps up to `lr`, a cosine down to 0, and an average of the weights."""

    steps: int
    batch_size: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.0
    ema: float = 0.999

    def __post_init__(self) -> None:
        _check(self.steps >= 0, f"steps {self.steps} must not be negative; check --vae-steps and --dit-steps")
        _check(self.batch_size >= 1, f"--batch-size {self.batch_size} must be at least 1")
        _check(self.warmup >= 1, f"warm-up of {self.warmup} steps must be at least 1")
        _check(self.lr > 0, f"learning rate {self.lr} must be above 0; check --vae-lr and --dit-lr")
        _check(0 <= self.ema < 1, f"--ema {self.ema} must be at least 0 and below 1")


@dataclass(frozen=True)
class PretrainConfig:
    """One training run. Equal settings on equal data give equal weights on a CPU with one worker and thread.

    `init` is a model to fine-tune; then the architecture's numbers are its own and those here are not used.
    `kl_weight` weighs the mean KL per latent element against the mean squared error per pixel channel.
    """

    data: DataConfig
    architecture: Architecture = field(default_factory=Architecture)
    vae: Phase = field(default_factory=lambda: Phase(100_000, 64, 1e-4))
    dit: Phase = field(default_factory=lambda: Phase(400_000, 256, 1e-4, ema=0.9999))
    kl_weight: float = 1e-4
    class_dropout: float = 0.1
    init: str | None = None
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the networks take."""
        return self.architecture.image_size if self.init is None else read_card(self.init).image_size

    def __post_init__(self) -> None:
        _check(self.kl_weight >= 0, f"--kl-weight {self.kl_weight} must not be negative")
        _check(0 < self.class_dropout < 1, f"--class-dropout {self.class_dropout} must be between 0 and 1")
        _check(self.init is not None or self.vae.steps > 0, "--vae-steps 0 leaves no VAE; give steps or --init MODEL")
        _check(self.dit.steps > 0, f"--dit-steps {self.dit.steps} trains nothing; give 1 or more")
        _check(0 <= self.seed < 2**63, f"--seed {self.seed} must be between 0 and 2**63 - 1")
        _check(
            self.log_every >= 1 and self.checkpoint_every >= 1 and self.checkpoint_every % self.log_every == 0,
            f"--checkpoint-every {self.checkpoint_every} is no multiple of {self.log_every}, the steps per curve point",
        )


def small_networks(image_size: int, dit_width: int, vae_channels: tuple[int, ...] = (16, 32, 32)) -> Architecture:
    """Networks that a CPU trains: latents of 8 channels, a VAE of one layer per resolution, a DiT of 4 layers."""
    return Architecture(
        image_size, latent_channels=8, vae_channels=vae_channels, vae_layers=1, dit_layers=4, dit_heads=4,
        dit_width=dit_width,
    )  # fmt: skip


def digits() -> PretrainConfig:
    """16x16 digits, 1,297 images: latents 8x4x4, 3.4 MB in fp16, 6.5 minutes on one core.

    Held out: reconstruction 34.0 dB; 500 of 500 samples on class, by a classifier that is right on 99.8 %. Inverted
    with guidance 1 to t = 600, 8 % of class and dimension pairs fail Shapiro at 5 % (19 % at t = 0).
    """
    return _embedded("digits", vae_steps=1000, dit=Phase(4000, 128, 1e-3))


def digits_affine() -> PretrainConfig:
    """16x16 digits rotated, scaled and shifted, 10,376 images: the same networks, 27 minutes on a busy core.

    Held out: reconstruction 30.7 dB; 496 of 500 samples on class (495 with another seed), by a classifier that is right
    on 99.1 %. Many small steps at a high rate matter: 6,000 of 128 images at 1e-3 put 84 % on class, 16,000 of 64 at
    4e-3 98 %.
    """
    return _embedded("digits-affine", vae_steps=2500, dit=Phase(32000, 64, 4e-3))


def fashion_mnist() -> PretrainConfig:
    """28x28 garments at 32x32, 60,000 images: latents 8x8x8, 4.9 MB in fp16, 50 minutes of one core.

    Held out: reconstruction 29.5 dB; 91.8 % of 500 samples on class (shirts and pullovers 66 %, all others 96 % or
    more) by its classifier, which is right on 89.9 % of the test images: samples are at least as clear as real ones.
    """
    return PretrainConfig(
        DataConfig("fashion-mnist", classes=FASHION),
        small_networks(32, dit_width=160),
        vae=Phase(1600, 64, 2e-3),
        dit=Phase(10000, 64, 2e-3),
        kl_weight=1e-3,
    )


def custom(uri: str) -> PretrainConfig:
    """Any labelled images at 256x256: latents 4x32x32 and a DiT-S/2. A starting point for GPUs, not measured."""
    return PretrainConfig(DataConfig(uri))


def _embedded(name: str, vae_steps: int, dit: Phase) -> PretrainConfig:
    return PretrainConfig(
        DataConfig(name),
        small_networks(16, dit_width=128),
        vae=Phase(vae_steps, 64, 2e-3),
        dit=dit,
        # At 1e-3 reconstruction was 1 dB better; more KL makes class latents nearer to normal, which inversion wants.
        kl_weight=3e-3,
    )
