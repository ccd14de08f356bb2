"""Settings of guides: where clean latents are moved while a set is sampled."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from d3hr_ray.config.fields import GUIDANCE, check, one_of, setting

GuideKind = Literal["none", "modes", "transport", "set", "features"]
FEATURE_IMAGES = 500

_guide = partial(setting, group=GUIDANCE, methods=("d3hr",), varies=True)
_guiding = partial(_guide, needs="kind")


@dataclass(frozen=True)
class GuideConfig:
    """Guides move the clean latents that are predicted at t >= `until` a share `strength` of the way to a goal.

    Goals are the means of the class's components, or its own mean and std, at --cluster-timestep, where images are
    nearly clean; or what a `block` of the network sees, on average, in the first `images` of the class (0: in all).
    """

    kind: GuideKind = _guide(
        "none",
        "modes: pull each image towards the mean of its component; transport: share all components of a class out "
        "among its images, by optimal transport; both need --components. set: bring the images of a class together to "
        "its mean and std (one image: to its mean). All need --cluster-timestep. features: bring what a block of the "
        "network sees in each image to what it sees, on average, in real images of its class.",
        name="guide",
    )
    strength: float = _guiding(0.1, "Share of the way that each step goes.", name="guide_strength")
    until: int = _guiding(300, "Timestep below which nothing is moved.", name="guide_until")
    repulsion: float = _guiding(
        0.0,
        "Of --guide set: how strongly the images of a class are driven apart in each step, by the log-determinant of "
        "their cosines; each goes at most 10 x this of its own length.",
        name="guide_repulsion",
        late=True,
    )
    block: int | None = _guiding(
        None,
        "Of --guide features: the block, counted from 0. Each guided step takes two more passes up to it, one of them "
        "back again.",
        name="feature_block",
        shown="the middle one",
        late=True,
    )
    images: int = _guiding(
        FEATURE_IMAGES,
        "Of --guide features: real images of each class that are looked at before, its first ones; 0: all. A pass up "
        "to the block for each and each guided t.",
        name="feature_images",
        late=True,
    )

    def block_of(self, blocks: int) -> int:
        """The block of a network that has so many. Raises ValueError if it has no such one."""
        if self.block is None:
            return (blocks - 1) // 2
        check(self.block < blocks, f"--feature-block {self.block}: the model has {blocks} blocks, 0 to {blocks - 1}")
        return self.block

    @property
    def seeks_components(self) -> bool:
        """Whether it pulls to the means of components."""
        return self.kind in ("modes", "transport")

    def __post_init__(self) -> None:
        one_of("--guide", self.kind, GuideKind)
        check(0 < self.strength <= 1, f"--guide-strength {self.strength:g} must be above 0 and at most 1")
        check(self.until >= 0, f"--guide-until {self.until} must not be negative; 0 guides to the end")
        check(self.repulsion >= 0, f"--guide-repulsion {self.repulsion:g} must not be negative; 0 drives nothing apart")
        check(
            self.repulsion == 0 or self.kind in ("none", "set"),
            f"--guide-repulsion {self.repulsion:g} is of --guide set; with {self.kind} leave it out, or give 0",
        )
        own = self.kind in ("none", "features")
        check(self.block is None or self.block >= 0, f"--feature-block {self.block} must not be negative")
        check(self.images >= 0, f"--feature-images {self.images} must not be negative; 0 takes all")
        check(own or self.block is None, f"--feature-block is of --guide features; with {self.kind} leave it out")
        check(
            own or self.images == FEATURE_IMAGES,
            f"--feature-images is of --guide features; with {self.kind} leave it out, or give {FEATURE_IMAGES}",
        )
