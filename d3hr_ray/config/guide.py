"""Settings of guides: what clean latents are pulled towards while a set is sampled."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from d3hr_ray.config.fields import GUIDANCE, check, one_of, setting

GuideKind = Literal["none", "modes", "transport"]

_guide = partial(setting, group=GUIDANCE, methods=("d3hr",), varies=True)
_guiding = partial(_guide, needs="kind")


@dataclass(frozen=True)
class GuideConfig:
    """Guides pull the clean latents that are predicted at t >= `until` a share `strength` of the way to cluster means.

    The means are those of the class's components at --cluster-timestep, where images are nearly clean.
    """

    kind: GuideKind = _guide(
        "none",
        "modes: pull each image towards the mean of its component; transport: share all components of a class out "
        "among its images, by optimal transport. Needs --components and --cluster-timestep.",
        name="guide",
    )
    strength: float = _guiding(0.1, "Share of the way that each step goes.", name="guide_strength")
    until: int = _guiding(300, "Timestep below which nothing is pulled.", name="guide_until")

    def __post_init__(self) -> None:
        one_of("--guide", self.kind, GuideKind)
        check(0 < self.strength <= 1, f"--guide-strength {self.strength:g} must be above 0 and at most 1")
        check(self.until >= 0, f"--guide-until {self.until} must not be negative; 0 guides to the end")
