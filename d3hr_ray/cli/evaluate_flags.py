"""The flags of jobs/evaluate.py."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from d3hr_ray.cli import machine_flags
from d3hr_ray.cli.data_flags import LAYOUT
from d3hr_ray.cli.flags import with_own
from d3hr_ray.config import DataConfig, setting
from d3hr_ray.config.fields import CLUSTER, DATA, OUTPUT, TRAINING
from d3hr_ray.evaluation.baselines import Baseline
from d3hr_ray.evaluation.protocols import HYPERPARAMETERS, Precision, check_number, is_soft, sees_whole
from d3hr_ray.evaluation.recipes import FULL_EPOCHS

DEFAULT_BASELINES: tuple[Baseline, ...] = ("real-random",)
ProtocolName = Literal["hard", "hard-mixup", "d3hr-soft", "rded-soft", "fixed-soft", "dc", "dsa", "rd3", "minimax"]


def _protocol(help: str) -> Any:
    """A field that is the protocol's where it is not given."""
    return setting(None, help, TRAINING, shown="the protocol's")


@with_own(DataConfig, *LAYOUT)
@dataclass(frozen=True)
class EvaluateFlags:
    """Command line of the job."""

    distilled: tuple[str, ...] = setting(
        (),
        "Sets: folders with train/<class>/<image>, or <class>/<image>, or run folders (all their sets).",
        DATA,
        metavar="PATH ...",
    )
    data: str | None = setting(
        None,
        "Real test images, from any source of distill.py.",
        DATA,
        metavar="URI",
        shown="the test split, for sets of the digits and of idx files",
    )
    train_data: str | None = setting(
        None,
        "Real training images, for baselines and --teacher train.",
        DATA,
        metavar="URI",
        shown="those that the sets were distilled from",
    )
    arch: tuple[str, ...] = setting(
        ("convnet-d3",),
        "Students: convnet-d3..d6 (width 128, instance norm; -w32, -bn), resnet18, resnet50, resnet101 (-small: "
        "3x3 stem), resnet8-small, resnetap10, 18 and 34 (instance norm; -bn), mobilenet_v2, efficientnet_b0, vit, "
        "swin_v2, vgg11 (-small), alexnet, mlp, or any timm name.",
        TRAINING,
    )
    protocol: tuple[ProtocolName, ...] = setting(
        ("hard",),
        "How students train: hard, hard-mixup, d3hr-soft, rded-soft, fixed-soft, dc, dsa, rd3, minimax "
        "(docs/protocols.md).",
        TRAINING,
        metavar="NAME ...",
    )
    teacher: tuple[str, ...] = setting(
        (),
        "For soft labels: train (on the training images, kept in --out), a timm name with weights "
        "(resnet18.tv_in1k), ARCH=FILE (of pixels normalised as ImageNet's), or a folder of an earlier `train` or of "
        "--keep-students. Several are averaged.",
        TRAINING,
        metavar="NAME|PATH|train ...",
    )
    teacher_arch: str | None = setting(
        None,
        "What `--teacher train` trains.",
        TRAINING,
        metavar="NAME",
        shown="convnet-d3-w32 up to 32 pixels, resnet18-small to 64, else resnet18",
    )
    teacher_epochs: int | None = setting(
        None, "For how long `--teacher train` trains.", TRAINING, shown="as --full-epochs says; 600 steps for digits"
    )
    repeats: int = setting(3, "Students per set, each with its own seed; baselines are drawn anew for each.", TRAINING)
    baselines: tuple[Baseline, ...] = setting(
        (),
        "Beside every IPC: real-random, herding, k-center, kmeans-real (coresets of raw pixels), pixel-kmeans "
        "(centres), none.",
        DATA,
        metavar="NAME ...",
        shown="real-random, where there are training images",
    )
    full: bool = setting(False, "Also train on the full training set: what there is to reach.", DATA)
    full_epochs: int = setting(FULL_EPOCHS, "Epochs of the full set, where the protocol has more.", TRAINING)
    weights: bool = setting(
        False,
        "In losses, let each image count by the share of its class that it stands for (sets of --components). Another "
        "version of each protocol.",
        TRAINING,
    )
    precision: Precision = setting(
        "float32",
        "Of students in training. bfloat16 is for hardware that has it, and makes another version of each protocol.",
        TRAINING,
    )
    ranking: bool = setting(
        False,
        "Also run what DD-Ranking's LRS and ARS need (hard, fixed-soft and unaugmented runs, full set), and print "
        "them.",
        TRAINING,
    )
    image_size: int | None = setting(None, "Pixels that students see.", DATA, shown="the sets' own, 224 at most")
    glyphs: Literal["auto", "yes", "no"] = setting(
        "auto", "Train as for handwriting: no flips or crops, 200 steps. auto: for the embedded digits.", TRAINING
    )
    epochs: int | None = _protocol(
        "Instead of the protocol's; makes it another version, as do batch size, lr, weight decay and temperature."
    )
    batch_size: int | None = _protocol("Images per step.")
    lr: float | None = _protocol("Peak learning rate.")
    weight_decay: float | None = _protocol("Of weights; of biases and norms under dc and dsa alone.")
    temperature: float | None = _protocol("Of soft labels.")
    workers: int | None = setting(
        None, "Ray Train workers; 0 trains in this process.", CLUSTER, shown="one per GPU share, else one per CPU"
    )
    gpus_per_worker: float | None = setting(
        None, "GPUs per worker; with 0.1, ten students share one.", CLUSTER, shown="1, or 0 without GPUs"
    )
    workers_per_student: int = setting(
        1, "Workers that train one student together (DDP).", CLUSTER, shown="1: different students side by side"
    )
    out: str | None = setting(
        None, "Where evaluations/ goes.", OUTPUT, metavar="URI", shown="the run folder of the first set"
    )
    keep_students: bool = setting(
        False,
        "Keep the network of every student in evaluations/students/, a folder each: for --teacher, and for "
        "distill.py --select learnable --learner.",
        OUTPUT,
    )
    no_real_images: bool = machine_flags.no_real_images()
    address: str | None = machine_flags.address()


