"""Where a job may write: not among the data's own files, and not over what it is to read."""

from collections.abc import Sequence
from typing import Any

from d3hr_ray.config import flag_of
from d3hr_ray.datasets.files import require_folder
from d3hr_ray.datasets.named import set_of
from d3hr_ray.filesystems import is_within
from d3hr_ray.layout import RUN
from d3hr_ray.store import Store

READ = ("data", "extend", "model", "init", "classifier", "learner", "preset")


def lies_among(out: str, data: str) -> bool:
    """Whether a folder lies among some images, if these are at a place of their own."""
    return not set_of(data) and is_within(out, data)


def check_out(flags: Any, out: str, deleted: Sequence[str]) -> None:
    """Raise ValueError for a new --out that lies in --data, and for what --overwrite, by which all that is `deleted`
    goes, would take away before it is read.
    """
    store = Store(out)
    require_folder("--out", out)
    if flags.data and lies_among(out, flags.data) and not store.exists(RUN):
        raise ValueError(
            f"--out {out} lies in --data {flags.data}: what is made would be counted among its images; give a folder "
            "beside it"
        )
    for name in READ if flags.overwrite else ():
        value = getattr(flags, name, None)
        path = value if not value or "://" in value else value.rpartition("=")[2]  # of ARCH=FILE
        if path and any(is_within(path, store.at(part).uri) for part in deleted):
            raise ValueError(f"--overwrite would delete {flag_of(name)} {value}; copy it out of --out {out} first")
