"""Sets that a name stands for instead of a path: the embedded digits, and Fashion-MNIST where it lies on this machine.

NAME is the training split, NAME/test the test split.
"""

from pathlib import Path

from d3hr_ray.config import DataConfig, Format
from d3hr_ray.datasets import digits
from d3hr_ray.datasets.idx import list_idx
from d3hr_ray.datasets.source import Source

FASHION_MNIST = "fashion-mnist"
FORMATS: dict[str, Format] = {**dict.fromkeys(digits.NAMES, "digits"), FASHION_MNIST: "idx"}
PLACES = (  # Debian's package; torchvision, called as its documentation does; the same in the home folder
    "/usr/share/datasets/fashion-mnist",
    "data/FashionMNIST/raw",
    "~/data/FashionMNIST/raw",
)
HOW_TO_GET_IT = (
    "apt-get install dataset-fashion-mnist, or python -c "
    "\"import torchvision; torchvision.datasets.FashionMNIST('data', download=True)\""
)


def set_of(uri: str, form: Format = "auto") -> str | None:
    """The named set that a --data names, or a split of it, if its format does not say otherwise."""
    name = uri.partition("/")[0]
    return name if form in ("auto", FORMATS.get(name)) and name in FORMATS else None


def open_named(data: DataConfig) -> Source | None:
    """The split of a named set; None for anything else. Raises ValueError for a split or a set that is not there."""
    name = set_of(data.uri, data.format)
    if name is None:
        return None
    split = data.uri.partition("/")[2] or "train"
    if name in digits.NAMES:
        return digits.Digits(name, split)
    if split not in ("train", "test"):
        raise ValueError(f"--data {data.uri}: {name} has no split {split!r}; it has train and test")
    folders = [str(Path(place).expanduser()) for place in PLACES if Path(place).expanduser().is_dir()]
    found = next((source for folder in folders if (source := list_idx(folder, split == "test"))), None)
    if found is None:
        raise ValueError(f"--data {name}: not on this machine ({', '.join(PLACES)}); get it by {HOW_TO_GET_IT}")
    return found
