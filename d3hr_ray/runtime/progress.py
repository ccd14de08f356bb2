"""Progress bars: live on a terminal, lines in a job's log."""

import logging
import sys

from tqdm import tqdm

LOG = logging.getLogger("d3hr_ray")


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
