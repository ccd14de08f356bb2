"""A folder that holds another run: the commands that lead on without losing it."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence

from d3hr_ray.cli.distill_config import UPSTREAM
from d3hr_ray.config import FITTING, flag_of
from d3hr_ray.layout import GAUSSIANS
from d3hr_ray.runs import AnotherRun

# What differs between sets of one run's Gaussians; its timesteps are checked where they are read.
OF_SETS = ("search.", "synthesis.", "cao2.", "method", "seed", "mended")
NAMED = ("search.ipc", "method", "seed")  # said by the names of sets: others need a folder of their own


@contextlib.contextmanager
def proposing() -> Iterator[None]:
    """Add to a refusal the very command that works. Raises ValueError in the place of AnotherRun."""
    try:
        yield
    except AnotherRun as refused:
        run, free = _short(refused.store.uri), _short(refused.free)
        ways = [again(sys.argv, ("--out",), "--out", free)]
        to_sets = all(text.startswith(OF_SETS) for text in refused.changed) and refused.store.list(GAUSSIANS)
        if to_sets and _method(refused.changed) in ("", *FITTING):
            upstream = (*UPSTREAM, "from_gaussians", "extend", "out", "overwrite")
            where = () if all(text.startswith(NAMED) for text in refused.changed) else ("--out", free)
            sets = again(sys.argv, [flag_of(name) for name in upstream], "--from-gaussians", run, *where)
            ways.insert(0, f"{sets} (more sets of that run, nothing is inverted again)")
        raise ValueError(
            f"{refused.what}. Type: {', or: '.join(ways)}. --overwrite would delete the run in {run}"
        ) from refused


def _method(changed: Sequence[str]) -> str:
    """The method that is asked for, where it differs from the run's."""
    return next((text.rpartition("-> ")[2] for text in changed if text.startswith("method: ")), "")


def again(argv: Sequence[str], without: Sequence[str], *flags: str) -> str:
    """A command line as typed, without some flags and their values, with others at its end."""
    kept, dropping = [], False
    for word in argv:
        if word.startswith("--"):
            dropping = word.partition("=")[0].replace("_", "-") in without
        if not dropping:
            kept.append(word)
    return shlex.join(["python", *kept, *flags])


def _short(uri: str) -> str:
    """A local path as people type it: from the working folder, if it lies within."""
    if "://" in uri or not uri.startswith(os.getcwd() + os.sep):
        return uri
    return os.path.relpath(uri)
