"""The flags of jobs/scores.py."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from d3hr_ray.cli.parsing import Words


@dataclass(frozen=True)
class ScoreFlags:
    """Which sets, and what they are held against."""

    distilled: Words = ()
    """Sets of ours, or run folders (all their sets); all of one model, source and list of classes."""
    classifier: Annotated[str | None, tyro.conf.arg(metavar="NAME|PATH")] = None
    """Whose features and confidence: a timm name with weights, ARCH=FILE, or a folder that evaluate.py --teacher train
    made. Default: the embedded models' own."""
    per_class: int = 200
    """Real training images per class to compare with, the first ones of each; 20,000 in all at most."""
    arch: str | None = None
    """Correlate with the accuracy of this student. Default: of the one that most of the sets have."""
    protocol: str = "hard"
    """Correlate with the accuracy under this protocol."""
    data: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    """Correlate with the accuracy on these images, as jobs/evaluate.py named them. Default: on what most of the sets
    were tested on."""
    address: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Ray cluster, for reading real images. Default: RAY_ADDRESS, else a local Ray."""


def check_flags(flags: ScoreFlags) -> None:
    """Raise ValueError for flags that are missing or out of range."""
    if not flags.distilled:
        raise ValueError("--distilled is needed: name sets or a run folder")
    if flags.per_class < 2:
        raise ValueError(f"--per-class {flags.per_class} must be at least 2")
