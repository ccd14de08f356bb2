"""The flags of jobs/scores.py."""

from dataclasses import dataclass

from d3hr_ray.cli import machine_flags
from d3hr_ray.config import setting
from d3hr_ray.config.fields import DATA, TRAINING


@dataclass(frozen=True)
class ScoreFlags:
    """Which sets, and what they are held against."""

    distilled: tuple[str, ...] = setting(
        (), "Sets of ours, or run folders (all their sets); all of one model, source and list of classes.", DATA
    )
    classifier: str | None = setting(
        None,
        "Whose features and confidence: a timm name with weights, ARCH=FILE, or a folder that evaluate.py "
        "--teacher train made.",
        TRAINING,
        metavar="NAME|PATH",
        shown="the embedded models' own",
    )
    per_class: int = setting(
        200, "Real training images per class to compare with, the first ones of each; 20,000 in all at most.", DATA
    )
    redundancy: int = setting(
        0,
        "Also split each set into so many parts, train a small ConvNet on each, and test it on the others: how much a "
        "part says of the rest. 5 suits 50 images per class; 0 trains nothing.",
        TRAINING,
        metavar="PARTS",
    )
    arch: str | None = setting(
        None,
        "Correlate with the accuracy of this student.",
        TRAINING,
        metavar="NAME",
        shown="of the one that most of the sets have",
    )
    protocol: str | None = setting(
        None, "Correlate with the accuracy under this protocol.", TRAINING, metavar="NAME", shown="hard"
    )
    data: str | None = setting(
        None,
        "Correlate with the accuracy on these images, as jobs/evaluate.py named them.",
        DATA,
        metavar="URI",
        shown="on what most of the sets were tested on",
    )
    address: str | None = machine_flags.address("Ray cluster, for reading real images.")


def check_flags(flags: ScoreFlags) -> None:
    """Raise ValueError for flags that are missing or out of range."""
    if not flags.distilled:
        raise ValueError("--distilled is needed: name sets or a run folder")
    if flags.per_class < 2:
        raise ValueError(f"--per-class {flags.per_class} must be at least 2")
    if flags.redundancy < 0 or flags.redundancy == 1:
        raise ValueError(f"--redundancy {flags.redundancy}: give 2 or more parts, or 0 for none")
