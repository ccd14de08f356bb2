"""Class names of the sets that come as idx files, and which of them a file belongs to.

The labels' digest tells Fashion-MNIST wherever it lies; for the others a folder or the start of the file's name does,
as torchvision and the sets' authors have them: FashionMNIST/raw, KMNIST/raw, emnist-letters-train-labels-idx1-ubyte.
"""

import hashlib
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip
HIRAGANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")  # the first row of each of KMNIST's ten
LETTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"  # EMNIST: letters whose two cases look alike are one


@dataclass(frozen=True)
class Known:
    """A set's name for people, and its classes by label."""

    title: str
    classes: Mapping[int, str]


def _known(title: str, names: str | tuple[str, ...], first: int = 0) -> Known:
    return Known(title, dict(enumerate(names, first)))


FASHION_MNIST = _known("Fashion-MNIST", FASHION)
MNIST_LIKE = _known("MNIST", string.digits)
ANY = Known("", {label: str(label) for label in range(256)})
KNOWN = {
    "mnist": MNIST_LIKE,
    "fashionmnist": FASHION_MNIST,
    "kmnist": _known("KMNIST", HIRAGANA),
    "kuzushijimnist": _known("KMNIST", HIRAGANA),
    "emnistletters": _known("EMNIST letters", string.ascii_lowercase, first=1),
    "emnistdigits": _known("EMNIST digits", string.digits),
    "emnistmnist": _known("EMNIST mnist", string.digits),
    "emnistbalanced": _known("EMNIST balanced", MERGED),
    "emnistbymerge": _known("EMNIST bymerge", MERGED),
    "emnistbyclass": _known("EMNIST byclass", LETTERS),
}
DIGESTS = {  # SHA-256 of all labels, first 16 digits: train, t10k
    "657fbd221bfc9f41": FASHION_MNIST,
    "3d0e6c6ea990b53b": FASHION_MNIST,
}


def recognise(labels: np.ndarray, prefix: str, folder: str) -> Known:
    """Labels (N,), what stands before the split in the file's name, and the folder that it lies in => the set.

    An unknown set with a name of its own may have any labels, one without has MNIST's ten.
    """
    told = DIGESTS.get(hashlib.sha256(labels.tobytes()).hexdigest()[:16])
    names = (prefix, *reversed(folder.split("/")))
    spelt = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (names[:1] if prefix else names))
    return told or next((KNOWN[name] for name in spelt if name in KNOWN), ANY if prefix else MNIST_LIKE)


def is_transposed(prefix: str) -> bool:
    """Whether images are stored column by column: EMNIST's are, as they come from MATLAB."""
    return prefix.lower().startswith("emnist")
