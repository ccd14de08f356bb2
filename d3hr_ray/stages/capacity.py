"""What a cluster can hold, now and after its autoscaler has been asked; and a voice when it can hold nothing."""

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterator

import ray
from ray.autoscaler.sdk import request_resources

from d3hr_ray.stages.telemetry import LOG

PATIENCE = 45.0  # seconds in which an autoscaler must have begun to launch what is asked of it
POLL = 1.0
SILENCE, REPEAT = 45.0, 300.0  # seconds without a node that fits before it is said, and said again


def room(share: float) -> int:
    """Actors with a share of a GPU each, or one CPU each if 0, that the nodes alive can hold.

    An actor must fit on one node, and a fraction on one GPU: of 4 GPUs, 0.6 each makes room for 4 actors, not 6.
    One CPU is kept for reading.
    """
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    if not share:
        return max(0, int(sum(n.get("CPU", 0) for n in nodes)) - 1)
    per_gpu = math.floor(1 / share + 1e-9) if share <= 1 else 0
    return sum(int(n.get("GPU", 0)) * per_gpu if per_gpu else int(n.get("GPU", 0) // share) for n in nodes)


def grows_to(share: float, actors: int, patience: float) -> bool:
    """Ask the autoscaler for room for so many actors. False if after `patience` it neither has it nor launches a node.

    Ray tells no one which node types an autoscaler could launch, so asking is the only way to know.
    """
    bundle = {"GPU": share} if share else {"CPU": 1}
    request_resources(bundles=[bundle] * actors)
    try:
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if room(share) >= actors or launching():
                return True
            time.sleep(POLL)
        return False
    finally:
        request_resources(bundles=[])  # the actors' own requests take its place


def launching() -> bool:
    """True while the cluster's autoscaler, of either version, starts nodes."""
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if is_autoscaler_v2():
        now = get_cluster_status(ray.get_runtime_context().gcs_address)
        return bool(now.pending_launches or now.pending_nodes)
    report = json.loads(_internal_kv_get("__autoscaling_status") or b"{}").get("autoscaler_report") or {}
    return bool(report.get("pending_launches") or report.get("pending_nodes"))


@contextlib.contextmanager
def voicing(title: str, share: float) -> Iterator[None]:
    """Say it while no node can hold an actor, lost or not come yet. The run waits, and goes on with the next one."""
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(title, share, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _watch(title: str, share: float, stop: threading.Event) -> None:
    fits, said = time.monotonic(), -math.inf
    while not stop.wait(POLL):
        now = time.monotonic()
        if any(n["Alive"] and n["Resources"].get("GPU" if share else "CPU", 0) >= (share or 1) for n in ray.nodes()):
            fits = now
        elif now - fits > SILENCE and now - said > REPEAT:
            said = now
            what = f"{share:g} GPU" if share else "1 CPU"
            LOG.warning(
                f"{title}: no node of the cluster has {what} for an actor; waiting for one "
                "(what is finished is kept: it can be stopped, and the same command resumes)"
            )
