"""What stands in for --preset and --out where data or a model of one's own are given without them."""

import json
import re
from pathlib import Path

from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.datasets.named import FASHION_MNIST, set_of
from d3hr_ray.filesystems import absolute, split_query
from d3hr_ray.models.card import locate
from d3hr_ray.models.geometry import DIT_XL

PLAIN = ("train", "training", "data", "images", "")  # names of folders that say nothing of what is in them


def default_preset(flags: DistillFlags) -> str:
    """The preset without --preset: of the embedded set that the data or the model is of; "" for one's own.

    Raises ValueError for own images without a model that knows them.
    """
    own_data = flags.data is not None and set_of(flags.data) is None
    if own_data and flags.model is None:
        raise ValueError(
            f"--model is needed with --data {flags.data}: the default model knows only digits. Train one of your "
            f"classes with jobs/pretrain.py --preset custom --data {flags.data} --out MODEL, and give --model MODEL; "
            "or give --preset imagenet1k for classes of ImageNet, --model digits for images of digits"
        )
    named = (set_of(flags.data or ""), flags.model)
    if not own_data and (embedded := [name for name in (FASHION_MNIST, "digits-affine") if name in named]):
        return embedded[0]
    if flags.model is None or set_of(flags.model):
        return "digits"
    if flags.model == DIT_XL:
        return "imagenet1k"
    return "" if own_data else _trained_on(flags.model)


def default_out(flags: DistillFlags) -> str:
    """The run folder without --out: named after the preset, or the data or model of one's own."""
    if flags.from_gaussians:
        return flags.from_gaussians
    if flags.preset:
        return f"runs/{Path(flags.preset).stem}"
    given = (value for value in (flags.data, flags.model) if value and not set_of(value))
    return f"runs/{folder_name(next(given, None) or default_preset(flags))}"


def folder_name(uri: str) -> str:
    """What images or a model are called: the last part of their path or URI that tells them apart."""
    parts = [re.sub(r"(\.tar|\.parquet|\.pq|\.parq)?$", "", part) for part in split_query(absolute(uri))[0].split("/")]
    telling = [p for p in parts if p.lower() not in PLAIN and not re.search(r"[*?\[{:]", p) and p.strip(".~")]
    return re.sub(r"[^\w.-]+", "-", telling[-1]).strip("-.") if telling else "own"


def _trained_on(model: str) -> str:
    """The named set that a model of jobs/pretrain.py was trained on, which then are its images, too; else ""."""
    file = Path(locate(model)) / "training.json"
    if not file.is_file():
        return ""
    return set_of(str(json.loads(file.read_text(encoding="utf-8"))["settings"]["data"]["uri"])) or ""
