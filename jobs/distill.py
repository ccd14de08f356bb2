"""Distil a dataset: images -> latents -> gaussians -> subsets -> distilled images.

    python jobs/distill.py                                          # the embedded digits, on any laptop
    python jobs/distill.py --preset imagenet1k --data /data/imagenet/train --ipc 10 50

The same command resumes a run that was stopped. D3HR_TRACEBACK=1 shows the traceback of a failure.
"""

from pathlib import Path

from cli import announce, connect, guard, parse, refusing
from flags import DistillFlags, build_config, check_timesteps, settle


def main() -> None:
    """Check all that can be checked without Ray; then connect, run the method, and report."""
    flags = parse(DistillFlags, __doc__ or "")
    with refusing():
        config = build_config(flags)

    # Imported late: torch and diffusers take seconds, and --help or a wrong flag should not wait for them.
    from inputs import count_images, is_remote, list_data, read_model

    from d3hr_ray.methods import d3hr
    from d3hr_ray.methods.plan import plan
    from d3hr_ray.report.distilled import report
    from d3hr_ray.runs import stored_config
    from d3hr_ray.stages.pool import find_pool
    from d3hr_ray.store import Store, absolute

    store = Store(absolute(flags.out or flags.from_gaussians or f"runs/{Path(flags.preset or 'digits').stem}"))
    source = Store(absolute(flags.from_gaussians)) if flags.from_gaussians else None
    with refusing():
        card, schedule = read_model(config, planning=flags.dry_run)
        check_timesteps(config, schedule)
        if flags.dry_run:
            print(plan(config, card, schedule, *count_images(config, card, flags.preset or "digits"), flags.tflops))
            return
        listing = None if source or is_remote(config) else list_data(config, card)
        connect(flags.address)
        pool = find_pool(flags.actors, flags.gpus_per_actor)
        config = settle(config, None if flags.overwrite else stored_config(source or store), pool)
        if source is None:
            listing = listing or list_data(config, card)
            run = d3hr.start_run(store, config, card, listing, pool, flags.overwrite)
        else:
            run = d3hr.reopen_run(store, source, config, card, pool)
    announce(f"{run.inputs['images']:,} images of {len(run.classes)} classes -> {store.uri}, on {pool}")
    if listing is not None:
        d3hr.distill(run, listing)  # images => latents => gaussians => subsets => distilled
    else:
        d3hr.make_sets(run)  # gaussians => subsets => distilled
    print(report(run))


if __name__ == "__main__":
    guard(main)
