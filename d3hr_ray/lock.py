"""One driver per run folder: a lock file that beats, so that a killed driver's lock is taken over and a live one's not.

Object stores have no exclusive create that pyarrow offers, so the rule is the same everywhere: write your name, wait,
and see whose name is there. A driver that finds another's name later stops. Should two ever write at once, no file is
damaged: all are written whole, and equal configs give equal bytes.
"""

import contextlib
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from d3hr_ray.beside import beside
from d3hr_ray.config import RunError
from d3hr_ray.store import Store

NAME = ".lock"
BOOT = Path("/proc/sys/kernel/random/boot_id")
BEAT = 5.0  # seconds between beats
SILENCE = 30.0  # without a beat before a driver on another machine counts as dead
SETTLE = 0.1, 1.0  # between writing a name and reading it back, in which another may write: on disks, object stores


class Stopped(KeyboardInterrupt):
    """SIGTERM, as `ray job stop` and Kubernetes send it: let go of the run folder, then end."""


@contextlib.contextmanager
def driving(store: Store) -> Iterator[None]:
    """Hold a run folder. Raises RunError if another driver holds it, naming where it runs.

    A holder on this machine that is gone is replaced at once, one elsewhere when it has not beaten for SILENCE.
    """
    holder = read_holder(store)
    if holder is not None and is_alive(store, holder):
        raise RunError(
            f"--out {store.uri} is in use by {describe(holder)}; wait for it or stop it, or give another --out"
        )
    name = {"owner": uuid.uuid4().hex, "host": _host(), "pid": os.getpid(), "since": _now(), "beat": 0}
    store.write_json(NAME, name)
    time.sleep(SETTLE["://" in store.uri])
    _require(store, name)
    lost = threading.Event()
    with _stopping_on_sigterm():
        try:
            with beside(_beat, store, name, lost):
                yield
        except KeyboardInterrupt:
            if lost.is_set():
                _require(store, name)
            raise
        finally:
            holder = None if lost.is_set() else read_holder(store)
            if holder is not None and holder["owner"] == name["owner"]:  # else one that slept too long was replaced
                store.delete(NAME)


def read_holder(store: Store) -> dict[str, Any] | None:
    """Who holds the folder, if anyone ever did and did not let go."""
    try:
        holder = store.read_json(NAME)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return holder if isinstance(holder, dict) and {"owner", "host", "pid", "since"} <= holder.keys() else None


def is_alive(store: Store, holder: dict[str, Any]) -> bool:
    """False if the holder's process on this machine is gone, or if its beat stands still for SILENCE."""
    if holder["host"] == _host() and not _runs(int(holder["pid"])):
        return False
    end = time.monotonic() + SILENCE
    while time.monotonic() < end:
        time.sleep(BEAT / 5)
        now = read_holder(store)
        if now is None:
            return False
        if now != holder:
            return True
    return False


def describe(holder: dict[str, Any]) -> str:
    """The holder in words."""
    return f"process {holder['pid']} on {str(holder['host']).partition(':')[0]} since {holder['since']}"


def _beat(store: Store, name: dict[str, Any], lost: threading.Event, stop: threading.Event) -> None:
    """Refresh the lock until told to stop; interrupt the main thread if another driver has taken it."""
    while not stop.wait(BEAT):
        try:
            holder = read_holder(store)
            if holder is not None and holder["owner"] == name["owner"]:
                name["beat"] += 1
                store.write_json(NAME, name)
                continue
        except OSError:
            continue  # storage that is away for a while stops the run where it matters, not here
        lost.set()
        os.kill(os.getpid(), signal.SIGTERM)
        return


@contextlib.contextmanager
def _stopping_on_sigterm() -> Iterator[None]:
    """Raise Stopped in the main thread on SIGTERM, which Python by default dies of with nothing cleaned up."""

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _require(store: Store, name: dict[str, Any]) -> None:
    holder = read_holder(store)
    if holder is None or holder["owner"] != name["owner"]:
        by = "someone deleted its lock" if holder is None else f"it was taken by {describe(holder)}"
        raise RunError(f"--out {store.uri} is no longer this driver's: {by}")


def _host() -> str:
    """This machine since it was started, and where processes are numbered per container, this container.

    A name is not enough: copies of a virtual machine share theirs.
    """
    try:
        return f"{platform.node()}:{BOOT.read_text().strip()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
