"""candidates: subsets/<pool>/ => pools/<pool>/, what a pool's latents became and what the classifier says of each.

A pool is a set with several candidates per image. Each block is one unit of an actor: sample, decode, judge, write.
"""

from collections.abc import Sequence

import pyarrow as pa

from d3hr_ray.layout import candidate_file, subset_file
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.blocks import BlockActor, BlockJob, run_blocks
from d3hr_ray.stages.judge import load_judge
from d3hr_ray.stages.search import several
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


def run_candidates(store: Store, pools: Sequence[SetSpec], classes: pa.Table, actors: Actors) -> None:
    """Sample and judge every block of these pools that has not been, in one stream."""
    run_blocks(
        JudgeBlock,
        store,
        pools,
        classes,
        actors,
        several("pool", pools),
        lambda pool, block: store.exists(candidate_file(pool, block)),
    )


class JudgeBlock(BlockActor):
    """Holds a classifier, too; samples and judges."""

    def __init__(self, job: BlockJob) -> None:
        super().__init__(job)
        selects = job.config.cao2.select != "none"
        self.judge = load_judge(job.config, job.classes, job.device) if selects else None

    def write(self, spec: SetSpec, block: int) -> int:
        """Make and judge one block. Returns its number of candidates."""
        store = self.job.store
        rows = store.read_table(subset_file(spec, block))
        latents = self.sampler.sample(rows, spec.timestep)
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
        store.write_table(candidate_file(spec, block), pa.table(table, CANDIDATE_SCHEMA))
        return len(rows)
