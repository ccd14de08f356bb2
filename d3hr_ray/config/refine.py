"""Settings of refinement: how clean latents are moved so that decoded images have the features of real ones."""

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from d3hr_ray.config.fields import REFINEMENT, check, one_of, setting
from d3hr_ray.config.method import FITTING

Objective = Literal["none", "match"]
Family = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]  # of augmentation: DSA's


def families_of(digits: bool) -> tuple[Family, ...]:
    """All of DSA's families; of digits without the flip: a mirrored digit is none."""
    return tuple(name for name in get_args(Family) if not (digits and name == "flip"))


_refine = partial(setting, group=REFINEMENT, methods=FITTING, varies=True)
_matching = partial(_refine, needs="objective")


@dataclass(frozen=True)
class RefineConfig:
    """Distribution matching (Zhao and Bilen, WACV 2023) in the latent space: under `networks` random ConvNets of one
    `width`, `steps` each, the mean features of a class's images come to those of its real ones, of the first `images`
    or of all (0).
    """

    objective: Objective = _refine(
        "none",
        "match: move the clean latents until each class's images have the mean features of its real ones, under random "
        "ConvNets. Better to train on, and less like photographs.",
        name="refine",
    )
    networks: int = _matching(100, "Random ConvNets that features are matched under.", name="refine_networks")
    steps: int = _matching(10, "Adam steps under each network.", name="refine_steps")
    lr: float = _matching(0.02, "Learning rate at the start; it falls to 0 by a cosine.", name="refine_lr")
    width: int = _matching(64, "Width of the ConvNets.", name="refine_width")
    images: int = _matching(
        500, "Real images of each class whose features are averaged, its first ones; 0: all.", name="refine_images"
    )

    def __post_init__(self) -> None:
        one_of("--refine", self.objective, Objective)
        check(self.networks >= 1, f"--refine-networks {self.networks} must be at least 1")
        check(self.steps >= 1, f"--refine-steps {self.steps} must be at least 1")
        check(self.lr > 0, f"--refine-lr {self.lr:g} must be above 0")
        check(self.width >= 1, f"--refine-width {self.width} must be at least 1")
        check(self.images >= 0, f"--refine-images {self.images} must not be negative; 0 takes all")
