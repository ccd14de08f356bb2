"""CaO2's settings: how images are chosen from a pool, and how their latents are optimised."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from d3hr_ray.config.fields import CAO2, check, one_of, setting

Sampler = Literal["ddpm", "ddim"]
Selection = Literal["easy", "hard", "learnable", "none"]
Condition = Literal["class", "null"]

CHOOSING = ("cao2", "d3hr+cao2")  # methods that choose from a pool

_cao2 = partial(setting, group=CAO2, methods=CHOOSING, varies=True)
_stage_2 = partial(_cao2, needs="iterations")


@dataclass(frozen=True)
class CaO2Config:
    """CaO2 (arXiv 2506.22637): what stays of a pool of `pool` x IPC images, and how its latents are optimised.

    `rematch` brings what stays back to the class moments. `levels` are the noise levels of stage 2, as places on the
    even grid of --ddim-steps. `classifier` None is the model's own; `learner` is the network that `learnable` asks
    beside it. jobs/distill.py leaves stage 2 out of d3hr+cao2, where it was measured not to help, unless it is asked
    for.
    """

    pool: int = _cao2(4, "Candidates per image kept.", shown="4; official imagenette, imagenet100: 2; --select none: 1")
    sampler: Sampler = _cao2(
        "ddpm",
        "cao2: how the pool is drawn: ddpm, ancestral sampling as the authors do, or ddim.",
        methods=("cao2",),
    )
    classifier: str | None = _cao2(
        None,
        "What judges the pool: a timm name with weights, ARCH=FILE, or a folder that evaluate.py --teacher train made.",
        metavar="NAME|PATH",
        shown="the embedded models' own; ImageNet: resnet18.tv_in1k",
    )
    select: Selection = _cao2(
        "easy",
        "Stage 1: of the images whose class the classifier sees, keep the easy ones (most confident), the hard ones or "
        "the learnable ones, whose loss under --learner is farthest above half that under the classifier; if these are "
        "too few, wrong ones fill up. none: the first of the pool, unjudged.",
    )
    learner: str | None = _cao2(
        None,
        "Of --select learnable: the network as it is so far, such as a student that evaluate.py --keep-students "
        "trained on the images that there are; or a timm name, or ARCH=FILE.",
        metavar="NAME|PATH",
        late=True,
    )
    rematch: bool = _cao2(
        True,
        "d3hr+cao2: move and scale the chosen latents back to the class moments, and sample them again.",
        methods=("d3hr+cao2",),
    )
    iterations: int = _cao2(
        100,
        "Stage 2: Adam steps on each clean latent; 0 leaves it out, as it was measured not to help d3hr+cao2.",
        name="optimise",
        metavar="STEPS",
        shown="100; d3hr+cao2: 0",
    )
    lr: float = _stage_2(6e-4, "Stage 2's learning rate.", name="optimise_lr")
    linf: float = _stage_2(10.0, "Stage 2's weight of the largest error against the mean square.")
    condition: Condition = _stage_2("null", "The class that stage 2's network is told: the image's, or null.")
    levels: tuple[int, int] = _stage_2(
        (1, 11),
        "Stage 2's noise levels: places on the even grid of --ddim-steps; 1 11 is t = 20 to 224.",
        metavar="LOW HIGH",
    )

    def __post_init__(self) -> None:
        check(self.pool >= 1, f"--pool {self.pool} must be at least 1")
        one_of("--sampler", self.sampler, Sampler)
        one_of("--select", self.select, Selection)
        check(
            self.select != "learnable" or self.learner is not None,
            "--select learnable needs --learner: a student that jobs/evaluate.py --keep-students trained on the images "
            "that there are, a timm name, or ARCH=FILE",
        )
        check(
            self.select == "learnable" or self.learner is None,
            f"--learner does nothing with --select {self.select}; leave it out, or give --select learnable",
        )
        one_of("--condition", self.condition, Condition)
        check(self.iterations >= 0, f"--optimise {self.iterations} must not be negative; 0 leaves stage 2 out")
        check(self.lr > 0, f"--optimise-lr {self.lr:g} must be above 0")
        check(self.linf >= 0, f"--linf {self.linf:g} must not be negative")
        low, high = self.levels if len(self.levels) == 2 else (-1, -1)
        check(0 <= low <= high, f"--levels {' '.join(map(str, self.levels))}: give LOW HIGH, with 0 <= LOW <= HIGH")
