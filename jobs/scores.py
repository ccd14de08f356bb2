"""Score distilled sets without training anything, and see which score ranks them as their accuracy does.

    python jobs/scores.py --distilled runs/digits                     # all sets of a run
    python jobs/scores.py --distilled runs/digits/sets/*/distilled/*  # all sets of its sweeps

A row per set: errors of the moments in the noise domain, Frechet and kernel distance and coverage to real images in a
classifier's features, its confidence, diversity within a class, and the PSNR of the set's own round trip. Where
evaluations/results.parquet is there too: top-1, under one version of the protocol and with one teacher, and Spearman's
correlation of each score with it over sets of one IPC, which report/scores-correlations.csv keeps.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro
from cli import Words, announce, connect, guard, parse, refusing


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


def main() -> None:
    """Read the sets and the real images, score, print, and write report/scores*.csv beside the first set's run."""
    flags = parse(ScoreFlags, __doc__ or "")
    with refusing():
        if not flags.distilled:
            raise ValueError("--distilled is needed: name sets or a run folder")
        if flags.per_class < 2:
            raise ValueError(f"--per-class {flags.per_class} must be at least 2")

    from d3hr_ray.report.scoring import Scoring, format_scores, read_accuracy, score_all, write_scores

    with refusing():
        scoring = Scoring.open(flags.distilled, flags.classifier)
        hashes = {found.set_hash for found in scoring.sets}
        accuracy = read_accuracy(scoring.runs, hashes, flags.arch, flags.protocol, flags.data)
        connect(flags.address)
        real = scoring.real(flags.per_class)
    announce(f"{len(scoring.sets)} sets against {len(real.labels_N):,} real images")
    rows = score_all(scoring, real)
    name = write_scores(scoring.runs[0], rows, accuracy)
    print(format_scores(rows, accuracy))
    print(name)


if __name__ == "__main__":
    guard(main)
