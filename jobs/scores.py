"""Score distilled sets without training students, and see which score ranks them as their accuracy does.

    python jobs/scores.py --distilled runs/digits                     # all sets of a run
    python jobs/scores.py --distilled runs/digits/sets/*/distilled/*  # all sets of its sweeps

A row per set: errors of the moments in the noise domain, Frechet and kernel distance and coverage to real images in a
classifier's features, its confidence, diversity within a class, and the PSNR of the set's own round trip; with
--redundancy, how much a part of the set says of the rest. Where
evaluations/results.parquet is there too: top-1, under one version of the protocol and with one teacher, and Spearman's
correlation of each score with it over sets of one IPC, which report/scores-correlations.csv keeps.
"""

from d3hr_ray.cli.exits import guard, refusing
from d3hr_ray.cli.parsing import parse
from d3hr_ray.cli.scores_flags import ScoreFlags, check_flags
from d3hr_ray.runtime.cluster import connect
from d3hr_ray.runtime.console import announce


def main() -> None:
    """Read the sets and the real images, score, print, and write report/scores*.csv beside the first set's run."""
    flags = parse(ScoreFlags, __doc__ or "")
    with refusing():
        check_flags(flags)

    from d3hr_ray.evaluation.ranking import read_accuracy
    from d3hr_ray.evaluation.scores import Scoring, score_all
    from d3hr_ray.report.tables import format_scores, write_scores

    with refusing():
        scoring = Scoring.open(flags.distilled, flags.classifier)
        hashes = {found.set_hash for found in scoring.sets}
        accuracy = read_accuracy(scoring.runs, hashes, flags.arch, flags.protocol, flags.data)
        connect(flags.address)
        real = scoring.real(flags.per_class)
    announce(f"{len(scoring.sets)} sets against {len(real.labels_N):,} real images")
    rows = score_all(scoring, real, flags.redundancy)
    name = write_scores(scoring.runs[0], rows, accuracy)
    print(format_scores(rows, accuracy))
    print(name)


if __name__ == "__main__":
    guard(main)
