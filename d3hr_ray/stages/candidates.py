"""candidates: subsets/<pool>/ => pools/<pool>/, what a pool's latents became and what the classifier says of each.

A pool is a variant with several candidates per image. Each block is one unit of an actor: sample, decode, judge, write.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from d3hr_ray.config import RunConfig
from d3hr_ray.models.loading import portable
from d3hr_ray.stages.judge import judge_name, load_judge
from d3hr_ray.stages.pool import Pool, run_units
from d3hr_ray.stages.sampling import Sampler
from d3hr_ray.stages.search import Variant, candidate_file, several, subset_file
from d3hr_ray.stages.synthesize import RESULT_SCHEMA
from d3hr_ray.stages.telemetry import describe
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


def run_candidates(store: Store, config: RunConfig, pools: Sequence[Variant], classes: pa.Table, pool: Pool) -> None:
    """Sample and judge every block of these pools that has not been, in one stream."""
    blocks = {(v, b): v.ipc * len(labels) for v in pools for b, labels in enumerate(v.blocks(len(classes)))}
    todo = [(v, b) for v, b in blocks if not store.exists(candidate_file(v, b))]
    if not todo:
        return
    config = replace(config, model=replace(config.model, name=portable(config.model.name)))
    if config.cao2.classifier is not None:
        config = replace(config, cao2=replace(config.cao2, classifier=judge_name(config)))
    job = CandidateJob(store, config, tuple(pools), classes, pool.device)
    units = [{"pool": pools.index(v), "block": b} for v, b in todo]
    steps: list[tuple[Any, dict[str, Any]]] = [
        (JudgeBlock, {"fn_constructor_args": (job,), **pool.options(len(todo))}),
    ]
    total = sum(blocks.values())
    done = total - sum(blocks[key] for key in todo)
    for _ in run_units(units, steps, several("pool", pools), "image", total, done):
        pass


@dataclass(frozen=True)
class CandidateJob:
    """What an actor must know to make and judge blocks of a pool."""

    store: Store
    config: RunConfig
    pools: tuple[Variant, ...]
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
        """One row {pool, block} => {count, error}, after the file is written."""
        row = batch.to_pylist()[0]
        variant, block, error, count = self.job.pools[row["pool"]], row["block"], None, 0
        labels = list(variant.blocks(len(self.job.classes))[block])
        describe(run=self.job.store.uri, variant=variant.name, block=block, labels=labels)
        try:
            count = self.write(variant, block)
        except (ValueError, OSError) as problem:
            error = f"{variant.name}, block {block}: {problem}"
        return pa.table([[count], [error]], schema=RESULT_SCHEMA)

    def write(self, variant: Variant, block: int) -> int:
        """Make and judge one block. Returns its number of candidates."""
        store = self.job.store
        rows = store.read_table(subset_file(variant, block))
        latents = self.sampler.sample(rows, variant.timestep)
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
        store.write_table(candidate_file(variant, block), pa.table(table, CANDIDATE_SCHEMA))
        return len(rows)
