"""Distilled sets as tensors: ours, or any folder of class folders."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from d3hr_ray.datasets.reading import Reading
from d3hr_ray.evaluation import sets
from d3hr_ray.library.errors import naming_arguments
from d3hr_ray.models.autoencoder import to_images


@dataclass(frozen=True, eq=False)
class ImageSet:
    """`pixels` (N, S, S, 3) uint8; `labels` (N,) int64, which count into `classes`, the names.

    `weights` (N,) float32 say what each image counts, of mean 1 in a class; None for sets without.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> torch.Tensor:
        """Images (N, 3, S, S) float32 in [-1, 1], as models and students take them: made anew, four times the bytes."""
        return to_images(self.pixels)


def load_set(path: str | Path, side: int | None = None, as_test: bool = False) -> ImageSet:
    """A set's folder, a run folder that holds one, or FOLDER/<class>/<image> of anyone => its images, in label order.

    Any URI that pyarrow.fs resolves. Images come at `side` pixels: resized and cropped if they have another size; None
    is the first image's. `as_test` is for real images to test on: the field's transform, the centre of images that are
    resized to side // 7 * 8, or whole ones below 64 pixels. Files of ours are checked against their hashes. Raises
    ValueError if there is no set, an unfinished one or more than one, RunError for an image that is broken or not the
    one that was made.
    """
    with naming_arguments():
        stores = sets.find_sets((str(path),))
        if len(stores) > 1:
            names = ", ".join(store.name for store in stores)
            raise ValueError(f"{path} holds {len(stores)} sets; give the path of one of them: {names}")
        images = sets.load_set(stores[0], side or sets.image_side(stores[0])).images
        found = (replace(images, context=True) if as_test and isinstance(images, Reading) else images).load()
    weights = None if found.weights is None else torch.from_numpy(found.weights)
    return ImageSet(torch.from_numpy(found.pixels), torch.from_numpy(found.labels), found.classes, weights)
