"""What a job says while it works, beside the progress bars."""

import logging
import os
import sys
from collections.abc import Iterable

LOG = logging.getLogger("d3hr_ray")


def announce(text: str) -> None:
    """Say what happens next: on stderr, after the job's name, or in the log where there is a structured one."""
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    if LOG.isEnabledFor(logging.INFO):
        LOG.info(text, extra={"job": name})
    else:
        print(f"{name}: {text}", file=sys.stderr)


def tell(notes: Iterable[str]) -> None:
    """Say what a listing passed over, and what else people should know of their images."""
    for note in notes:
        announce(note)
