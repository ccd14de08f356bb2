"""Evaluation protocols: named, versioned, frozen. Two numbers compare only under the same protocol and version.

Sources: D3HR's validate.py and validate_hardlabel.py, RDED's validation/ (used by CaO2), Minimax's (docs/design.md),
DatasetCondensation's utils.py (dc, dsa), RD3 (2509.19743).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from d3hr_ray.config import Family, families_of, flag_of

Mix = Literal["none", "cutmix", "mixup"]
Rate = Literal["half-cosine", "cosine", "steps", "floored-steps", "drop"]
Precision = Literal["float32", "bfloat16"]
HYPERPARAMETERS = ("epochs", "batch_size", "lr", "temperature", "weight_decay")  # that flags may change
SMALL_LR = {  # D3HR's argument.py: AdamW's rate by student; 1e-3 for all others
    "mobilenet_v2": 2.5e-3, "efficientnet_b0": 2e-3, "vgg11": 5e-4, "alexnet": 1e-4, "vit": 1e-4, "swin_v2": 1e-4,
}  # fmt: skip


def _late(default: Any) -> Any:
    """A field that records, and the keys of trials, hold only where it is not the default: older ones lack it."""
    return field(default=default, metadata={"late": True})


@dataclass(frozen=True)
class Augment:
    """What a training image goes through, drawn anew for every image and step.

    `families` are DSA's: one of them is drawn for a whole batch, and what it does for each image.
    """

    crop_scale: tuple[float, float] | None = None  # RandomResizedCrop: share of the area, aspect 3/4 to 4/3
    flip: bool = False
    shift: int = 0  # pixels each way, edges repeated
    strips: int = 1  # RDED's patch shuffle: rows and columns are cut in so many strips and shuffled
    mix: Mix = "none"
    mix_alpha: float = 1.0
    mix_probability: float = 1.0
    families: tuple[Family, ...] = _late(())
    jitter: float = _late(0.0)  # of brightness, contrast and saturation, each by up to so much, in any order
    lighting: float = _late(0.0)  # AlexNet's noise along ImageNet's principal colours: its std


NO_AUGMENT = Augment()


@dataclass(frozen=True)
class Protocol:
    """How a student is trained and which accuracy is reported.

    `labels` hard: the class; soft: a teacher's softmax at `temperature`, of the very batch that the student sees.
    `best_after` is the share of training after which the best accuracy is looked for (on the test set, as the field
    does); the last one is always reported too. `steps`, where given, replaces `epochs`. `rate` steps falls to a fifth
    at 2/3 and at 5/6 of the training, floored-steps at the whole epochs below these; drop divides the rate by ten once,
    after half of the epochs and two, and forgets the momentum. `input` data: the student's first layer has as many
    channels as the data, normalised as published for it (datasets/normalisation.py), else three, as ImageNet's.
    `weighted`: a batch's loss is the mean of its images' by their weights; without any, each counts 1. `precision`:
    bfloat16 is torch's autocast around the student's forward pass, and so its backward one; weights, losses, teachers
    and tests stay float32.
    """

    name: str
    version: str
    labels: Literal["hard", "soft"]
    augment: Augment
    batch_size: int
    epochs: int
    steps: int | None = None
    temperature: float = 20.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    rate: Rate = "cosine"
    warmup: float = 0.0  # share of the steps
    best_after: float = 1.0
    evaluate_every: int = 1  # epochs
    double_norm: bool = False  # the authors' extra student forward, which updates batch norm twice
    decay: Literal["weights", "all"] = _late("weights")  # of weights only, or of biases and norms too
    input: Literal["imagenet", "data"] = _late("imagenet")
    weighted: bool = _late(False)
    precision: Precision = _late("float32")  # noqa: RUF009 - as the fields above, but ruff sees that for plain types only

    def __post_init__(self) -> None:
        assert self.evaluate_every > 0 and (self.steps is None or self.steps > 0), "no flag says these"
        for name in HYPERPARAMETERS:
            check_number(name, getattr(self, name))


def check_number(name: str, number: float) -> None:
    """Raise ValueError for a hyperparameter with which no student trains, naming its flag."""
    least = "not be negative" if name == "weight_decay" else "be above 0"
    if not (number > 0 or (number == 0 and name == "weight_decay")):
        raise ValueError(f"{flag_of(name)} {number:g} must {least}")


@dataclass(frozen=True)
class Setting:
    """What the constants of a protocol depend on."""

    arch: str
    image_size: int
    ipc: int
    classes: int
    digits: bool = False  # their mirror images are none


def d3hr_soft(s: Setting) -> Protocol:
    """D3HR's validate.py: ResNet-18 on ImageNet-1K, IPC 10: 44.3 with their set, as they report.

    It looks at epochs above 290 of 300, counted from 0: nine.
    """
    batch = (100 if s.ipc >= 50 else 50 if s.ipc >= 10 else 15) * (2 if s.classes == 100 else 1)
    epochs = 400 if s.image_size <= 32 else 300
    if s.classes == 10 and s.image_size >= 128:  # ImageWoof
        epochs = 2000 if s.ipc < 50 else 1500 if s.ipc < 100 else 1000
    return Protocol(
        name="d3hr-soft",
        version="3",
        labels="soft",
        augment=Augment(crop_scale=(0.08, 1.0), flip=True, mix="cutmix"),
        batch_size=batch,
        epochs=epochs,
        lr=SMALL_LR.get(s.arch, 1e-3),
        rate="half-cosine",
        best_after=1 - 9 / epochs,
        double_norm=True,
    )


def rded_soft(s: Setting) -> Protocol:
    """RDED's and CaO2's: patches shuffled, then cropped; best of every tenth epoch of the last fifth.

    Images of CIFAR's and Tiny ImageNet's size stay whole, as its scripts' --factor 1 leaves them.
    """
    small = s.image_size <= 64
    whole, patches = Augment(flip=True, mix="cutmix"), Augment(crop_scale=(0.5, 1.0), flip=True, strips=2, mix="cutmix")
    batch = (100 if s.ipc >= 50 else 50 if s.ipc >= 10 else 10) * (2 if s.classes in (100, 1000) else 1)
    if small and s.classes == 200:  # Tiny ImageNet
        batch = 100
    return replace(
        d3hr_soft(s),
        name="rded-soft",
        version="4" if small else "3",
        augment=whole if small else patches,
        batch_size=batch,
        epochs=300,
        best_after=0.8,
        evaluate_every=10,
    )


def hard(s: Setting) -> Protocol:
    """After the hard-label protocol of IDC, for images of any size: SGD 0.01, CutMix. Minimax's own is `minimax`.

    Batch 64, CutMix on every other batch and steps of x0.2 at 2/3 and 5/6 are IDC's (argument.py, train.py, test.py);
    weight decay 5e-4 is theirs as we know it.
    """
    return Protocol(
        name="hard",
        version="2",
        labels="hard",
        augment=Augment(crop_scale=(0.5, 1.0), flip=True, mix="cutmix", mix_probability=0.5),
        batch_size=64,
        epochs=1500 if s.ipc >= 50 else 2000,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        rate="steps",
        best_after=0.8,
        evaluate_every=10,
    )


def minimax(s: Setting) -> Protocol:
    """Minimax's script for ImageNet and its subsets (vimar-gu/MinimaxDiffusion, train.py and argument.py).

    Every batch is mixed, the best epoch of a hundred counts. It tests on whole images (no margin is cut off).
    """
    most = {1: 3000, 10: 2000, 50: 1500, 200: 1000, 500: 500}
    epochs = next((epochs for ipc, epochs in most.items() if s.ipc <= ipc), 300)
    epochs = epochs * 2 // 300 * 100 if s.classes == 100 else epochs
    many = s.classes > 100
    return Protocol(
        name="minimax",
        version="1",
        labels="hard",
        augment=Augment(crop_scale=(0.5, 1.0), flip=True, jitter=0.4, lighting=0.1, mix="cutmix"),
        batch_size=128 if many else 64,
        epochs=epochs,
        optimizer="sgd",
        lr=0.1 if many else 0.01,
        weight_decay=1e-4 if many else 5e-4,
        rate="floored-steps",
        best_after=0.0,
        evaluate_every=epochs // 100,
        decay="all",
    )


def hard_mixup(s: Setting) -> Protocol:
    """D3HR's validate_hardlabel.py: plain mixup on every batch, best of the epochs above 1,900 of 2,000, from 0."""
    soft = d3hr_soft(s)
    augment = replace(soft.augment, mix="mixup")
    best_after = max(0.0, 1 - 99 / soft.epochs)
    return replace(
        soft, name="hard-mixup", version="3", labels="hard", augment=augment, best_after=best_after, double_norm=False
    )


