"""jobs/distill.py with faults, which are files in the folder that D3HR_FAULTS names; see simulated.py.

A fault is named STAGE-KIND-NUMBER. The worker that removes it meets it in the middle of a batch: die (SIGKILL to
itself), hang (for an hour), node (it asks, by a file NODE-ID.kill, for its node to be killed), memory (MemoryError for
any batch of more than 16 images).
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from d3hr_ray.stages import invert, synthesize
from d3hr_ray.stages.blocks import BlockJob
from d3hr_ray.stages.networks import OpenNetworks

FOLDER, CPU = "D3HR_FAULTS", "D3HR_CPU"


def meet(stage: str, images: int) -> None:
    """Meet the next fault of a stage, if there is one left."""
    folder = Path(os.environ[FOLDER])
    for file in sorted(folder.glob(f"{stage}-*")):
        try:
            file.unlink()
        except FileNotFoundError:
            continue  # another worker has it
        kind = file.name.split("-")[1]
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "node":
            (folder / f"{ray.get_runtime_context().get_node_id()}.kill").touch()
            time.sleep(3600)
        elif kind == "hang":
            time.sleep(3600)
        elif kind == "memory" and images > 16:
            file.touch()
            raise MemoryError("not more than 16 images")
        return


def spoiled(work: Callable[..., Any], stage: str, images: int) -> Callable[..., Any]:
    """A function that meets the faults of a stage before it works; its argument `images` is the batch."""

    def wrapped(*arguments: Any) -> Any:
        meet(stage, len(arguments[images]))
        return work(*arguments)

    return wrapped


def here(job: Any) -> Any:
    """The job on the CPU where the cluster's GPUs are only said to be there."""
    return replace(job, device="cpu") if os.environ.get(CPU) else job


class FaultyInvertShard(invert.InvertShard):
    """InvertShard whose batches meet faults."""

    def __init__(self, job: invert.InversionJob) -> None:
        super().__init__(here(job))
        invert.invert_images = spoiled(invert.invert_images, "invert", 3)


class FaultySynthesizeBlock(synthesize.SynthesizeBlock):
    """SynthesizeBlock whose batches meet faults."""

    def __init__(self, job: BlockJob, networks: OpenNetworks) -> None:
        super().__init__(here(job), networks)
        autoencoder = self.sampler.autoencoder
        autoencoder.decode = spoiled(autoencoder.decode, "synthesize", 0)


def main() -> None:
    """Connect so that workers find this file, then run the job."""
    import faulty

    from d3hr_ray.cli.exits import guard
    from jobs import distill

    env = {name: os.environ[name] for name in (FOLDER, CPU, "PYTHONPATH") if name in os.environ}
    ray.init(os.environ["RAY_ADDRESS"], runtime_env={"env_vars": env}, log_to_driver=False, logging_level="ERROR")
    distill.connect = lambda *_: True  # a cluster, which may grow
    invert.InvertShard = faulty.FaultyInvertShard  # type: ignore[misc]
    synthesize.SynthesizeBlock = faulty.FaultySynthesizeBlock  # type: ignore[misc]
    guard(distill.main)


if __name__ == "__main__":
    main()
