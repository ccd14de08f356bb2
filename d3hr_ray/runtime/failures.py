"""What goes wrong inside Ray, told as the jobs tell it: the stage, the first cause, and what to do.

Workers import this with the functions of their tasks: nothing here needs seconds to import.
"""

import contextlib
import re
from collections.abc import Iterator

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayError,
    WorkerCrashedError,
)

from d3hr_ray.config import RunError

FAILURES = 3  # of workers that train together, and one more for each of them, before their job is given up
# What Ray says of a lost process is about its own logs. What was retried in vain is first told by kind.
KINDS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    (
        (OutOfMemoryError,),
        "a node ran out of memory; take nodes with more of it, or fewer CPUs on each (`ray start --num-cpus`)",
    ),
    ((OutOfDiskError,), "a node's disk is full; free Ray's folder there (/tmp/ray, or that of `ray start --temp-dir`)"),
    ((ObjectStoreFullError,), "a node's object store is full; give it more memory (`ray start --object-store-memory`)"),
    ((NodeDiedError, ObjectLostError, LocalRayletDiedError), "a node was lost too often"),
    ((WorkerCrashedError, ActorDiedError, ActorUnavailableError), "a worker process died too often"),
)


def failure(title: str, error: BaseException) -> RunError:
    """The failed run of a stage, as its message says it: which stage, and the innermost cause in one line."""
    chain = list(_chain(error))
    if told := next((found for found in chain if isinstance(found, RunError)), None):
        return RunError(f"{title}: {told}")
    for kinds, words in KINDS:
        for found in chain:
            if isinstance(found, kinds):
                return RunError(f"{title}: {words} ({type(found).__name__}: {_first_line(found)})")
    return RunError(f"{title}: a worker failed: {innermost(error)}")


@contextlib.contextmanager
def naming(title: str) -> Iterator[None]:
    """Within this block an error of Ray's own is a RunError that names the stage.

    What a task raised for users is raised as itself, not as Ray wraps it.
    """
    try:
        yield
    except (ValueError, OSError, RunError) as error:
        cause = getattr(error, "cause", None)
        if cause is None:
            raise
        raise cause from error
    except RayError as error:
        raise failure(title, error) from error


def innermost(error: BaseException) -> str:
    """The first cause of an error from a worker, in one line: it comes first in the traceback that Ray hands on."""
    if found := re.search(r"^[\w.]+(?:Error|Exception|Interrupt): .+$", str(error), re.M):
        return found[0]
    *_, first = _chain(error)
    lines = str(first).strip().splitlines() or [type(first).__name__]
    return lines[-1]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, the first cause last."""
    found: BaseException | None = error
    while found is not None:
        yield found
        by_rank = getattr(found, "worker_failures", None) or {}  # of Ray Train
        inner = next(iter(by_rank.values()), None) or getattr(found, "controller_failure", None)
        found = inner or getattr(found, "cause", None) or found.__cause__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
