"""Sweep over timestep, IPC, search, guidance, seeds, students and hyperparameters; every stage upstream is shared.

    python jobs/sweep.py --run runs/digits --ipc 1 10 --timesteps 280 600 --search moments random --arch convnet-d3-w32
    python jobs/sweep.py --run runs/digits --resume        # the same sweep again: what is finished is kept

Students are tested on the run's own training images (--data changes that), so that a choice made here can be reported
on held-out images. No image is inverted twice and no set synthesised twice. The best setting becomes a preset file:
`jobs/distill.py --preset runs/digits/sweeps/<name>/best.json`.
"""

from d3hr_ray.cli.exits import guard, refusing, renamed
from d3hr_ray.cli.flags import typed_flags
from d3hr_ray.cli.parsing import parse
from d3hr_ray.cli.sweep_checks import open_sweep
from d3hr_ray.cli.sweep_flags import SweepFlags, check_flags
from d3hr_ray.config import RunError
from d3hr_ray.lock import driving
from d3hr_ray.runtime.cluster import connect
from d3hr_ray.runtime.console import announce, waiting


def main() -> None:
    """gaussians => sets => students, every combination => a table and the best as a preset."""
    flags = parse(SweepFlags, __doc__ or "")
    with refusing():
        check_flags(flags)
        flags, store = open_sweep(flags, typed_flags())

    with waiting(f"loading torch and Ray, for {store.uri}"):
        # Imported late: torch and Ray take seconds, and --help or a wrong flag or path should not wait for them.
        with refusing():
            cluster = connect(flags.address, ahead="d3hr_ray.stages.search")
        from d3hr_ray.cli.sweep_plan import compare, plan_sweep, trial_gpus, write_pools
        from d3hr_ray.evaluation.schedule import trained_already, tune_trials
        from d3hr_ray.evaluation.trials import rows_of
        from d3hr_ray.methods.sweep import invert_all, synthesise_all
        from d3hr_ray.report.page import report_evaluation
        from d3hr_ray.report.tables import format_summary, write_sweep
        from d3hr_ray.runtime.capacity import PATIENCE

        patience = PATIENCE if cluster else 0
    with renamed("--out", "--run"), driving(store):
        with refusing():
            sweep = plan_sweep(flags, store, patience)
            gpus = trial_gpus(flags, sweep.actors, patience)
        places = invert_all(sweep)  # images => gaussians, once per inversion guidance and timestep
        sets = synthesise_all(sweep, places)  # gaussians => sets, once per combination
        write_pools(sweep, sets, len(places[0].run.classes))
        with refusing():
            comparison, trials, top1 = compare(flags, sweep, list(sets), gpus)
        images, test = comparison.images(), comparison.test
        tested = f"{len(test):,} real images of {flags.data or sweep.base.data.uri}"
        announce(f"{len(sets)} sets: {len(trials)} students{trained_already(store, trials)}, tested on {tested}")
        stopped, failed = tune_trials(
            store, trials, images, test, comparison.target, top1, flags.scheduler, gpus, flags.at_once, sweep.name
        )
        rows = rows_of(store, trials)
        print(format_summary(rows))
        print(write_sweep(store, sweep.name, sweep.base, rows, stopped))
        print(report_evaluation(store, test, rows, comparison.sets))
        if failed:  # said last, after the table of those that did not
            raise RunError(failed)


if __name__ == "__main__":
    guard(main)
