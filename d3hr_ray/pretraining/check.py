"""How good a pretrained model is, on images it never saw: reconstruction, and whether its samples show their class."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.listing import list_images
from d3hr_ray.models.autoencoder import Autoencoder, to_images, to_pixels
from d3hr_ray.models.card import ModelCard, read_card
from d3hr_ray.models.classifiers import BATCH, enough_steps, predict, train_convnet
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.models.loading import load_networks, load_schedule
from d3hr_ray.models.memory import keep_freed_memory
from d3hr_ray.models.students import Fitted
from d3hr_ray.models.teachers import Target, load_teacher, own_classifier, side_of
from d3hr_ray.numerics.ddim import sample
from d3hr_ray.numerics.schedule import Schedule
from d3hr_ray.numerics.seeds import normal
from d3hr_ray.pretraining.state import State, Tell, silent
from d3hr_ray.pretraining.stream import READ, ImageStream, reading

AT_ONCE = 100  # images per forward
LEAST_BATCHES = 3  # that the images to train a classifier on make


@dataclass(frozen=True)
class Quality:
    """`psnr` in dB over all held-out pixels; accuracies in [0, 1]; `latent_std` of the scaled training latents.

    A class of which no sample was drawn has no accuracy.
    """

    psnr: float
    classifier_accuracy: float
    sample_accuracy: float
    accuracy_per_class: tuple[float | None, ...]
    latent_std: float


def measure(
    model: str,
    train: DataConfig,
    held_out: DataConfig,
    count: int = 500,
    seed: int = 0,
    teacher: str | None = None,
    tell: Tell = silent,
) -> Quality:
    """Check a model by `count` samples, with a `teacher`, else its own classifier, else one trained on `train`.

    Both sets must fit into memory. Raises ValueError for a teacher that does not know the model's classes.
    """
    keep_freed_memory()
    card = read_card(model)
    autoencoder, denoiser = load_networks(model, torch.float32, "cpu")
    pixels, labels = load_set(train, card, tell)
    held_pixels, held_labels = load_set(held_out, card, tell)
    net = _classifier(teacher or own_classifier(model), card, pixels, labels, seed, tell)
    classes = spread(count, card.num_classes)
    right = np.zeros(count, bool)
    for at, samples in draw_samples(autoencoder, denoiser, load_schedule(model, 50), torch.from_numpy(classes), seed):
        right[at : at + len(samples)] = predict(net, samples) == classes[at : at + len(samples)]
        tell(State("sampling", at + len(samples), count, "image"))
    return Quality(
        psnr=psnr(held_pixels, reconstruct(autoencoder, held_pixels, tell)),
        classifier_accuracy=float((predict(net, held_pixels) == held_labels).mean()),
        sample_accuracy=float(right.mean()),
        accuracy_per_class=tuple(
            float(right[classes == k].mean()) if (classes == k).any() else None for k in range(card.num_classes)
        ),
        latent_std=_latent_std(autoencoder, pixels, seed),
    )


def _classifier(
    teacher: str | None, card: ModelCard, pixels: np.ndarray, labels: np.ndarray, seed: int, tell: Tell
) -> nn.Module:
    """Images [-1, 1] => logits over the model's classes: a teacher's, else of a ConvNet that is trained here."""
    if teacher is not None and card.class_names:
        side = side_of(teacher, card.image_size)
        return Fitted(load_teacher(teacher, Target(card.class_names, None, side)), side).eval()
    steps = enough_steps(len(pixels))
    return train_convnet(
        pixels,
        labels,
        card.num_classes,
        steps,
        batch_size=min(BATCH, max(1, len(pixels) // LEAST_BATCHES)),
        seed=seed,
        told=lambda done, loss: tell(State("training a classifier", done, steps, "step", loss)),
    )


def spread(count: int, num_classes: int) -> np.ndarray:
    """A class id for each of `count` samples, ascending and as evenly spread as can be."""
    return np.arange(count) * num_classes // count


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays, from the mean over all pixels, not over images' PSNRs."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


@torch.inference_mode()
def reconstruct(autoencoder: Autoencoder, pixels: np.ndarray, tell: Tell = silent) -> np.ndarray:
    """Pixels => pixels (N, S, S, 3), through the posterior's mode."""
    made = np.empty_like(pixels)
    for at in range(0, len(pixels), AT_ONCE):
        images = to_images(torch.from_numpy(pixels[at : at + AT_ONCE]))
        made[at : at + AT_ONCE] = to_pixels(autoencoder.decode(autoencoder.encode(images, None))).numpy()
        tell(State("reconstructing", min(at + AT_ONCE, len(pixels)), len(pixels), "image"))
    return made


@torch.inference_mode()
def draw_samples(
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    schedule: Schedule,
    classes: torch.Tensor,
    seed: int = 0,
    guidance: float = 2.0,
) -> Iterator[tuple[int, np.ndarray]]:
    """Class ids (N,) => one sample each from pure noise at the grid's top, in order: a place and the pixels from it on.

    Pixels are (n, S, S, 3) uint8.
    """
    for at in range(0, len(classes), AT_ONCE):
        part = classes[at : at + AT_ONCE]
        noise = normal((len(part), *denoiser.latent_shape), "check", seed, at)
        latents = sample(denoiser.guided(part, guidance), noise, schedule, schedule.grid[-1])
        yield at, to_pixels(autoencoder.decode(latents)).numpy()


def load_set(data: DataConfig, card: ModelCard, tell: Tell = silent) -> tuple[np.ndarray, np.ndarray]:
    """A whole set => pixels (N, S, S, 3) and the model's class ids (N,)."""
    listing = list_images(data, card.num_classes, card.class_names)
    stream = ImageStream(listing, card.image_size, 0, tell=tell)
    batches = []
    for batch in stream.fixed(READ, np.arange(len(listing))):
        batches.append(batch)
        if not stream.small:  # a small set is read whole with its first batch, and told of
            tell(reading(len(batches) * READ, len(listing)))
    ids = np.asarray(listing.classes.model_classes)
    return np.concatenate([b.pixels for b in batches]), ids[np.concatenate([b.labels for b in batches])]


@torch.inference_mode()
def _latent_std(autoencoder: Autoencoder, pixels: np.ndarray, seed: int) -> float:
    spread = np.linspace(0, len(pixels) - 1, min(1000, len(pixels))).round().astype(int)
    images = to_images(torch.from_numpy(pixels[spread]))
    mode = autoencoder.encode(images, None)
    return float(autoencoder.encode(images, normal(tuple(mode.shape), "latent std", seed)).std())
