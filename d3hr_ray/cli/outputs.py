"""Where a job may write: not among the data's own files, and not over what it is to read."""

from typing import Any

from d3hr_ray.config import flag_of
from d3hr_ray.datasets.named import set_of
from d3hr_ray.filesystems import is_within
from d3hr_ray.layout import OWN

READ = ("data", "extend", "model", "classifier", "learner", "preset")


def check_out(flags: Any, out: str) -> None:
    """Raise ValueError for an --out that lies in --data, and for what --overwrite would delete before it is read."""
    if flags.data and not set_of(flags.data) and is_within(out, flags.data):
        raise ValueError(
            f"--out {out} lies in --data {flags.data}: what is made would be counted among its images; give a folder "
            "beside it"
        )
    for name in READ if flags.overwrite else ():
        value = getattr(flags, name, None)
        if value and any(is_within(value, f"{out}/{part}") for part in OWN):
            raise ValueError(
                f"--overwrite would delete {flag_of(name)} {value}, which lies in --out {out}; copy it away"
            )
