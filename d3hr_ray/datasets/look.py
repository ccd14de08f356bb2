"""How an image file's pixels are meant: turned as its EXIF says, without the colours that transparency hides.

Viewers show an image so, and `--fidelity fixed` takes it so. The authors' code takes the pixels as they are stored.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
import pyarrow as pa
from PIL import Image

from d3hr_ray.config import Fidelity

# Everything that PIL raises on hostile or broken files; a bug of ours is none of these.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    KeyError,
    IndexError,
    struct.error,
    zlib.error,
)
ORIENTATION = 0x112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE = (255, 255, 255)
DARK = 1 << 14  # of 65535: 16-bit images without a value beyond it have a quarter of the brightness at most


@dataclass(frozen=True)
class Look:
    """`upright`: turn and mirror as EXIF says. `background`: what shows through transparency; None: hidden colours."""

    upright: bool = True
    background: tuple[int, int, int] | None = WHITE


SHOWN, STORED = Look(), Look(upright=False, background=None)


def look_of(fidelity: Fidelity) -> Look:
    """What a run of a fidelity takes images for."""
    return STORED if fidelity == "official" else SHOWN


@dataclass(frozen=True)
class Seen:
    """How many images had an EXIF rotation, any transparency, 16 bits; and the largest value of the last."""

    rotated: int = 0
    transparent: int = 0
    deep: int = 0
    brightest: int = 0

    @classmethod
    def total(cls, parts: Iterable[Mapping[str, int]]) -> "Seen":
        """Over images or shards; marks of older versions have none of it."""
        made = cls()
        for part in parts:
            sums = {name: getattr(made, name) + part.get(name, 0) for name in ("rotated", "transparent", "deep")}
            made = cls(**sums, brightest=max(made.brightest, part.get("brightest", 0)))
        return made

    @classmethod
    def in_table(cls, images: pa.Table) -> "Seen":
        """Over a table that has `COLUMNS`."""
        return cls.total(images.select(COLUMNS).to_pylist())

    @property
    def is_dark(self) -> bool:
        """Whether 16-bit images hold fewer bits, which nothing in their files tells."""
        return self.deep > 0 and self.brightest < DARK

    def describe(self, look: Look) -> list[str]:
        """What people should know, a line each."""
        turned = "turned upright" if look.upright else "left on their side, as in the authors' code"
        shown = "put on white" if look.background else "their hidden colours show, as in the authors' code"
        dark = "; they will look dark: scale them to 16 bits first if that is not meant" if self.is_dark else ""
        lines = {
            f"{self.rotated:,} image(s) with an EXIF rotation: {turned}": self.rotated,
            f"{self.transparent:,} image(s) with transparency: {shown}": self.transparent,
            f"{self.deep:,} image(s) of 16 bits, with values up to {self.brightest} of 65535{dark}": self.deep,
        }
        return [line for line, count in lines.items() if count]

    def plain(self) -> dict[str, int]:
        """As marks and tables keep it."""
        return asdict(self)


COLUMNS = [field.name for field in fields(Seen)]


def to_rgb(image: Image.Image, look: Look) -> tuple[Image.Image, Seen]:
    """An opened image of any mode => RGB as it is meant, and what was met. Raises as PIL does for broken files."""
    deep = image.mode.startswith("I") or any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    image.load()
    turn = TURNS.get(_orientation(image))
    rgb, transparent, brightest = _flat(image, look, deep)
    seen = Seen(int(turn is not None), int(transparent), int(deep), brightest)
    return (rgb.transpose(turn) if look.upright and turn is not None else rgb), seen


def _flat(image: Image.Image, look: Look, deep: bool) -> tuple[Image.Image, bool, int]:
    """RGB as stored, whether any pixel was transparent, and the largest value of 16 bits."""
    if image.mode.startswith("I"):  # 16-bit grayscale, which PIL would clip instead of scaling
        wide = np.asarray(image, np.int64)
        narrow = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
        return narrow, False, int(wide.max().clip(0, 65535))
    transparent = False
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        transparent = int(np.asarray(layer.getchannel("A")).min()) < 255
        if transparent and look.background is not None:
            image = Image.alpha_composite(Image.new("RGBA", layer.size, (*look.background, 255)), layer)
    rgb = image.convert("RGB")
    # PIL has cut 16-bit colours to 8 bits by now: the largest value is known to 1 part in 256.
    return rgb, transparent, int(np.asarray(rgb).max()) * 257 if deep else 0


def _orientation(image: Image.Image) -> int:
    """EXIF's 1 to 8; 1 where there is none, or none that can be read: such a file's pixels are sound all the same."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except BROKEN:
        return 1
    return value if isinstance(value, int) else 1
