"""Train a VAE and a DiT on labelled images, or fine-tune a DiT, into a folder that `distill.py --model` takes.

    python jobs/pretrain.py --preset digits --out my-digits       # the embedded model again
    python jobs/pretrain.py --preset custom --size tiny --data photos/train --image-size 48 --out my-model
    python jobs/pretrain.py --preset custom --data /data/flowers --init facebook/DiT-XL-2-256 --workers 8 --out my-dit
    python jobs/pretrain.py --check my-digits                      # measure it on the held-out digits

The same command resumes a run that was stopped. D3HR_TRACEBACK=1 shows the traceback of a failure.
"""

import json
import logging
import shlex
import sys
from dataclasses import asdict

from d3hr_ray.cli.exits import guard, refusing, renamed
from d3hr_ray.cli.flags import typed_flags
from d3hr_ray.cli.outputs import check_out
from d3hr_ray.cli.parsing import parse
from d3hr_ray.cli.pretrain_config import build_config, find_splits
from d3hr_ray.cli.pretrain_flags import SAMPLES, PretrainFlags, check_flags
from d3hr_ray.datasets.listing import list_images
from d3hr_ray.filesystems import absolute
from d3hr_ray.lock import driving
from d3hr_ray.models.card import read_card
from d3hr_ray.pretraining.claim import prepare, start_anew
from d3hr_ray.pretraining.settings import OWN
from d3hr_ray.runtime.cluster import connect
from d3hr_ray.runtime.console import announce, tell, waiting
from d3hr_ray.store import Store


def main() -> None:
    """Check a model, or train one."""
    flags = parse(PretrainFlags, __doc__ or "")
    with refusing():
        check_flags(flags, typed_flags())
    if flags.check is not None:
        return check(flags.check, flags.data, flags.check_samples or SAMPLES, flags.teacher)
    with refusing(), renamed("--model", "--init"):
        config = build_config(flags)
        out = flags.out or f"runs/pretrain-{flags.preset}"
        check_out(flags, out, OWN)
    with driving(Store(absolute(out))):
        with refusing(), renamed("--model", "--init"):
            if flags.overwrite:
                start_anew(out, flags.init)
            listing = prepare(config, out, flags.workers)
        if listing is None:
            print(f"{out}: complete already; --overwrite starts anew")
            return
        tell(listing.notes)

        # Imported late: torch takes seconds, and --help, a wrong flag or a wrong path should not wait for it.
        from d3hr_ray.pretraining.launch import find_gpus, place, pretrain
        from d3hr_ray.pretraining.networks import describe
        from d3hr_ray.runtime.capacity import PATIENCE

        logging.getLogger("ray.train").setLevel(logging.WARNING)  # it repeats every report
        found = f"{len(listing):,} images of {len(listing.classes)} classes"
        gpus = 0.0
        if flags.workers:
            with refusing():
                gpus = find_gpus(flags.workers, flags.gpus_per_worker, PATIENCE if connect(flags.address) else 0)
        announce(f"{found} -> {out}, {place(flags.workers)}")
        announce(describe(config, len(listing.classes)))
        with renamed("--model", "--init"):
            pretrain(config, listing, out, shlex.join(["python", *sys.argv]), flags.workers, flags.threads, gpus)
        print(f"{out}: trained on {found}")


def check(model: str, held_out: str | None, samples: int, teacher: str | None) -> None:
    """Measure a trained model and print what was found as JSON."""
    with refusing(), renamed("--model", "--check"):
        splits = find_splits(model, held_out)
        card = read_card(model)
        if teacher and not card.class_names:
            raise ValueError(f"--teacher {teacher}: the classes of --check {model} have no names to match its own")
        list_images(splits[1], card.num_classes, card.class_names)
    with waiting(f"loading torch, for {model}"):
        from d3hr_ray.pretraining.check import measure
        from d3hr_ray.pretraining.watch import showing
    with renamed("--model", "--check"), showing() as bars:
        quality = asdict(measure(model, *splits, samples, teacher=teacher, tell=bars))
    if card.class_names:
        quality["accuracy_per_class"] = dict(zip(card.class_names, quality["accuracy_per_class"], strict=True))
    print(json.dumps(quality, indent=2))


if __name__ == "__main__":
    guard(main)
