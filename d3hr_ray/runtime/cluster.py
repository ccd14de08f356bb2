"""The way to a Ray cluster, or to a local Ray."""

import importlib
import logging
import os
from typing import Any, Literal

from d3hr_ray.runtime.console import announce
from d3hr_ray.runtime.surroundings import (
    LITTLE_SHM,
    hidden_here,
    lend_token,
    out_of_the_way,
    ray_temp,
    require_answer,
    shared_memory,
    start_patiently,
)

LogFormat = Literal["text", "json"]
KEPT = 120_000  # milliseconds that a local Ray keeps a process without a task; Ray's own is 1,000


def connect(address: str | None, log_format: LogFormat = "text", ahead: str = "") -> bool:
    """Connect to --address, else RAY_ADDRESS, else start a local Ray with at least 2 CPU slots.

    One slot holds the networks and one reads images: a single slot would wait for itself. With json, drivers and
    workers log JSON lines. A worker of a local Ray imports `ahead`, the module of its first tasks, while this process
    goes on. Returns whether this call connected to a cluster, which may grow. Raises ValueError if none answers.
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
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if log_format == "json":
        quiet["logging_config"] = ray.LoggingConfig(encoding="JSON", log_level="INFO")
    if not address or address == "local":
        _start_local(quiet)
        if ahead:
            _load_ahead(ahead)
        return False
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise ValueError(
            f"{named}: no Ray cluster answers there ({error}); one that was started with a token needs "
            "RAY_AUTH_MODE=token here, and its ~/.ray/auth_token, or that as RAY_AUTH_TOKEN"
        ) from error
    return True


def _load_ahead(module: str) -> None:
    """Have a worker import a module. Nobody waits for it; one that cannot be imported fails what needs it."""
    import ray

    def load() -> None:
        importlib.import_module(module)

    ray.remote(num_cpus=0)(load).remote()


def _start_local(settings: dict[str, Any]) -> None:
    """Start a Ray on this machine. Raises RunError if it does not start in time."""
    import ray

    lend_token()
    # Ray's C++ log calls every pool's constructor arguments an error (ray issue 53727, harmless for small ones).
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    cpus = max(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2)
    if (free := shared_memory()) < LITTLE_SHM:
        announce(f"/dev/shm has {free >> 20} MB: Ray keeps objects on disk, which is slower (docker run --shm-size=2g)")
    if hiding := hidden_here():
        announce(f"{', '.join(hiding)} in {os.getcwd()} would hide modules from Ray's workers: they run elsewhere")
    settings = settings | {"num_cpus": cpus, "include_dashboard": False, "_temp_dir": ray_temp()}
    settings["_system_config"] = {"idle_worker_killing_time_threshold_ms": KEPT}
    with out_of_the_way(hiding):
        start_patiently(lambda: ray.init(address="local", **settings), ray.shutdown)