def check_training(flags: Any) -> None:
    """Raise ValueError for numbers, or lists of them, with which no student trains."""
    for name in HYPERPARAMETERS:
        value = getattr(flags, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None:
                check_number(name, number)


def check_flags(flags: EvaluateFlags) -> None:
    """Raise ValueError for flags that are missing or contradict each other."""
    if not flags.distilled:
        raise ValueError("--distilled is needed: a set, or a run folder such as runs/digits")
    if flags.full_epochs < 1:
        raise ValueError(f"--full-epochs {flags.full_epochs} must be at least 1")
    if flags.repeats < 1:
        raise ValueError(f"--repeats {flags.repeats} must be at least 1")
    check_training(flags)
    soft = [name for name in flags.protocol if is_soft(name)]
    if (soft or flags.ranking) and not flags.teacher:
        wanted = f"--protocol {soft[0]}" if soft else "--ranking"
        raise ValueError(f"{wanted} needs --teacher: train, a timm name, ARCH=FILE or a folder")
    sees_whole((*flags.protocol, *(("hard",) if flags.ranking else ())))
    if flags.temperature is not None and not soft and not flags.ranking:
        raise ValueError("--temperature is of soft labels, and no --protocol here has them; leave it out")
    for name, value in (("--teacher-arch", flags.teacher_arch), ("--teacher-epochs", flags.teacher_epochs)):
        if value is not None and flags.teacher != ("train",):
            raise ValueError(f"{name} is of --teacher train; leave it out, or give that")
    if flags.teacher_epochs is not None and flags.teacher_epochs < 1:
        raise ValueError(f"--teacher-epochs {flags.teacher_epochs} must be at least 1")
    if "train" in flags.teacher and len(flags.teacher) > 1:
        raise ValueError("--teacher train stands alone; train teachers one by one, then name their folders")
    if flags.ranking and "real-random" not in (flags.baselines or DEFAULT_BASELINES):
        raise ValueError("--ranking compares with random real images; leave --baselines real-random in")
    if "none" in flags.baselines and len(flags.baselines) > 1:
        raise ValueError("--baselines none stands alone")
    if flags.image_size is not None and flags.image_size < 8:
        raise ValueError(f"--image-size {flags.image_size} must be at least 8")
    assert set(flags.protocol) <= set(get_args(ProtocolName))
