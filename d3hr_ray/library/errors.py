"""Errors of shared code name the jobs' flags; here they name arguments."""

from collections.abc import Iterator
from contextlib import contextmanager

ARGUMENTS = {
    "--timesteps": "t =",
    "--ddim-steps": "steps =",
    "--model": "model",
    "--arch": "arch",
    "--distilled ": "",
    "--data ": "",
}


@contextmanager
def naming_arguments() -> Iterator[None]:
    """A ValueError of this block says `t = 610 is not on the grid` where a job says `--timesteps 610 is not on ...`."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        for flag, argument in ARGUMENTS.items():
            text = text.replace(flag, argument)
        raise ValueError(text) from error
