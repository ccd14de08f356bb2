"""What a job finds around it, and how it runs there all the same: a long TMPDIR, no home, ASCII output, a dead address.

Nothing here imports Ray, which takes seconds: a RAY_ADDRESS where nothing answers is told at once.
"""

import contextlib
import getpass
import io
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from d3hr_ray.config import RunError

SHORT_TEMP = "/tmp/ray"  # Ray's own default where no TMPDIR is set
LONGEST_TEMP = 40  # bytes: Ray appends 66 to it for its sockets, whose paths may have 107
PATIENCE = 10.0  # seconds for a connection to an address
START_ATTEMPTS = 3
LITTLE_SHM = 1 << 30  # bytes
ELSEWHERE = Path(__file__).parent.parent / "assets"  # a folder without modules


def adapt() -> None:
    """Make output, home and user fit for what is imported later. Whatever was set is left as it is."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal shows ± and a class name's ü as \xb1 and \xfc
            stream.reconfigure(errors="backslashreplace")
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a container's random uid, which no /etc/passwd has
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    home = os.path.expanduser("~")
    if home == "~":
        home = os.environ["HOME"] = tempfile.gettempdir()
    try:
        tempfile.TemporaryFile(dir=home).close()
    except OSError:
        os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), f"matplotlib-{os.getuid()}"))


def ray_temp() -> str | None:
    """A folder for a local Ray's session; None where Ray's own choice is short enough for the paths of its sockets."""
    own = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return SHORT_TEMP if len(os.fsencode(own)) > LONGEST_TEMP else None


def lend_token() -> None:
    """Give a local Ray a token of its own, unless there is one.

    It would write one to ~/.ray/auth_token: that fails without a home, and a later `ray start --head` would demand it.
    """
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not given and not os.path.isfile(os.path.expanduser("~/.ray/auth_token")):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def require_answer(address: str, named: str) -> None:
    """Raise ValueError if nothing listens at a Ray address: Ray itself would go on asking for up to 14 minutes.

    `named` is what asked for it: a flag or a variable with its value.
    """
    scheme, _, rest = address.rpartition("://")
    if scheme in ("http", "https"):
        raise ValueError(f"{named} is a dashboard's address, for `ray job submit`; a driver needs HOST:6379 or auto")
    host, _, port = rest.rpartition(":")
    if scheme not in ("", "ray") or not host or not port.isdecimal():
        return  # auto, or what Ray alone can read
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except OSError as error:
        cure = "give another address" if named.startswith("--") else "unset RAY_ADDRESS for a Ray on this machine"
        raise ValueError(f"{named}: no Ray cluster answers there ({error}); {cure}, or start that cluster") from error


def hidden_here() -> list[str]:
    """Files and packages of the working folder with the names of modules in use, which they would hide from workers."""
    here = Path.cwd()
    names = {p.stem: p.name for p in here.glob("*.py")} | {
        p.parent.name: f"{p.parent.name}/" for p in here.glob("*/__init__.py")
    }
    used = {name for name in names if name in sys.stdlib_module_names or _comes_from_elsewhere(name, here)}
    return sorted(names[name] for name in used)


def _comes_from_elsewhere(name: str, here: Path) -> bool:
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and not Path(file).resolve().is_relative_to(here.resolve())


def out_of_the_way(hiding: Sequence[str]) -> AbstractContextManager[None]:
    """Within this block a working folder that hides modules is left: Ray puts it first on its workers' path.

    All paths that workers get are absolute.
    """
    return contextlib.chdir(ELSEWHERE) if hiding else contextlib.nullcontext()


def start_patiently(start: Callable[[], object], undo: Callable[[], object]) -> None:
    """Start a Ray, again if need be: it gives itself 30 s, which a busy machine may take longer for.

    Raises RunError if it does not start the third time: Ray raises a bare Exception for that.
    """
    for attempt in range(START_ATTEMPTS):
        try:
            start()
            return
        except Exception as error:
            if "timed out" not in str(error).lower():
                raise
            undo()
            if attempt == START_ATTEMPTS - 1:
                raise RunError(
                    f"Ray did not start, {START_ATTEMPTS} times in a row ({str(error).partition('. ')[0]}), as on a "
                    "machine that is too busy; run the same command again"
                ) from error


def shared_memory() -> int:
    """Bytes free in /dev/shm, where Ray keeps objects; more than LITTLE_SHM where there is no such folder."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return LITTLE_SHM
    return found.f_bavail * found.f_frsize
