"""Progress bars: live on a terminal, lines in a job's log."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator

from tqdm import tqdm

from d3hr_ray.beside import beside
from d3hr_ray.runtime.console import LOG, QUIET, is_quiet, say


class _Lines:
    """A log file's view of a progress bar: each state once, on a line of its own."""

    last = ""

    def write(self, text: str) -> None:
        """Print what tqdm draws, without its carriage returns."""
        line = text.strip()
        if line and line != self.last:
            say(line)
            self.last = line

    def flush(self) -> None:
        """Pass on."""
        sys.stderr.flush()


def _is_live() -> bool:
    """Whether bars are drawn in place: a terminal that knows its width, and no log lines between them."""
    return sys.stderr.isatty() and _width() > 0 and not LOG.isEnabledFor(logging.INFO)


def _width() -> int:
    """Columns of the terminal; 0 where it does not say, as under some recorders, and tqdm would draw nothing."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


def make_bar(total: int, title: str, unit: str, hide: bool = False, done: int = 0) -> tqdm:
    """A progress bar: live on a terminal, a line every few seconds in a job's log; drawn only when it is updated.

    Its rate is the mean since it began. tqdm's smoothed one takes what arrives at once, an epoch's steps or a shard's
    images, for the work of the seconds since the bar was drawn.
    """
    live = _is_live()
    return tqdm(
        total=total,
        desc=title,
        unit=f" {unit}",
        initial=done,
        smoothing=0,
        disable=hide,
        mininterval=0.1 if live else 0.75 * QUIET,  # sooner than a reminder
        delay=0 if live else 0.5,
        file=None if live else _Lines(),
        bar_format=None
        if live
        else "{desc}: {n_fmt}/{total_fmt}{unit}s, {rate_fmt}, {elapsed} elapsed, {remaining} left{postfix}",
    )


@contextlib.contextmanager
def progress(total: int, title: str, unit: str, hide: bool = False, done: int = 0) -> Iterator[tqdm]:
    """A progress bar that shows the time that goes by even while nothing is finished: workers take seconds to start."""
    with make_bar(total, title, unit, hide, done) as bar, contextlib.nullcontext() if hide else beside(_keep, bar):
        yield bar


def _keep(bar: tqdm, stop: threading.Event) -> None:
    live = _is_live()
    while not stop.wait(1):
        if live or is_quiet():
            bar.refresh()


def counting(
    count: Callable[[], tuple[int, str]], total: int, title: str, unit: str, every: float = 2.0
) -> contextlib.AbstractContextManager[None]:
    """A progress bar of work that is done elsewhere; `count` says every few seconds how much is, and more in words."""

    def watch(stop: threading.Event) -> None:
        done, words = count()
        with progress(total, title, unit, False, done) as bar:
            ended = False
            while not ended:
                bar.set_postfix_str(words, refresh=False)
                ended = stop.wait(every)
                done, words = count()
                bar.initial = min(bar.initial, done)  # what begins again, from an older checkpoint, is done twice
                bar.update(done - bar.n)
            bar.set_postfix_str(words, refresh=False)

    return beside(watch)
