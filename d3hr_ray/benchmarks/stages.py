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
from d3hr_ray.datasets.listing import Listing, list_images
from d3hr_ray.datasets.named import FASHION_MNIST
from d3hr_ray.datasets.reading import Reading
from d3hr_ray.evaluation.baselines import random_rows
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
    model = load_model(case.name, steps=15, solver="adams", device="cpu")
    train = _list(case, "train")
    labels, test = train.entries["label"].to_numpy(), _load(_list(case, "test"), case.side)
    rows, ratios = [], {}
    for ipc, count in case.sets.items():
        top1 = np.zeros((count, len(STAGES)))
        for seed in range(count):
            chosen = _draw(labels, ipc, seed)
            real, read = (_load(train, side, chosen) for side in (case.side, model.image_size))
            for stage, found in enumerate(_stages(model, case, real, read)):
                top1[seed, stage] = train_student(found, test, ARCH, PROTOCOL, epochs=case.epochs, seed=seed)
        for name, accuracies in zip(STAGES, top1.T, strict=True):
            row = {"images": name, "IPC": ipc, "sets": count, "top-1 (%)": 100 * accuracies.mean()}
            rows.append(row | {"less than real (points)": 100 * (top1[:, 0] - accuracies).mean()})
            ratios[f"{name}_ipc{ipc}"] = float(accuracies.mean() / top1[:, 0].mean())
    return Result("stages", ratios, rows, [f"{case.name}, {ARCH}, protocol {PROTOCOL}, t = {case.t}; a student a set"])


def _list(case: Case, split: str) -> Listing:
    return list_images(DataConfig(f"{case.name}/{split}", classes=case.classes), len(case.classes), None)


def _load(listing: Listing, side: int, rows: np.ndarray | None = None) -> ImageSet:
    """Some images, all if None, of `side` pixels, as a run reads them for a model of that size."""
    found = Reading.of(listing, listing.classes.sources, side, rows).load()
    return ImageSet(torch.from_numpy(found.pixels), torch.from_numpy(found.labels), found.classes)


def _draw(labels: np.ndarray, ipc: int, seed: int) -> np.ndarray:
    """Rows of so many random images of each class, as of the baseline real-random."""
    classes = [np.flatnonzero(labels == k) for k in range(labels.max() + 1)]
    return np.concatenate([rows[random_rows(rows, ipc, seed, k)] for k, rows in enumerate(classes)])


def _stages(model: Model, case: Case, real: ImageSet, read: ImageSet) -> Iterator[ImageSet]:
    """The images as each of STAGES leaves them, in the size that they came in; `read`: in the model's size."""
    yield real
    images = to_images(read.pixels)
    yield _saved(images, real)
    latents = _batched(model.encode, images)
    yield _saved(_batched(model.decode, latents), real)
    noised = _batched(lambda x, k: model.invert(x, k, case.t, guidance=case.guidance), latents, real.labels)
    back = _batched(lambda x, k: model.sample(x, k, case.t, guidance=case.guidance), noised, real.labels)
    yield _saved(_batched(model.decode, back), real)


def _saved(images: torch.Tensor, real: ImageSet) -> ImageSet:
    """Images of the model's size => as a run saves them and a student reads them."""
    side = real.pixels.shape[1]
    pixels = np.stack([decode(png(each, side), side) for each in to_pixels(images).numpy()])
    return ImageSet(torch.from_numpy(pixels), real.labels, real.classes)


def _batched(work: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    return torch.cat([work(*parts) for parts in zip(*(t.split(BATCH) for t in tensors), strict=True)])
