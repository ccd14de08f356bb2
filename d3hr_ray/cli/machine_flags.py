"""Flags that several jobs have and that decide no result, said once: on the machine, and on the report."""

from typing import Any

from d3hr_ray.config import setting
from d3hr_ray.config.fields import CLUSTER, OUTPUT


def address(help: str = "Ray cluster.") -> Any:
    """--address: str | None."""
    return setting(None, help, CLUSTER, metavar="ADDRESS", shown="RAY_ADDRESS, else a local Ray")


def actors(help: str = "Actors that hold the networks.") -> Any:
    """--actors: tuple[int, ...]."""
    return setting((), help, CLUSTER, metavar="MIN MAX", shown="all GPUs of the cluster, else all CPUs but one")


def gpus_per_actor() -> Any:
    """--gpus-per-actor: float | None."""
    shown = "1, or 0 on a cluster without GPUs"
    return setting(None, "GPUs per actor; a fraction shares one.", CLUSTER, shown=shown)


def no_real_images() -> Any:
    """--no-real-images: bool."""
    help = "Show no real image in the report, as for private data; evaluations of the run's sets show none either."
    return setting(False, help, OUTPUT)
