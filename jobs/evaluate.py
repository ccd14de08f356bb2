"""Evaluate distilled sets: train students on them from scratch, test on real images, beside honest baselines.

    python jobs/evaluate.py --distilled runs/digits                   # held-out digits, hard labels, real images beside
    python jobs/evaluate.py --distilled runs/in1k/distilled/d3hr-moments-t600-ipc10-seed0 \\
        --data /data/imagenet/val --arch resnet18 --protocol d3hr-soft --teacher resnet18.tv_in1k --repeats 5

Every training run is a row of evaluations/results.parquet. The same command trains only what has no row yet.
"""

from d3hr_ray.cli.evaluate_checks import find_out
from d3hr_ray.cli.evaluate_flags import EvaluateFlags, check_flags
from d3hr_ray.cli.exits import guard, refusing
from d3hr_ray.cli.parsing import parse
from d3hr_ray.layout import EVALUATIONS
from d3hr_ray.lock import driving
from d3hr_ray.runtime.cluster import connect
from d3hr_ray.runtime.console import announce, waiting


def main() -> None:
    """sets + real images => trials => results, with means and 95 % intervals (of two sets: both accuracies)."""
    flags = parse(EvaluateFlags, __doc__ or "")
    with refusing():
        check_flags(flags)
        store = find_out(flags)

    sets = flags.distilled[0] if len(flags.distilled) == 1 else f"{len(flags.distilled)} folders of sets"
    with waiting(f"loading torch and Ray, for {sets} -> {store.uri}"):
        # Imported late: torch and timm take seconds, and --help or a wrong flag or path should not wait for them.
        with refusing():
            cluster = connect(flags.address, ahead="d3hr_ray.evaluation.baselines")
        from d3hr_ray.cli.evaluate_inputs import add_baselines, kept_lines, make_teachers, open_all, students
        from d3hr_ray.evaluation.schedule import launch, trained_already
        from d3hr_ray.evaluation.trials import rows_of
        from d3hr_ray.report.accuracy import after_evaluating, meaning, write_cards
        from d3hr_ray.report.page import report_evaluation
        from d3hr_ray.report.tables import format_summary, write_summary
        from d3hr_ray.runtime.capacity import PATIENCE, find_workers

        with refusing():
            patience = PATIENCE if cluster else 0
            workers = find_workers(flags.workers, flags.gpus_per_worker, flags.workers_per_student, patience)
    with waiting("reading the sets and real images"), refusing():
        comparison, listing, full = open_all(flags)
    with driving(store):
        with refusing():
            teachers, top1 = make_teachers(flags, store, comparison, full, workers)
            yours = len(comparison.sets)
            with waiting("drawing baselines"):
                comparison = add_baselines(flags, comparison, listing, full)
            trials = students(flags, store, comparison, teachers)
        compared = f"{yours} sets of yours, {len(comparison.sets) - yours} baselines"
        counted = f"{len(trials)} students{trained_already(store, trials)}"
        announce(f"{compared}: {counted}, tested on {len(comparison.test):,} real images -> {store.uri}/{EVALUATIONS}")
        launch(store, trials, comparison.images(), comparison.test, comparison.target, workers, {teachers: top1})
        rows = rows_of(store, trials)
        print(format_summary(rows))
        write_summary(store, rows)
        with waiting("writing the report"):
            write_cards(store, comparison.sets)
            text = report_evaluation(store, comparison.test, rows, comparison.sets, not flags.no_real_images)
        print("\n".join(["", *meaning(rows), "", text, *kept_lines(trials), *after_evaluating(store)]))


if __name__ == "__main__":
    guard(main)
