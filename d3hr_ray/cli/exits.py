"""How a job ends: with status 2 for a wrong flag, 1 for a failed run, and one line on what to do."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import NoReturn

from d3hr_ray.cli.flags import typed_flags
from d3hr_ray.config import RunError
from d3hr_ray.lock import Stopped
from d3hr_ray.runtime.console import announce
from d3hr_ray.runtime.surroundings import adapt


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Within this block a ValueError is the user's: one line on what is wrong, and exit status 2."""
    try:
        yield
    except ValueError as error:
        if os.environ.get("D3HR_TRACEBACK"):
            raise
        refuse(error)


@contextlib.contextmanager
def renamed(flag: str, own: str) -> Iterator[None]:
    """Within this block an error that names a flag of another job names this one's."""
    try:
        yield
    except (ValueError, RunError) as error:
        kind = RunError if isinstance(error, RunError) else ValueError
        raise kind(re.sub(rf"{flag}\b(?!-)", own, str(error))) from error


def refuse(message: object) -> NoReturn:
    """Exit with status 2, for a flag that is wrong."""
    announce(str(message))
    raise SystemExit(2)


def guard(main: Callable[[], None]) -> None:
    """Run a job. A failure that the user can mend prints one line that names it and exits with status 1."""
    adapt()
    try:
        main()
    except (RunError, ValueError, OSError) as error:
        if os.environ.get("D3HR_TRACEBACK"):
            raise
        announce(f"failed: {error} (what is finished is kept: the same command{_but_overwrite()} resumes)")
        raise SystemExit(1) from error
    except KeyboardInterrupt as stop:
        announce(f"stopped; the same command{_but_overwrite()} resumes")
        raise SystemExit(143 if isinstance(stop, Stopped) else 130) from stop


def _but_overwrite() -> str:
    """Of a command that would delete what it has made: what to leave out."""
    return " without --overwrite" if "--overwrite" in typed_flags() else ""
