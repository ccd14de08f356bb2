"""candidates: subsets/<pool>/ => pools/<pool>/, what a pool's latents became and what the classifier says of each.

A pool is a variant with several candidates per image. Each block is one unit of an actor: sample, decode, judge, write.
"""

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from d3hr_ray.config import RunConfig
from d3hr_ray.models.loading import portable
from d3hr_ray.stages.judge import judge_name, load_judge
from d3hr_ray.stages.pool import Pool, run_units
from d3hr_ray.stages.sampling import Sampler
from d3hr_ray.stages.search import Variant, subset_file
from d3hr_ray.stages.synthesize import RESULT_SCHEMA
from d3hr_ray.store import Store

CANDIDATE_SCHEMA = pa.schema(
    [
        ("label", pa.int32()),
        ("index", pa.int32()),
        ("seed", pa.int64()),
        ("predicted", pa.int32()),  # label, or -1 without a classifier
        ("confidence", pa.float32()),  # probability of the predicted label
        ("own", pa.float32()),  # probability of the image's own label
        ("latent", pa.list_(pa.float32())),  # clean
    ]
)


def candidate_file(pool_variant: Variant, block: int) -> str:
    """Name of a block's file within the run folder."""
    return f"pools/{pool_variant.name}/part-{block:06d}.parquet"


def run_candidates(store: Store, config: RunConfig, pool_variant: Variant, classes: pa.Table, pool: Pool) -> None:
    """Sample and judge every block of a pool that has not been."""
    blocks = pool_variant.blocks(len(classes))
    todo = [b for b in range(len(blocks)) if not store.exists(candidate_file(pool_variant, b))]
    if not todo:
        return
    config = replace(config, model=replace(config.model, name=portable(config.model.name)))
    if config.cao2.classifier is not None:
        config = replace(config, cao2=replace(config.cao2, classifier=judge_name(config)))
    job = CandidateJob(store, config, pool_variant, classes, pool.device)
    steps: list[tuple[Any, dict[str, Any]]] = [
        (JudgeBlock, {"fn_constructor_args": (job,), **pool.options(len(todo))}),
    ]
    total = pool_variant.ipc * len(classes)
    done = total - sum(pool_variant.ipc * len(blocks[b]) for b in todo)
    for _ in run_units([{"block": b} for b in todo], steps, f"pool {pool_variant.name}", "image", total, done):
        pass


@dataclass(frozen=True)
class CandidateJob:
    """What an actor must know to make and judge blocks of a pool."""

    store: Store
    config: RunConfig
    pool_variant: Variant
    classes: pa.Table
    device: str


class JudgeBlock:
    """Actor: holds the networks and the classifier; samples and judges one block per call."""

    def __init__(self, job: CandidateJob) -> None:
        self.job = job
        self.sampler = Sampler(job.config, job.classes, job.device)
        selects = job.config.cao2.select != "none"
        self.judge = load_judge(job.config, job.classes, job.device) if selects else None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row {block} => {count, error}, after the file is written."""
        block, error, count = batch["block"][0].as_py(), None, 0
        try:
            count = self.write(block)
        except (ValueError, OSError) as problem:
            error = f"{self.job.pool_variant.name}, block {block}: {problem}"
        return pa.table([[count], [error]], schema=RESULT_SCHEMA)

    def write(self, block: int) -> int:
        """Make and judge one block. Returns its number of candidates."""
        job = self.job
        rows = job.store.read_table(subset_file(job.pool_variant, block))
        latents = self.sampler.sample(rows, job.pool_variant.timestep)
        labels = rows["label"].to_pylist()
        predicted, confidence, own = [-1] * len(rows), [float("nan")] * len(rows), [float("nan")] * len(rows)
        if self.judge is not None:
            probabilities = self.judge.probabilities(self.sampler.decode(latents))
            confidence, predicted = (x.tolist() for x in probabilities.max(1))
            own = probabilities[range(len(labels)), labels].tolist()
        table = rows.select(["label", "index", "seed"]).to_pydict() | {
            "predicted": predicted,
            "confidence": confidence,
            "own": own,
            "latent": list(latents.flatten(1).numpy()),
        }
        job.store.write_table(candidate_file(job.pool_variant, block), pa.table(table, CANDIDATE_SCHEMA))
        return len(rows)
