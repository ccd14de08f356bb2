"""From a job's flags to resources: what a cluster can hold, now and after its autoscaler has been asked.

And a warning while it can hold nothing, and the workers that train students.
"""

import json
import math
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import ray
from ray.autoscaler.sdk import request_resources

from d3hr_ray.beside import beside
from d3hr_ray.runtime.console import LOG

PATIENCE = 45.0  # seconds in which an autoscaler must have begun to launch what is asked of it
POLL = 1.0
SILENCE, REPEAT = 45.0, 300.0  # seconds without a node that fits before the warning, and before its repetition


@dataclass(frozen=True)
class Ask:
    """What a job's flags ask of the cluster: workers that need a share of a GPU each, and CPUs.

    `count` None: `least` or more. `share` None: a GPU each where the cluster has any, else CPUs. `counts` and `shares`
    are the flags that say so. A worker takes `cpus` beside its GPU, and one CPU at least without; `spare` CPUs stay
    free where CPUs do the work.
    """

    count: int | None
    share: float | None
    counts: str
    shares: str
    cpus: int = 1
    spare: int = 0
    least: int = 1


def claim(ask: Ask, patience: float) -> tuple[float, int]:
    """An ask => the GPUs of each worker, and for how many workers there is room now (0: nodes are being launched).

    Every job takes its resources through here. A cluster's autoscaler has `patience` seconds to begin adding the nodes
    that are missing; 0 for a Ray that does not grow. Raises ValueError if the cluster cannot hold what is asked for.
    """
    share = ask.share
    if share is None:
        share = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    if not (0 <= share <= 1 or float(share).is_integer()):
        raise ValueError(f"{ask.shares} {share:g}: give 0, a fraction of one GPU, or whole GPUs")
    if ask.share is None and not share and patience:
        LOG.warning(f"no node has a GPU, so CPUs do the work; give {ask.shares} 1 to have an autoscaler add GPU nodes")
    cpus, spare = (ask.cpus, 0) if share else (max(1, ask.cpus), ask.spare)
    there, needed = max(0, room(share, cpus) - spare), ask.count or ask.least
    if not share and not patience:
        there = max(1, there)  # readers and networks share the only CPU of a small machine
    bundle = {name: amount for name, amount in (("GPU", share), ("CPU", cpus)) if amount}
    if there < needed and not (patience and grows_to([bundle] * (needed + spare), share, cpus, patience)):
        raise ValueError(_too_small(ask, share, cpus, spare, there, patience))
    return share, there


def room(share: float, cpus: float = 0) -> int:
    """Workers with a share of a GPU and some CPUs each that the nodes alive can hold.

    A worker must fit on one node, and a fraction on one GPU: of 4 GPUs, 0.6 each makes room for 4 workers, not 6.
    """
    return sum(_fits(n["Resources"], share, cpus) for n in ray.nodes() if n["Alive"])


def _fits(node: Mapping[str, float], share: float, cpus: float) -> int:
    by_cpu = [int(node.get("CPU", 0) // cpus)] if cpus else []
    if not share:
        return min(by_cpu)
    gpus = node.get("GPU", 0)
    return min([int(gpus) * math.floor(1 / share + 1e-9) if share <= 1 else int(gpus // share), *by_cpu])


def _too_small(ask: Ask, share: float, cpus: int, spare: int, there: int, patience: float) -> str:
    flag = f"{ask.shares} {share:g}" if ask.count is None or (share and not there) else f"{ask.counts} {ask.count}"
    each = " + ".join([f"{share:g} GPU"] * bool(share) + [f"{cpus} CPU"] * bool(cpus))
    kept = f", {spare} CPU kept for reading" if spare else ""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    has = ", ".join(sorted(f"{n.get('CPU', 0):g} CPU + {n.get('GPU', 0):g} GPU" for n in nodes)) or "no node"
    grow = f", and in {patience:.0f} s its autoscaler began to add none" if patience else ""
    fix = f"give fewer, add nodes, or give {ask.shares} 0 to use CPUs" if share else "give fewer or add nodes"
    return f"{flag}: the cluster has room for {there} (one {each} each{kept}; nodes: {has}){grow}; {fix}"


def grows_to(bundles: list[dict[str, float]], share: float, cpus: float, patience: float) -> bool:
    """Ask the autoscaler for bundles. False if after `patience` there is neither room for them nor a node in launch.

    Ray tells no one which node types an autoscaler could launch, so asking is the only way to know.
    """
    request_resources(bundles=bundles)
    try:
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if room(share, cpus) >= len(bundles) or launching():
                return True
            time.sleep(POLL)
        return False
    finally:
        request_resources(bundles=[])  # the workers' own requests take its place


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


def warn_while_unschedulable(title: str, share: float) -> AbstractContextManager[None]:
    """Warn while no node can hold a worker, lost or not yet there. The run waits, and goes on with the next one."""
    return beside(_watch, title, share)


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
                f"{title}: no node of the cluster has {what} for its workers; waiting for one "
                "(what is finished is kept: it can be stopped, and the same command resumes)"
            )


@dataclass(frozen=True)
class Workers:
    """`count` Ray Train workers (0: this process) with a share of a GPU each; `per_student` of them share a student."""

    count: int
    gpus: float = 0.0
    per_student: int = 1

    def __post_init__(self) -> None:
        if self.count < 0 or self.per_student < 1 or (self.count or 1) % self.per_student:
            raise ValueError(
                f"--workers-per-student {self.per_student} does not divide --workers {self.count}; give a divisor"
            )
        if self.per_student > 1 and 0 < self.gpus < 1:
            raise ValueError(
                f"--workers-per-student {self.per_student} needs a whole GPU for each of them, and --gpus-per-worker "
                f"{self.gpus:g} puts several on one, which NCCL refuses; give --gpus-per-worker 1"
            )


def find_workers(count: int | None, gpus: float | None, per_student: int, patience: float = 0.0) -> Workers:
    """--workers as asked, or one per GPU, or per CPU where there is none; from nothing, as many as share a student.

    A cluster's autoscaler has `patience` seconds to begin adding nodes. Raises ValueError for more than fit.
    """
    if count == 0:
        if gpus:
            raise ValueError(f"--gpus-per-worker {gpus:g} is idle: --workers 0 trains in this process; leave one out")
        return Workers(0, 0.0, per_student)
    share, there = claim(Ask(count, gpus, "--workers", "--gpus-per-worker", least=per_student), patience)
    return Workers(count or max(per_student, there - there % per_student), share, per_student)
