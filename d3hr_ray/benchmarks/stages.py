"""bench stages: the accuracy that a student loses at each stage, before any Gaussian is fitted.

The same random real images as they are, resized to the model's size and back, through the VAE, and through inversion
and sampling. What a distilled set loses beyond the last of these, it loses by what was matched, not by how.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from d3hr_ray.benchmarks.measure import Result
from d3hr_ray.config import DataConfig
from d3hr_ray.datasets.decode import decode
from d3hr_ray.datasets.idxclasses import FASHION
from d3hr_ray.datasets.listing import list_images
from d3hr_ray.datasets.named import FASHION_MNIST
from d3hr_ray.datasets.reading import Reading
from d3hr_ray.library.images import ImageSet
from d3hr_ray.library.model import Model, load_model
from d3hr_ray.library.students import train_student
from d3hr_ray.models.autoencoder import to_images, to_pixels
from d3hr_ray.stages.images import png

STAGES = ("real", "resized", "vae", "inverted")
BATCH = 64


@dataclass(frozen=True)
class Case:
    """What is measured, by the names of its model and data, and how many sets there are for each IPC."""

    name: str
    classes: tuple[str, ...]
    side: int
    t: int
    guidance: float
    sets: dict[int, int]
    epochs: int | None = None


FULL = Case(FASHION_MNIST, FASHION, 28, 600, 1.5, {10: 3, 50: 1})
QUICK = Case("digits", tuple("0123456789"), 8, 600, 2.0, {2: 1}, epochs=1)
ARCH, PROTOCOL = "convnet-d3-w32", "dc"


def run(quick: bool) -> Result:
    """Measure on Fashion-MNIST, which must be there; `quick` is for tests: digits."""
    torch.set_num_threads(1)
    case = QUICK if quick else FULL
    train, test = (_load(case, split) for split in ("train", "test"))
    model = load_model(case.name, steps=15, solver="adams", device="cpu")
    rows, ratios = [], {}
    for ipc, count in case.sets.items():
        top1 = np.zeros((count, len(STAGES)))
        for seed in range(count):
            for stage, found in enumerate(_stages(model, case, _draw(train, ipc, seed))):
                top1[seed, stage] = train_student(found, test, ARCH, PROTOCOL, epochs=case.epochs, seed=seed)
        for name, accuracies in zip(STAGES, top1.T, strict=True):
            row = {"images": name, "IPC": ipc, "sets": count, "top-1 (%)": 100 * accuracies.mean()}
            rows.append(row | {"less than real (points)": 100 * (top1[:, 0] - accuracies).mean()})
            ratios[f"{name}_ipc{ipc}"] = float(accuracies.mean() / top1[:, 0].mean())
    return Result("stages", ratios, rows, [f"{case.name}, {ARCH}, protocol {PROTOCOL}, t = {case.t}; a student a set"])


def _load(case: Case, split: str) -> ImageSet:
    listing = list_images(DataConfig(f"{case.name}/{split}", classes=case.classes), len(case.classes), None)
    found = Reading.of(listing, case.classes, case.side).load()
    return ImageSet(torch.from_numpy(found.pixels), torch.from_numpy(found.labels), case.classes)


def _draw(images: ImageSet, ipc: int, seed: int) -> ImageSet:
    """So many random images of each class."""
    rng, labels = np.random.default_rng([seed, ipc]), images.labels.numpy()
    each = [rng.choice(np.flatnonzero(labels == k), ipc, replace=False) for k in range(len(images.classes))]
    rows = torch.from_numpy(np.concatenate(each))
    return ImageSet(images.pixels[rows], images.labels[rows], images.classes)


def _stages(model: Model, case: Case, real: ImageSet) -> Iterator[ImageSet]:
    """The images as each of STAGES leaves them, in the size that they came in."""
    yield real
    images = to_images(_resized(real.pixels, model.image_size))
    yield _saved(images, real)
    latents = _batched(model.encode, images)
    yield _saved(_batched(model.decode, latents), real)
    noised = _batched(lambda x, k: model.invert(x, k, case.t, guidance=case.guidance), latents, real.labels)
    back = _batched(lambda x, k: model.sample(x, k, case.t, guidance=case.guidance), noised, real.labels)
    yield _saved(_batched(model.decode, back), real)


def _saved(images: torch.Tensor, real: ImageSet) -> ImageSet:
    return ImageSet(_resized(to_pixels(images), real.pixels.shape[1]), real.labels, real.classes)


def _resized(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """By Lanczos both ways, as a run saves images; it enlarges those that it reads bilinearly."""
    return torch.from_numpy(np.stack([decode(png(each, side), side) for each in pixels.numpy()]))


def _batched(work: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    return torch.cat([work(*parts) for parts in zip(*(t.split(BATCH) for t in tensors), strict=True)])