def fixed_soft(s: Setting) -> Protocol:
    """d3hr-soft without its slips: the cosine ends at 0, batch norm sees a batch once, the last epoch counts."""
    return replace(d3hr_soft(s), name="fixed-soft", version="2", rate="cosine", best_after=1.0, double_norm=False)


def dc(s: Setting) -> Protocol:
    """DatasetCondensation's for its plain sets (Zhao et al., 2021): no augmentation, SGD, 300 epochs and one.

    ConvNet-3 on Fashion-MNIST, IPC 1, 10, 50: random real images 51.4, 73.8, 82.5, DC 70.5, 82.3, 83.6. (Its MNIST rows
    had 1,001 epochs with crops and rotations, which this has not.)
    """
    return Protocol(
        name="dc",
        version="1",
        labels="hard",
        augment=NO_AUGMENT,
        batch_size=256,
        epochs=301,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        rate="drop",
        decay="all",
        input="data",
    )


def dsa(s: Setting) -> Protocol:
    """The same repository's for DSA and DM (Zhao and Bilen, 2021): 1,000 epochs and one, augmented by DSA.

    ConvNet-3 on Fashion-MNIST: DSA 70.6, 84.6, 88.7 at IPC 1, 10, 50. Digits are not flipped.
    """
    return replace(dc(s), name="dsa", epochs=1001, augment=Augment(families=families_of(s.digits)))


