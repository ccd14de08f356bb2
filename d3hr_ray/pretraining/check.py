"""How good a pretrained model is, on images it never saw: reconstruction, and whether its samples show their class."""

from dataclasses import dataclass

import numpy as np
import torch

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.listing import list_images
from d3hr_ray.models.autoencoder import Autoencoder, to_images, to_pixels
from d3hr_ray.models.classifiers import predict, train_convnet
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.models.loading import ModelCard, load_networks, load_schedule, read_card
from d3hr_ray.numerics.ddim import sample
from d3hr_ray.numerics.schedule import Schedule
from d3hr_ray.numerics.seeds import normal
from d3hr_ray.pretraining.stream import ImageStream


@dataclass(frozen=True)
class Quality:
    """`psnr` in dB over all held-out pixels; accuracies in [0, 1]; `latent_std` of the scaled training latents."""

    psnr: float
    classifier_accuracy: float
    sample_accuracy: float
    accuracy_per_class: tuple[float, ...]
    latent_std: float


def measure(model: str, train: DataConfig, held_out: DataConfig, per_class: int = 50, seed: int = 0) -> Quality:
    """Check a model with a classifier trained on `train`; both sets must fit into memory."""
    card = read_card(model)
    autoencoder, denoiser = load_networks(model, torch.float32, "cpu")
    pixels, labels = load_set(train, card)
    held_pixels, held_labels = load_set(held_out, card)
    net = train_convnet(pixels, labels, card.num_classes, seed=seed)
    classes = np.repeat(np.arange(card.num_classes), per_class)
    samples = draw_samples(autoencoder, denoiser, load_schedule(model, 50), torch.from_numpy(classes), seed=seed)
    right = predict(net, samples) == classes
    return Quality(
        psnr=psnr(held_pixels, reconstruct(autoencoder, held_pixels)),
        classifier_accuracy=float((predict(net, held_pixels) == held_labels).mean()),
        sample_accuracy=float(right.mean()),
        accuracy_per_class=tuple(right.reshape(-1, per_class).mean(1).tolist()),
        latent_std=_latent_std(autoencoder, pixels, seed),
    )


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays, from the mean over all pixels, not over images' PSNRs."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


@torch.inference_mode()
def reconstruct(autoencoder: Autoencoder, pixels: np.ndarray) -> np.ndarray:
    """Pixels => pixels (N, S, S, 3), through the posterior's mode."""
    parts = torch.from_numpy(pixels).split(100)
    return np.concatenate(
        [to_pixels(autoencoder.decode(autoencoder.encode(to_images(p), None))).numpy() for p in parts]
    )


@torch.inference_mode()
def draw_samples(
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    schedule: Schedule,
    classes: torch.Tensor,
    guidance: float = 2.0,
    seed: int = 0,
) -> np.ndarray:
    """Class ids (N,) => one sample each from pure noise at the grid's top, pixels (N, S, S, 3) uint8."""
    parts = []
    for at in range(0, len(classes), 100):
        part = classes[at : at + 100]
        noise = normal((len(part), *denoiser.latent_shape), "check", seed, at)
        latents = sample(denoiser.guided(part, guidance), noise, schedule, schedule.grid[-1])
        parts.append(to_pixels(autoencoder.decode(latents)).numpy())
    return np.concatenate(parts)


def load_set(data: DataConfig, card: ModelCard) -> tuple[np.ndarray, np.ndarray]:
    """A whole set => pixels (N, S, S, 3) and the model's class ids (N,)."""
    listing = list_images(data, card.num_classes, card.class_names)
    batches = list(ImageStream(listing, card.image_size, 0).fixed(1000, len(listing)))
    ids = np.asarray(listing.classes.model_classes)
    return np.concatenate([b.pixels for b in batches]), ids[np.concatenate([b.labels for b in batches])]


@torch.inference_mode()
def _latent_std(autoencoder: Autoencoder, pixels: np.ndarray, seed: int) -> float:
    images = to_images(torch.from_numpy(pixels[:1000]))
    mode = autoencoder.encode(images, None)
    return float(autoencoder.encode(images, normal(tuple(mode.shape), "latent std", seed)).std())
