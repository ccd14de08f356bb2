"""What a job says while it works, beside the progress bars."""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator

from d3hr_ray.beside import beside

LOG = logging.getLogger("d3hr_ray")
QUIET = 8.0  # seconds after which a job that says nothing looks stuck

_said = time.monotonic()


def say(line: str, **extra: str) -> None:
    """A line on stderr, or in the log where there is a structured one."""
    global _said
    _said = time.monotonic()
    if LOG.isEnabledFor(logging.INFO):
        LOG.info(line, extra=extra)
    else:
        print(line, file=sys.stderr)


def is_quiet() -> bool:
    """Whether nothing was said for long enough to say that work goes on."""
    return time.monotonic() - _said >= QUIET


def announce(text: str) -> None:
    """Say what happens next, after the job's name."""
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    say(text if LOG.isEnabledFor(logging.INFO) else f"{name}: {text}", job=name)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say what the block does, and again with the time it has taken whenever it has been quiet for long."""
    announce(text)
    with beside(_remind, text, time.monotonic()):
        yield


def _remind(text: str, begun: float, stop: threading.Event) -> None:
    while not stop.wait(1):
        if is_quiet():
            announce(f"{text}, {time.monotonic() - begun:.0f} s")


def tell(notes: Iterable[str]) -> None:
    """Say what a listing passed over, and what else people should know of their images."""
    for note in notes:
        announce(note)
