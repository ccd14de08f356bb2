"""Measure one thing, as ratios of two sides that are run in turns; print a table, and save it as JSON.

    python jobs/bench.py search                     # subset search against a plain torch loop
    python jobs/bench.py solver --json solver.json  # round trip, moments and accuracy against network evaluations

One figure is as good as the machine is quiet: the load average is part of the output.
"""

import importlib
import json
import os
from dataclasses import MISSING, asdict, dataclass
from pathlib import Path
from typing import Literal

from d3hr_ray.config import setting
from d3hr_ray.config.fields import METHOD, OUTPUT

os.environ.setdefault("OMP_NUM_THREADS", "1")  # single-threaded sides are compared per core

import tyro

from d3hr_ray.cli.exits import guard, refuse
from d3hr_ray.cli.parsing import parse
from d3hr_ray.runtime.console import announce

Name = Literal[
    "search", "solver", "fit", "invert", "train", "evaluate", "pipeline", "guides", "stages", "condense", "gpu"
]  # fmt: skip


@dataclass(frozen=True)
class BenchFlags:
    """Command line of the job."""

    name: tyro.conf.Positional[Name] = setting(MISSING, "What to measure.", METHOD)
    json: str | None = setting(
        None, "Also write name, machine, command, ratios and rows to this file.", OUTPUT, metavar="FILE"
    )
    quick: bool = setting(False, "Tiny sizes, to see that it runs; its figures mean nothing.", METHOD)


def main() -> None:
    """Run one benchmark and show it."""
    flags = parse(BenchFlags, __doc__ or "")
    if flags.json and (Path(flags.json).is_dir() or not Path(flags.json).parent.is_dir()):
        refuse(f"--json {flags.json}: give a file in a folder that is there")
    benchmark = importlib.import_module(f"d3hr_ray.benchmarks.{flags.name}")
    result = benchmark.run(flags.quick)
    print(result)
    if flags.json:
        Path(flags.json).write_text(json.dumps(asdict(result), indent=2) + "\n")
        announce(f"written to {flags.json}")


if __name__ == "__main__":
    guard(main)