def rd3(s: Setting) -> Protocol:
    """RD3's one protocol for all (arXiv 2509.19743): crops of RDED's scale, flip, CutMix; ResNet-18's cosine ends at 0.

    0.5 (1 + cos(pi progress / zeta)) has zeta 1 there, and 2 for all other students: half-cosine.
    """
    augment = Augment(crop_scale=(0.5, 1.0), flip=True, mix="cutmix")
    rate: Rate = "cosine" if s.arch.startswith("resnet18") else "half-cosine"
    same = replace(fixed_soft(s), name="rd3", version="1", lr=1e-3)
    return replace(same, augment=augment, batch_size=50, epochs=400, rate=rate)


def teacher(s: Setting) -> Protocol:
    """How `--teacher train` trains on the full set: He et al. (2016) with a cosine, 90 epochs.

    Up to 64 pixels as in their section 4.2: shifts by up to an eighth of the side (a crop of 8 % has 8 of 28 pixels).
    """
    small = s.image_size <= 64
    moved = Augment(shift=s.image_size // 8, flip=not s.digits)
    return Protocol(
        name="teacher",
        version="3" if small else "2",
        labels="hard",
        augment=moved if small else Augment(crop_scale=(0.08, 1.0), flip=True),
        batch_size=256,
        epochs=90,
        optimizer="sgd",
        lr=0.1,
        weight_decay=1e-4,
        warmup=0.05,
    )


PROTOCOLS: dict[str, Callable[[Setting], Protocol]] = {
    "d3hr-soft": d3hr_soft, "rded-soft": rded_soft, "hard": hard, "hard-mixup": hard_mixup, "fixed-soft": fixed_soft,
    "dc": dc, "dsa": dsa, "rd3": rd3, "minimax": minimax, "teacher": teacher,
}  # fmt: skip


def sees_whole(names: Sequence[str]) -> bool:
    """Whether protocols test on whole images, whose centre others cut out. Raises ValueError if only some do."""
    whole = {name.removesuffix("-noaug") == "minimax" for name in names}
    if len(whole) > 1:
        raise ValueError("--protocol minimax sees more of test images than others do: give it a command of its own")
    return whole == {True}


def is_soft(name: str) -> bool:
    """Whether a protocol of this name trains on a teacher's labels."""
    return PROTOCOLS[name](Setting("resnet18", 224, 10, 10)).labels == "soft"
