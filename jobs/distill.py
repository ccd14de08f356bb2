"""Distil a dataset: images -> latents -> gaussians -> subsets -> distilled images.

    python jobs/distill.py                                          # the embedded digits, on any laptop
    python jobs/distill.py --preset imagenet1k --data /data/imagenet/train --ipc 10 50
    python jobs/distill.py --extend runs/shapes --out runs/shapes-2  # only what is new is inverted
    python jobs/distill.py --status runs/imagenet1k                 # what is done, what is left

The same command resumes a run that was stopped. D3HR_TRACEBACK=1 shows the traceback of a failure.
"""

from dataclasses import replace

from d3hr_ray.cli.defaults import default_out, default_preset
from d3hr_ray.cli.distill_config import build_config
from d3hr_ray.cli.distill_flags import DistillFlags, only_status
from d3hr_ray.cli.exits import guard, refusing
from d3hr_ray.cli.outputs import check_out
from d3hr_ray.cli.parsing import parse
from d3hr_ray.cli.presets import SIZES
from d3hr_ray.cli.proposing import proposing
from d3hr_ray.cli.resolve import on_grid, resolve_auto
from d3hr_ray.filesystems import absolute
from d3hr_ray.layout import OWN
from d3hr_ray.lock import driving
from d3hr_ray.methods.growing import check_extended
from d3hr_ray.methods.inputs import check_data, check_fit, count_images, list_data, list_early, read_model
from d3hr_ray.report.status import status
from d3hr_ray.runs import hide_reals, require_run, stored_config
from d3hr_ray.runtime.cluster import connect
from d3hr_ray.runtime.console import announce, waiting
from d3hr_ray.store import Store


def main() -> None:
    """Check all that can be checked without Ray; then connect, run the method, and report."""
    flags = parse(DistillFlags, __doc__ or "")
    with refusing():
        if only_status(flags):
            return print(status(Store(absolute(flags.status or ""))))
        config = build_config(flags)
    store = Store(absolute(flags.out or default_out(flags)))
    source = Store(absolute(flags.from_gaussians)) if flags.from_gaussians else None
    extended = Store(absolute(flags.extend)) if flags.extend else None
    with refusing():
        check_out(flags, store.uri, OWN)
        if source is None:
            check_data(config)
        card, grid = read_model(config, planning=flags.dry_run)
        if not (source or extended or flags.timesteps or flags.preset or default_preset(flags)):
            config = on_grid(config, grid)
        check_fit(config, card, grid)
        if extended:
            check_extended(extended, store, config, card)
        if not (source or flags.dry_run or flags.overwrite):
            with proposing():
                require_run(store, resolve_auto(config, stored_config(store), None))
        known = SIZES.get(flags.preset or "")
        counted = count_images(config, card, known, extended) if flags.dry_run else (0, 0, 0)
        listing = None if source or flags.dry_run else list_early(config, card)

    # Imported late: torch and Ray take seconds, and --help, --status or a wrong flag should not wait for them.
    if flags.dry_run:
        from d3hr_ray.methods.plan import plan

        return print(plan(config, card, grid, *counted, flags.tflops))
    if flags.data and not config.lists_images:
        announce(f"--data is not read: --method {config.method} makes the model's classes; --classes chooses some")
    with waiting(f"loading torch and Ray, for {store.uri}"):
        with refusing():
            cluster = connect(flags.address, flags.log_format, "d3hr_ray.stages.search")
        from d3hr_ray.methods import d3hr
        from d3hr_ray.report.page import may_show_reals, report
        from d3hr_ray.runtime.actors import find_actors
        from d3hr_ray.runtime.capacity import PATIENCE
        from d3hr_ray.runtime.summary import recording
        from d3hr_ray.stages.card import Origin
        from d3hr_ray.stages.judge import judge_ids

        with refusing():
            if config.has_pool:
                judge_ids(config)  # a classifier or learner that is not there is said before anything is computed
    with refusing():
        actors = find_actors(flags.actors, flags.gpus_per_actor, PATIENCE if cluster else 0)
        actors = replace(actors, limit=flags.task_timeout)
        if source is None:
            listing = list_data(config, card) if listing is None else listing
    with driving(store), recording():
        with refusing(), proposing():
            config = resolve_auto(config, None if flags.overwrite else stored_config(source or store), actors)
            if listing is not None:
                run = d3hr.start_run(store, config, card, listing, actors, flags.overwrite, extended)
            else:
                assert source is not None, "what is not listed comes from Gaussians"
                run = d3hr.reopen_run(store, source, config, card, actors)
        older = run.inputs.get("extends", {})
        others = [store, source, extended or (Store(older["run"]) if older else None)]
        shown = older.get("real_images", True) and all(may_show_reals(other) for other in others if other)
        shown = shown and not flags.no_real_images
        if not shown:
            hide_reals(store)
        run = replace(run, origin=Origin(flags.card_license, flags.card_source))
        read = f"{run.inputs['images']:,} images of " if run.inputs["images"] else ""
        announce(f"{read}{len(run.classes)} classes -> {store.uri}, on {actors}")
        if listing is not None:
            d3hr.distill(run, listing)  # images => latents => gaussians => subsets => distilled
        else:
            d3hr.make_sets(run)  # gaussians => subsets => distilled
        with waiting("writing the report"):
            text = report(run, listing, shown)
        print(text)


if __name__ == "__main__":
    guard(main)
