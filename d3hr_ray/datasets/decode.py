"""Encoded bytes of strangers => square pixels, or a plain reason why not. ImageNet's resize and centre crop."""

import io
import warnings

import numpy as np
from PIL import Image

from d3hr_ray.datasets.look import BROKEN, SHOWN, Look, Seen, to_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
MAX_PIXELS = 100_000_000
MAX_BYTES = 128 << 20  # of one encoded image; sources read no more than one byte beyond


class RejectedImage(ValueError):
    """This image cannot be used; the message is the reason, for `rejected/`."""


class NoImage(bytes):
    """No bytes, and why: what a source gives for an entry that it cannot read, so that it is rejected and counted."""

    reason: str

    def __new__(cls, reason: str) -> "NoImage":
        """Empty bytes with a reason."""
        made = super().__new__(cls)
        made.reason = reason
        return made


def decode(data: bytes, size: int, look: Look = SHOWN) -> np.ndarray:
    """Encoded image => pixels (size, size, 3) uint8, as decode_seen has them."""
    return decode_seen(data, size, look)[0]


def decode_seen(data: bytes, size: int, look: Look) -> tuple[np.ndarray, Seen]:
    """Encoded image => pixels (size, size, 3) uint8: RGB, short side resized (bilinear, antialiased), centre crop.

    Grayscale, palette, alpha, CMYK and 16-bit images become RGB; what was met is told. Raises RejectedImage with the
    reason.
    """
    if not data:
        raise RejectedImage(data.reason if isinstance(data, NoImage) else "empty file")
    if len(data) > MAX_BYTES:
        raise RejectedImage(f"more than {MAX_BYTES} bytes long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise RejectedImage(f"{width} x {height} pixels is more than {MAX_PIXELS}: decompression bomb?")
            rgb, seen = to_rgb(image, look)
            return np.asarray(_crop(rgb, size)), seen
    except RejectedImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise RejectedImage("not an image in JPEG, PNG, WebP, BMP or PPM format") from error
    except Image.DecompressionBombError as error:
        raise RejectedImage(f"decompression bomb: {error}") from error
    except MemoryError as error:
        raise RejectedImage("does not fit into memory") from error
    except BROKEN as error:
        raise RejectedImage(f"broken image: {error or type(error).__name__}") from error


def _crop(image: Image.Image, size: int) -> Image.Image:
    """torchvision's Resize(size) and CenterCrop(size), which is what D3HR's code does."""
    width, height = image.size
    short = min(width, height)
    new = (int(size * width / short), int(size * height / short))
    if max(new) > MAX_PIXELS // size:
        raise RejectedImage(f"{width} x {height} pixels is too thin to crop to {size} x {size}")
    if new != image.size:
        image = image.resize(new, Image.Resampling.BILINEAR)
    left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
    return image.crop((left, top, left + size, top + size))
