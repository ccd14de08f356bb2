"""candidates: subsets/<pool>/ => pools/<pool>/, what a pool's latents became and what those that judge say of each.

A pool is a set with several candidates per image. Each block is one unit of an actor: sample, decode, judge, write.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from d3hr_ray.layout import candidate_file, pool_folder, subset_file
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.blocks import BlockActor, BlockJob, run_blocks
from d3hr_ray.stages.judge import load_judge, load_learner
from d3hr_ray.stages.networks import OpenNetworks, open_networks
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
LEARNER_LOSS = pa.field("learner_loss", pa.float32())  # cross-entropy of the own label, nats; only with a learner


def run_candidates(store: Store, pools: Sequence[SetSpec], classes: pa.Table, actors: Actors) -> None:
    """Sample and judge every block of these pools that has not been, in one stream."""
    job = BlockJob(store, pools[0].config, tuple(pools), classes, actors.device)
    judged = set[str]().union(*(store.files(pool_folder(pool)) for pool in pools))
    title = several("pool", pools)
    run_blocks(JudgeBlock, [job], actors, title, lambda _, pool, block: candidate_file(pool, block) in judged)


class JudgeBlock(BlockActor):
    """Holds a classifier, too, and a learner if the choice asks one; samples and judges."""

    def __init__(self, job: BlockJob, networks: OpenNetworks = open_networks) -> None:
        super().__init__(job, networks)
        cao2 = job.config.cao2
        self.judge = load_judge(job.config, job.classes, job.device) if cao2.select != "none" else None
        self.learner = load_learner(job.config, job.classes, job.device) if cao2.learner is not None else None

    def write(self, spec: SetSpec, block: int) -> int:
        """Make and judge one block. Returns its number of candidates."""
        store = self.job.store
        rows = store.read_table(subset_file(spec, block))
        latents = self.sampler.sample(rows, spec.timestep)
        columns = rows.select(["label", "index", "seed"]).to_pydict()
        columns |= self._judged(latents, torch.tensor(columns["label"]))
        columns["latent"] = list(latents.flatten(1).numpy())
        schema = CANDIDATE_SCHEMA.append(LEARNER_LOSS) if self.learner else CANDIDATE_SCHEMA
        store.write_table(candidate_file(spec, block), pa.table(columns, schema))
        return len(rows)

    def _judged(self, latents: torch.Tensor, labels: torch.Tensor) -> dict[str, list[Any]]:
        """Columns of what is said of each candidate."""
        if self.judge is None:
            unknown = [float("nan")] * len(labels)
            return {"predicted": [-1] * len(labels), "confidence": unknown, "own": unknown}
        images = self.sampler.decode(latents)
        probabilities = self.judge.probabilities(images)
        confidence, predicted = (x.tolist() for x in probabilities.max(1))
        own = probabilities[torch.arange(len(labels)), labels].tolist()
        said = {"predicted": predicted, "confidence": confidence, "own": own}
        return said | ({"learner_loss": self.learner.losses(images, labels).tolist()} if self.learner else {})
