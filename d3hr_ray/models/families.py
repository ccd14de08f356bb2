"""DSA's families of augmentation, as in DatasetCondensation's utils.py (Zhao and Bilen, 2021), on whole batches.

They see normalised images: zeros, which they fill with, are the mean. `count` draws are made, one per image or one.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from d3hr_ray.config import Family


def siamese(
    images: torch.Tensor, families: tuple[Family, ...], draw: np.random.Generator, alike: bool = False
) -> torch.Tensor:
    """DSA: normalised images (B, C, S, S) => the same after one of the families, drawn for all of them.

    How much is drawn for each image, or if `alike` for all together, whatever their number.
    """
    chosen = families[int(draw.integers(len(families)))]
    return FAMILIES[chosen](images, draw, 1 if alike else len(images))


def color(images: torch.Tensor, draw: np.random.Generator, count: int) -> torch.Tensor:
    """Brighter by up to 0.5, then the distance from the mean of channels times 0 to 2, from the image's 0.5 to 1.5."""
    bright, vivid, sharp = (
        to(draw.uniform(low, high, (count, 1, 1, 1)).astype(np.float32), images.device)
        for low, high in ((-0.5, 0.5), (0.0, 2.0), (0.5, 1.5))
    )
    images = images + bright
    for strength, over in ((vivid, (1,)), (sharp, (1, 2, 3))):
        mean = images.mean(over, keepdim=True)
        images = (images - mean) * strength + mean
    return images


def moved(images: torch.Tensor, draw: np.random.Generator, count: int) -> torch.Tensor:
    """Moved by up to an eighth of the side each way, zeros for what was outside."""
    side = images.shape[-1]
    most = int(side / 8 + 0.5)
    by = draw.integers(-most, most + 1, (count, 2))
    index = [np.arange(side) + most - by[:, axis, None] for axis in (0, 1)]
    return take(functional.pad(images, (most,) * 4), *(to(i, images.device) for i in index))


def cutout(images: torch.Tensor, draw: np.random.Generator, count: int) -> torch.Tensor:
    """Zeros in a box of half the side, round a point of the image."""
    side = images.shape[-1]
    size = int(side / 2 + 0.5)
    first = draw.integers(0, side + 1 - size % 2, (count, 2, 1)) - size // 2
    within = (np.arange(side) >= first) & (np.arange(side) < first + size)
    hidden = within[:, 0, :, None] & within[:, 1, None, :]
    return images.masked_fill(to(hidden[:, None], images.device), 0.0)


def flip(images: torch.Tensor, draw: np.random.Generator, count: int) -> torch.Tensor:
    """Mirrored, or not."""
    mirrored = to(draw.random(count) < 0.5, images.device).view(-1, 1, 1, 1)
    return torch.where(mirrored, images.flip(-1), images)


def scale(images: torch.Tensor, draw: np.random.Generator, count: int) -> torch.Tensor:
    """Height and width divided by 1 / 1.2 to 1.2 each."""
    theta = np.zeros((count, 2, 3))
    theta[:, (0, 1), (0, 1)] = draw.uniform(1 / 1.2, 1.2, (count, 2))
    return _warped(images, theta)


def rotate(images: torch.Tensor, draw: np.random.Generator, count: int) -> torch.Tensor:
    """Turned by up to 15 degrees."""
    angle = np.deg2rad(draw.uniform(-15, 15, count))
    theta = np.zeros((count, 2, 3))
    theta[:, 0, 0] = theta[:, 1, 1] = np.cos(angle)
    theta[:, 1, 0] = np.sin(angle)
    theta[:, 0, 1] = -theta[:, 1, 0]
    return _warped(images, theta)


def _warped(images: torch.Tensor, theta: np.ndarray) -> torch.Tensor:
    """Images as seen through the maps theta (N or 1, 2, 3) of coordinates in [-1, 1]; zeros outside."""
    matrix = to(theta.astype(np.float32), images.device).expand(len(images), 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


FAMILIES: dict[Family, Callable[[torch.Tensor, np.random.Generator, int], torch.Tensor]] = {
    "color": color, "crop": moved, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate,
}  # fmt: skip


def take(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Each image's own rows (N, S) and columns (N, S); or, of one row each, all images'."""
    at = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    return images.permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def to(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on a device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)
