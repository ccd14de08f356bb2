"""What all jobs share: flags from a dataclass, one-line errors, and the way to a Ray cluster."""

import contextlib
import difflib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar

import tyro
from surroundings import (
    LITTLE_SHM,
    adapt,
    hidden_here,
    lend_token,
    out_of_the_way,
    ray_temp,
    require_answer,
    shared_memory,
    starting,
)

from d3hr_ray.config import RunError
from d3hr_ray.lock import Stopped

T = TypeVar("T")
LOG = logging.getLogger("d3hr_ray")

# Optional flags: None, or an empty tuple, means that the preset (or the default that the help states) decides.
Ints = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")]
LogFormat = Literal["text", "json"]
Words = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")]


def parse(flags: type[T], description: str, argv: Sequence[str] | None = None) -> T:
    """Command line => a flags dataclass. A wrong flag exits with status 2 and one line that names it and the fix."""
    options = (tyro.conf.FlagCreatePairsOff,)
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv or "-h" in argv:
        return tyro.cli(flags, description=description, args=argv, config=options)
    for flag, following in zip(argv, [*argv, "--"][1:], strict=True):
        is_list = flag.startswith("--") and flag[2:].replace("-", "_") in _list_flags(flags)
        if is_list and following.startswith("--"):
            refuse(f"{flag} has no value; give one or more, or leave it out (see --help)")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(flags, description=description, args=argv, config=options)
    except SystemExit as stop:
        refuse(f"{_one_line(said.getvalue(), flags)} (see --help)")
        raise AssertionError from stop  # refuse does not return


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Within this block a ValueError is the user's: one line on what is wrong, and exit status 2."""
    try:
        yield
    except ValueError as error:
        if os.environ.get("D3HR_TRACEBACK"):
            raise
        refuse(error)


def refuse(message: object) -> None:
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
        announce(f"failed: {error} (what is finished is kept: the same command resumes)")
        raise SystemExit(1) from error
    except KeyboardInterrupt as stop:
        announce("stopped; the same command resumes")
        raise SystemExit(143 if isinstance(stop, Stopped) else 130) from stop


def announce(text: str) -> None:
    """Say what happens next, beside the progress bars."""
    if LOG.isEnabledFor(logging.INFO):
        LOG.info(text, extra={"job": _name()})
    else:
        print(f"{_name()}: {text}", file=sys.stderr)


def tell(notes: Iterable[str]) -> None:
    """Say what a listing passed over, and what else people should know of their images."""
    for note in notes:
        announce(note)


def connect(address: str | None, log_format: LogFormat = "text") -> bool:
    """Connect to --address, else RAY_ADDRESS, else start a local Ray with at least 2 CPU slots.

    One slot holds the networks and one reads images: a single slot would wait for itself. With json, drivers and
    workers log JSON lines. Returns whether this is a cluster, which may grow.
    """
    named = (
        f"--address {address}" if address else f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}, set in the environment"
    )
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        require_answer(address, named)
    import ray  # takes seconds to import: --help and a wrong flag should not wait for it

    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if log_format == "json":
        quiet["logging_config"] = ray.LoggingConfig(encoding="JSON", log_level="INFO")
    if address and address != "local":
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise ValueError(
                f"{named}: no Ray cluster answers there ({error}); one that was started with a token needs "
                "RAY_AUTH_MODE=token here, and its ~/.ray/auth_token, or that as RAY_AUTH_TOKEN"
            ) from error
        return True
    lend_token()
    # Ray's C++ log calls every pool's constructor arguments an error (ray issue 53727, harmless for small ones).
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    cpus = max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2)
    if (free := shared_memory()) < LITTLE_SHM:
        announce(f"/dev/shm has {free >> 20} MB: Ray keeps objects on disk, which is slower (docker run --shm-size=2g)")
    if hiding := hidden_here():
        announce(f"{', '.join(hiding)} in {os.getcwd()} would hide modules from Ray's workers: they run elsewhere")
    with out_of_the_way(hiding), starting():
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=ray_temp(), **quiet)
    return False


def _name() -> str:
    return os.path.basename(sys.argv[0]).removesuffix(".py")


def _list_flags(flags: type) -> set[str]:
    """Names of the fields that take a list; tyro would take a list without values for its default."""
    return {f.name for f in fields(flags) if f.default == ()}


def nearest(typed: str, known: Iterable[str]) -> list[str]:
    """What a mistyped word may stand for, likeliest first, three at most: what it begins or what begins it, else what
    it is a part of (`lr` of `optimise-lr`), else what is spelt alike."""
    typed, known = typed.replace("_", "-"), list(known)
    begun = [word for word in known if word.startswith(typed) or typed.startswith(word)]
    parts = [word for word in known if typed in word.split("-")]
    apart = sorted(begun or parts, key=lambda word: abs(len(word) - len(typed)))
    return (apart or difflib.get_close_matches(typed, known, 3, 0.6))[:3]


def meant(typed: str, known: Iterable[str], prefix: str = "") -> str:
    """ "; perhaps you meant a or b", or nothing where no known word is near."""
    words = [prefix + word for word in nearest(typed, known)]
    return f"; perhaps you meant {' or '.join(filter(None, [', '.join(words[:-1]), words[-1]]))}" if words else ""


def _one_line(box: str, flags: type) -> str:
    """The message of tyro's box, framed or plain, without its title, its repeated help and its hint on --help."""
    lines = [line.strip(" │") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    text = "\n".join(lines if "╭" in box else lines[2:])
    message, *rest = re.split(r"\n[─-]{5,}\n", text)
    message = re.split(r"\s+Got errors:", message)[0]
    message = " ".join(message.split())
    if unknown := re.match(r"Unrecognized options: --([\w-]+)", message):
        return message + meant(unknown[1], [f.name.replace("_", "-") for f in fields(flags)], "--")
    usage = re.search(r"Argument helptext:\s+(--[^\n]+)", "\n".join(rest))
    return message + (f"; write {usage[1].strip()}" if usage else "")
