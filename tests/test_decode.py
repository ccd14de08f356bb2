"""Decoding: ImageNet's crop as torchvision does it, every colour mode, and every kind of broken file."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from conftest import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import functional as tv

from d3hr_ray.config import DataConfig, ModelConfig, RunConfig, RunError
from d3hr_ray.datasets import decode as module
from d3hr_ray.datasets.decode import RejectedImage, decode, decode_seen
from d3hr_ray.datasets.listing import list_images
from d3hr_ray.datasets.look import SHOWN, STORED, Seen, look_of
from d3hr_ray.datasets.reading import Reading
from d3hr_ray.evaluation.comparison import list_real, look_beside
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.stages.invert import _check_looks
from d3hr_ray.stages.read import read_shard


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
        data = save(rgb.convert(mode), form)
        plain = save(Image.open(io.BytesIO(data)).convert("RGB"), "PNG")
        assert decode(data, 32).shape == (32, 32, 3)
        assert np.array_equal(decode(data, 32), decode(plain, 32)), (mode, form)


def test_16_bit_grayscale_is_scaled_not_clipped():
    wide = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    pixels = decode(save(Image.fromarray(wide), "PNG"), 32)
    assert np.abs(pixels[..., 0].astype(int) - (wide >> 8)).max() <= 1


JPEG = encode(noise(64, 64), "JPEG")


def with_exif(image: Image.Image, orientation: int, form: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return encode(np.asarray(image), form, exif=exif, quality=95)


def phone_picture() -> bytes:
    """Taken upright, 16 wide and 32 high, red above blue; stored on its side, as phones do."""
    lying = Image.new("RGB", (32, 16), (255, 0, 0))
    lying.paste((0, 0, 255), (16, 0, 32, 16))
    return with_exif(lying, 6)


def logo() -> bytes:
    """An opaque red upper half; below, red that full transparency hides."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[..., 0] = 255
    pixels[:8, :, 3] = 255
    return encode(pixels)


def twelve_bits() -> bytes:
    return save(Image.fromarray(np.linspace(0, 4000, 256).reshape(16, 16).astype(np.uint16)), "PNG")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_every_exif_orientation_is_shown_as_pil_shows_it(orientation, form):
    data = with_exif(Image.fromarray(noise(24, 40)), orientation, form)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(decode(data, 16), decode(encode(np.asarray(upright)), 16))
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(decode(data, 16, STORED), decode(encode(np.asarray(stored)), 16))
    assert decode_seen(data, 16, STORED)[1].rotated == (orientation > 1)


def test_a_phones_picture_stands_upright():
    top, bottom = decode(phone_picture(), 16)[[0, -1], 8]
    assert top[0] > 200 > 50 > top[2] and bottom[2] > 200 > 50 > bottom[0]
    lying, seen = decode_seen(phone_picture(), 16, look_of("official"))
    assert lying[8, 0, 0] > 200 and lying[8, -1, 2] > 200 and seen.rotated == 1


def test_broken_exif_spoils_no_image():
    data = phone_picture()
    at = data.index(b"Exif") + 6
    for spoiled in (b"\xff" * 8, data[at : at + 4] + b"\xff" * 4):
        pixels, seen = decode_seen(data[:at] + spoiled + data[at + 8 :], 16, SHOWN)
        assert seen.rotated == 0 and pixels[8, 0, 0] > 200


def test_transparency_is_put_on_white():
    pixels, seen = decode_seen(logo(), 16, SHOWN)
    assert (pixels[:8] == (255, 0, 0)).all() and (pixels[8:] == 255).all() and seen.transparent == 1
    assert (decode(logo(), 16, look_of("official")) == (255, 0, 0)).all()
    palette = Image.open(io.BytesIO(logo())).convert("RGB").quantize(4)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=palette.getpixel((0, 0)))
    assert (decode(buffer.getvalue(), 16) == 255).all()
    grey = Image.fromarray(np.full((16, 16), 7, np.uint8)).convert("LA")
    grey.putalpha(0)
    assert (decode(save(grey, "PNG"), 16) == 255).all()
    opaque = Image.fromarray(noise(16, 16)).convert("RGBA")
    assert decode_seen(save(opaque, "PNG"), 16, SHOWN)[1] == Seen()


def test_16_bits_that_hold_12_are_told():
    _, seen = decode_seen(twelve_bits(), 16, SHOWN)
    assert (seen.deep, seen.brightest) == (1, 4000)
    (line,) = seen.describe(SHOWN)
    assert "1 image(s) of 16 bits, with values up to 4000 of 65535; they will look dark" in line
    full = save(Image.fromarray(np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)), "PNG")
    assert "dark" not in decode_seen(full, 16, SHOWN)[1].describe(SHOWN)[0]


def photographs(root) -> str:
    (root / "a").mkdir(parents=True)
    for name, data in (("phone.jpg", phone_picture()), ("logo.png", logo()), ("x_ray.png", twelve_bits())):
        (root / "a" / name).write_bytes(data)
    return str(root)


def test_a_shard_counts_what_it_saw(tmp_path):
    """Of accepted images alone, to be kept in its done mark."""
    listing = list_images(DataConfig(photographs(tmp_path)), 1, None)
    entries = listing.entries.append_column("probe", pa.array([False] * 3))
    _, accepted, _ = read_shard(listing.source, entries, 16)
    seen = Seen.in_table(accepted)
    assert seen == Seen(rotated=1, transparent=1, deep=1, brightest=4000)
    assert len(seen.describe(SHOWN)) == 3 and "official" not in str(seen.describe(STORED))
    assert Seen.total([seen.plain(), {"accepted": 5}, seen.plain()]) == Seen(2, 2, 2, 4000)


def test_shards_that_an_older_version_read_never_mix_with_others():
    fixed = RunConfig(DataConfig("x"), ModelConfig("digits"))
    official = replace(fixed, fidelity="official", method="dit")
    old, new = {"accepted": 3, "rejected": 0}, {"accepted": 3, "rejected": 0} | Seen(rotated=1).plain()
    _check_looks(fixed, {0: old, 1: old | Seen().plain()})
    _check_looks(fixed, {0: new, 1: new})
    _check_looks(official, {0: old, 1: new})
    with pytest.raises(RunError, match="1 shards are of a version that left EXIF rotations"):
        _check_looks(fixed, {0: old, 1: new})


def test_real_images_beside_sets_are_read_as_their_runs_read_them(tmp_path):
    listing = list_real(DataConfig(photographs(tmp_path)), ("a",), None)
    reading = Reading.of(listing, ("a",), 16)
    images = reading.load()
    assert "of 3 real images, 1 image(s) with an EXIF rotation: turned upright" in str(images.notes)
    assert reading.survey() == (images.digest, images.notes)
    lying = Reading.of(replace(listing, look=STORED), ("a",), 16).load()
    assert not np.array_equal(images.pixels, lying.pixels)
    ours = [DistilledSet("x", images, "", about={"fidelity": f}) for f in ("official", "official but start", "fixed")]
    assert look_beside(ours[:2]) == STORED
    assert look_beside(ours) == look_beside([DistilledSet("theirs", images, "")]) == SHOWN


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
    files = [JPEG, encode(noise(16, 16)), encode(noise(16, 16), "WEBP"), phone_picture(), logo(), twelve_bits()]
    good = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    try:
        assert decode(bytes(good[:cut]) if data.draw(st.booleans()) else bytes(good), 16).shape == (16, 16, 3)
    except RejectedImage as error:
        assert str(error)


def test_the_limit_leaves_room_for_real_photographs():
    assert module.MAX_PIXELS >= 50_000_000
