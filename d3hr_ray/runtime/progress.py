"""Progress bars: live on a terminal, lines in a job's log."""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable

from tqdm import tqdm

from d3hr_ray.beside import beside
from d3hr_ray.runtime.console import LOG


class _Lines:
    """A log file's view of a progress bar: each state once, on a line of its own."""

    last = ""

    def write(self, text: str) -> None:
        """Print what tqdm draws, without its carriage returns."""
        line = text.strip()
        if line and line != self.last:
            if LOG.isEnabledFor(logging.INFO):
                LOG.info(line)
            else:
                print(line, file=sys.stderr)
            self.last = line

    def flush(self) -> None:
        """Pass on."""
        sys.stderr.flush()


def progress(total: int, title: str, unit: str, hide: bool, done: int = 0) -> tqdm:
    """A progress bar: live on a terminal, a line every 10 seconds in a job's log."""
    live = sys.stderr.isatty() and not LOG.isEnabledFor(logging.INFO)
    return tqdm(
        total=total,
        desc=title,
        unit=f" {unit}",
        initial=done,
        disable=hide,
        mininterval=0.1 if live else 10,
        delay=0 if live else 0.5,
        file=None if live else _Lines(),
        bar_format=None
        if live
        else "{desc}: {n_fmt}/{total_fmt}{unit}s, {rate_fmt}, {elapsed} elapsed, {remaining} left",
    )


def counting(count: Callable[[], int], total: int, title: str, unit: str) -> contextlib.AbstractContextManager[None]:
    """A progress bar of work that is done elsewhere; `count` says every 2 seconds how much is."""

    def watch(stop: threading.Event) -> None:
        done = count()
        with progress(total, title, unit, False, done) as bar:
            while not stop.wait(2):
                now = count()
                bar.update(now - done)
                done = now
            bar.update(count() - done)

    return beside(watch)
