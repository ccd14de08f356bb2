"""Augmentation of whole batches on the device they live on. Draws are made on the CPU, keyed by the step.

Images are float [-1, 1] BCHW. Resampling is bilinear without antialiasing: crops are enlarged, never shrunk.
"""

import numpy as np
import torch
from torch.nn import functional

from d3hr_ray.evaluation.protocols import Augment
from d3hr_ray.models.families import flip, take, to

CROP_TRIES = 10  # torchvision's
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601
# ImageNet's principal colours (columns) and their variances, of pixels in [0, 1]: AlexNet's, from fb.resnet.torch.
COLOURS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
VARIANCES = (0.2175, 0.0188, 0.0045)


def augment(images: torch.Tensor, how: Augment, draw: np.random.Generator) -> torch.Tensor:
    """Images => images: strips, crop, shift, flip, colours, each drawn per image. `mix`, the rest, changes labels."""
    count = len(images)
    if how.strips > 1:
        orders = [np.stack([draw.permutation(how.strips) for _ in range(count)]) for _ in range(2)]
        images = shuffle_strips(images, *orders)
    if how.crop_scale:
        images = crop(images, crop_boxes(count, images.shape[-1], how.crop_scale, draw))
    if how.shift:
        images = shift(images, draw.integers(-how.shift, how.shift + 1, (count, 2)))
    images = flip(images, draw, count) if how.flip else images
    images = jitter(images, how.jitter, draw) if how.jitter else images
    return lighten(images, how.lighting, draw) if how.lighting else images


def crop_boxes(count: int, side: int, scale: tuple[float, float], draw: np.random.Generator) -> np.ndarray:
    """(N, 4) whole pixels, top, left, height, width, distributed as torchvision's RandomResizedCrop.get_params.

    The area is uniform in `scale`, the aspect log-uniform in 3/4 to 4/3; a box that sticks out is drawn anew, and the
    image is taken whole where ten in a row did (torchvision's central crop, of a square image).
    """
    area = draw.uniform(*scale, (CROP_TRIES, count)) * side**2
    aspect = np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3), (CROP_TRIES, count)))
    tries = np.stack([np.sqrt(area / aspect), np.sqrt(area * aspect)], -1).round().astype(np.int64)
    fits = ((tries > 0) & (tries <= side)).all(-1)
    sizes = tries[fits.argmax(0), np.arange(count)]
    sizes[~np.any(fits, axis=0)] = side
    return np.concatenate([draw.integers(0, side - sizes + 1), sizes], 1)


def crop(images: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
    """Each image's box (top, left, height, width in pixels), enlarged to the whole image as torchvision resizes it."""
    side = images.shape[-1]
    corner, size = boxes[:, :2], boxes[:, 2:]
    theta = np.zeros((len(images), 2, 3), np.float32)
    theta[:, (1, 0), (1, 0)] = size / side
    theta[:, (1, 0), 2] = (2 * corner + size) / side - 1
    grid = functional.affine_grid(to(theta, images.device), list(images.shape), align_corners=False)
    # No pixel outside the box is seen: coordinates end at the centres of its outermost pixels.
    least, most = ((2 * at + 1) / side - 1 for at in (corner, corner + size - 1))
    ends = [to(at[:, None, None, ::-1].astype(np.float32), images.device) for at in (least, most)]
    return functional.grid_sample(images, grid.clamp(*ends), padding_mode="border", align_corners=False)


def shuffle_strips(images: torch.Tensor, columns: np.ndarray, rows: np.ndarray) -> torch.Tensor:
    """RDED's ShufflePatches: columns cut in equal strips and reordered, then rows. Orders are (N, strips).

    Raises ValueError if the side does not divide.
    """
    side, strips = images.shape[-1], columns.shape[1]
    if side % strips:
        raise ValueError(
            f"{side} pixels cannot be cut into {strips} equal strips; give another --image-size or --protocol"
        )
    within = np.arange(side // strips)
    index = [(order[:, :, None] * (side // strips) + within).reshape(len(images), side) for order in (rows, columns)]
    return take(images, *(to(i, images.device) for i in index))


def shift(images: torch.Tensor, by: np.ndarray) -> torch.Tensor:
    """Move each image by whole pixels (N, 2) down and right; edges are repeated."""
    side = np.arange(images.shape[-1])
    index = [(side - by[:, axis, None]).clip(0, len(side) - 1) for axis in (0, 1)]
    return take(images, *(to(i, images.device) for i in index))


def jitter(images: torch.Tensor, most: float, draw: np.random.Generator) -> torch.Tensor:
    """Images (N, 3, S, S), each moved from black, from its mean grey and from its greys, in any order.

    Each move is up to `most` of the way, to or fro: IDC's jitter of brightness, contrast and saturation (Minimax's
    misc/utils.py). Nothing is clipped.
    """
    count = len(images)
    orders = np.argsort(draw.random((count, 3)), axis=1)
    ways = np.take_along_axis(draw.uniform(-most, most, (count, 3)), orders, 1).astype(np.float32)
    luma = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    x = (images + 1) / 2
    for kind, way in zip(to(orders.T, images.device), to(ways.T, images.device), strict=True):
        kind, way = kind.view(-1, 1, 1, 1), way.view(-1, 1, 1, 1)
        grey = (x * luma).sum(1, keepdim=True)
        flat = torch.where(kind == 1, grey.mean((2, 3), keepdim=True), 0.0)
        x = x + way * (torch.where(kind == 2, grey, flat) - x)
    return x * 2 - 1


def lighten(images: torch.Tensor, std: float, draw: np.random.Generator) -> torch.Tensor:
    """Images (N, 3, S, S), each with a colour added: normal of `std` along ImageNet's principal ones, as AlexNet's.

    Krizhevsky et al. (2012, section 4.1). It is multiplied by their variances, as there, and not by their roots.
    """
    shares = draw.normal(0, std, (len(images), 3)) * np.array(VARIANCES)
    added = to((shares @ np.array(COLOURS).T).astype(np.float32), images.device)
    return images + 2 * added[:, :, None, None]


def mix(
    images: torch.Tensor, targets: torch.Tensor, how: Augment, draw: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """CutMix (Yun et al., 2019) or mixup (Zhang et al., 2018) of a batch with a permutation of itself.

    `targets` (N, K) are class probabilities and are mixed in the same share, and so is what else is known of each
    image: the weight of share s of image i and 1 - s of j is s w_i + (1 - s) w_j.
    """
    if how.mix == "none" or draw.random() >= how.mix_probability:
        return images, targets
    share = float(draw.beta(how.mix_alpha, how.mix_alpha))
    order = to(draw.permutation(len(images)), images.device)
    if how.mix == "mixup":
        mixed = share * images + (1 - share) * images[order]
    else:
        top, bottom, left, right = cut_box(images.shape[-1], share, draw)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[order, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / images.shape[-1] ** 2
    return mixed, share * targets + (1 - share) * targets[order]


def cut_box(side: int, share: float, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """CutMix's box: sides of sqrt(1 - share), a uniform centre, cut at the image's edge => top, bottom, left, right."""
    half = int(side * np.sqrt(1 - share)) // 2
    (y, x) = draw.integers(0, side, 2)
    low_y, high_y, low_x, high_x = np.clip([y - half, y + half, x - half, x + half], 0, side)
    return int(low_y), int(high_y), int(low_x), int(high_x)
