"""The flags of jobs/evaluate.py."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import tyro

from d3hr_ray.cli.parsing import Words
from d3hr_ray.config import Format

Baseline = Literal["real-random", "herding", "kmeans-real", "pixel-kmeans", "none"]
DEFAULT_BASELINES: tuple[Baseline, ...] = ("real-random",)
ProtocolName = Literal["hard", "hard-mixup", "d3hr-soft", "rded-soft", "fixed-soft"]


@dataclass(frozen=True)
class EvaluateFlags:
    """Command line of the job."""

    distilled: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH ...")] = ()
    """Sets: folders with train/<class>/<image>, or <class>/<image>, or run folders (all their sets)."""
    data: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    """Real test images, from any source of distill.py. Default: the held-out split, for sets of the digits."""
    format: Format = "auto"
    """Layout of --data."""
    class_depth: int | None = None
    """Of an image folder: the level whose folders are the classes, in --data and --train-data. Default: 1, if clear."""
    image_column: str | None = None
    """Of Parquet, in --data and --train-data: the column of images. Default: found by its name, such as image."""
    label_column: str | None = None
    """Of Parquet, in --data and --train-data: the column of labels. Default: found by its name, such as label."""
    class_ids: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=ID ...")] = ()
    """Of real images: ImageNet's class id (or the class's place in the set) where a class's name fits none, or two."""
    train_data: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    """Real training images, for baselines and --teacher train. Default: those that the sets were distilled from."""
    arch: Words = ("convnet-d3",)
    """Students: convnet-d3..d6 (width 128, instance norm; -w32, -bn), resnet18, resnet50, resnet101 (-small: 3x3 stem),
    resnet8-small, mobilenet_v2, efficientnet_b0, vit, swin_v2, vgg11, alexnet, or any timm name."""
    protocol: Annotated[tuple[ProtocolName, ...], tyro.conf.arg(metavar="NAME ...")] = ("hard",)
    """How students train: hard, hard-mixup, d3hr-soft, rded-soft, fixed-soft (README, Protocols)."""
    teacher: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME|PATH|train ...")] = ()
    """For soft labels: train (on the training images, kept in --out), a timm name with weights (resnet18.tv_in1k),
    ARCH=FILE, or a folder of an earlier `train`. Several are averaged."""
    teacher_arch: str | None = None
    """What `--teacher train` trains. Default: convnet-d3-w32 up to 32 pixels, resnet18-small to 64, else resnet18."""
    repeats: int = 3
    """Students per set, each with its own seed; baselines are drawn anew for each."""
    baselines: Annotated[tuple[Baseline, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Beside every IPC: real-random, herding, kmeans-real (coresets of raw pixels), pixel-kmeans (centres), none.
    Default: real-random, where there are training images."""
    full: bool = False
    """Also train on the full training set: what there is to reach."""
    ranking: bool = False
    """Also run what DD-Ranking's LRS and ARS need (hard, fixed-soft and unaugmented runs, full set), and print them."""
    image_size: int | None = None
    """Pixels that students see. Default: the sets' own, 224 at most."""
    glyphs: Literal["auto", "yes", "no"] = "auto"
    """Train as for handwriting: no flips or crops, 200 steps. auto: for the digits."""
    epochs: int | None = None
    """Instead of the protocol's; makes it another version. So do the next four."""
    batch_size: int | None = None
    """Images per step."""
    lr: float | None = None
    """Peak learning rate."""
    weight_decay: float | None = None
    """Of weights; never of biases and norms."""
    temperature: float | None = None
    """Of soft labels."""
    workers: int | None = None
    """Ray Train workers; 0 trains in this process. Default: one per GPU share, else one per CPU."""
    gpus_per_worker: float | None = None
    """GPUs per worker; with 0.1, ten students share one. Default 1, or 0 without GPUs."""
    workers_per_student: int = 1
    """Workers that train one student together (DDP). Default 1: different students side by side."""
    out: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    """Where evaluations/ goes. Default: the run folder of the first set."""
    address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Ray cluster. Default: RAY_ADDRESS, else a local Ray."""


def check_flags(flags: EvaluateFlags) -> None:
    """Raise ValueError for flags that are missing or contradict each other."""
    if not flags.distilled:
        raise ValueError("--distilled is needed: a set, or a run folder such as runs/digits")
    if flags.repeats < 1:
        raise ValueError(f"--repeats {flags.repeats} must be at least 1")
    soft = [name for name in flags.protocol if name.endswith("soft")]
    if (soft or flags.ranking) and not flags.teacher:
        wanted = f"--protocol {soft[0]}" if soft else "--ranking"
        raise ValueError(f"{wanted} needs --teacher: train, a timm name, ARCH=FILE or a folder")
    if "train" in flags.teacher and len(flags.teacher) > 1:
        raise ValueError("--teacher train stands alone; train teachers one by one, then name their folders")
    if flags.ranking and "real-random" not in (flags.baselines or DEFAULT_BASELINES):
        raise ValueError("--ranking compares with random real images; leave --baselines real-random in")
    if "none" in flags.baselines and len(flags.baselines) > 1:
        raise ValueError("--baselines none stands alone")
    if flags.image_size is not None and flags.image_size < 8:
        raise ValueError(f"--image-size {flags.image_size} must be at least 8")
    assert set(flags.protocol) <= set(get_args(ProtocolName))


def overrides(flags: EvaluateFlags) -> dict[str, float | int | None]:
    """What the flags change in a protocol."""
    names = ("epochs", "batch_size", "lr", "weight_decay", "temperature")
    return {name: getattr(flags, name) for name in names}
