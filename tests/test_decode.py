"""Decoding: ImageNet's crop as torchvision does it, every colour mode, and every kind of broken file."""

import io

import numpy as np
import pytest
from conftest import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as tv

from d3hr_ray.datasets import decode as module
from d3hr_ray.datasets.decode import RejectedImage, decode


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(height * width).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("shape", [(32, 32), (100, 61), (61, 100), (33, 47), (20, 90)])
def test_crop_is_torchvisions(shape):
    pixels = noise(*shape)
    theirs = tv.center_crop(tv.resize(Image.fromarray(pixels), 32), [32, 32])
    assert np.array_equal(decode(encode(pixels), 32), np.asarray(theirs))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "PPM"])
def test_lossless_formats_keep_every_pixel(form):
    pixels = noise(32, 32)
    options = {"lossless": True} if form == "WEBP" else {}
    assert np.array_equal(decode(encode(pixels, form, **options), 32), pixels)


def save(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_every_colour_mode_becomes_rgb():
    rgb = Image.fromarray(noise(40, 40))
    for mode, form in [("L", "JPEG"), ("L", "PNG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG")]:
        assert decode(save(rgb.convert(mode), form), 32).shape == (32, 32, 3)


def test_16_bit_grayscale_is_scaled_not_clipped():
    wide = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    pixels = decode(save(Image.fromarray(wide), "PNG"), 32)
    assert np.abs(pixels[..., 0].astype(int) - (wide >> 8)).max() <= 1


JPEG = encode(noise(64, 64), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is a text file called .jpg", "not an image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (encode(noise(64, 64))[:200], "broken image"),
        (b"GIF89a" + bytes(100), "not an image"),
    ],
)
def test_broken_files_are_rejected_with_a_reason(data, reason):
    with pytest.raises(RejectedImage, match=reason):
        decode(data, 32)


def test_a_decompression_bomb_is_rejected_before_it_is_unpacked(monkeypatch):
    bomb = save(Image.new("1", (20000, 20000)), "PNG")
    assert len(bomb) < 100_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("the bomb was unpacked"))
    with pytest.raises(RejectedImage, match="decompression bomb"):
        decode(bomb, 32)


def test_a_hair_thin_image_is_rejected():
    with pytest.raises(RejectedImage, match="too thin"):
        decode(encode(np.zeros((1, 60000, 3), np.uint8)), 256)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_mutated_images_are_decoded_or_rejected(data):
    """Flip, cut or repeat bytes of real files: an image or a RejectedImage, never anything else."""
    good = bytearray(data.draw(st.sampled_from([JPEG, encode(noise(16, 16)), encode(noise(16, 16), "WEBP")])))
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    try:
        assert decode(bytes(good[:cut]) if data.draw(st.booleans()) else bytes(good), 16).shape == (16, 16, 3)
    except RejectedImage as error:
        assert str(error)


def test_the_limit_leaves_room_for_real_photographs():
    assert module.MAX_PIXELS >= 50_000_000
