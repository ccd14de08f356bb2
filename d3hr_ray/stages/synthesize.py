"""synthesize: subsets/<set>/ => distilled/<set>/, one PNG per latent.

Each block of a set is one unit: an actor samples and decodes it in fixed batches, writes the PNGs, and last a table
of what it wrote, which is the block's done mark. A set is complete when its manifest.json is there.
"""

import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from d3hr_ray.config import RunError
from d3hr_ray.datasets.classes import folder_names
from d3hr_ray.layout import IMAGES, block_mark, block_marks, set_folder, subset_file
from d3hr_ray.models.autoencoder import to_pixels
from d3hr_ray.models.random_features import random_features
from d3hr_ray.numerics.feature_matching import Features, match_features
from d3hr_ray.numerics.seeds import generator
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.runtime.batching import with_room
from d3hr_ray.runtime.telemetry import goes_on
from d3hr_ray.sets import SetSpec, whole_classes
from d3hr_ray.stages.blocks import BlockActor, BlockJob, run_blocks
from d3hr_ray.stages.feature_kinds import feature_kind
from d3hr_ray.stages.features import read_means
from d3hr_ray.stages.guides import block_guide
from d3hr_ray.stages.images import IMAGE_SCHEMA, png
from d3hr_ray.stages.networks import OpenNetworks, open_networks
from d3hr_ray.store import Store


def run_synthesize(jobs: Sequence[BlockJob], actors: Actors) -> None:
    """Make the images of every block that is not done, of all sets of all jobs in one stream."""
    done = {(job.store, spec, block) for job in jobs for spec in job.specs for block in _finished(job.store, spec)}
    run_blocks(SynthesizeBlock, jobs, actors, "synthesize", lambda *block: block in done)


def _finished(store: Store, spec: SetSpec) -> list[int]:
    """Blocks whose mark and PNGs are all there."""
    there = set(store.list(set_folder(spec), recursive=True))
    marks = store.list(block_marks(spec))
    tables = store.side_by_side(lambda mark: store.read_table(f"{block_marks(spec)}/{mark}"), marks)
    whole = [there.issuperset(table["file_name"].to_pylist()) for table in tables]
    return [int(mark.partition(".")[0]) for mark, is_whole in zip(marks, whole, strict=True) if is_whole]


def written_images(store: Store, spec: SetSpec, classes: int) -> pa.Table:
    """IMAGE_SCHEMA rows of a whole set, by label and index. Raises RunError unless every image is there once."""
    blocks = range(len(spec.blocks(classes)))
    table = store.read_tables([block_mark(spec, b) for b in blocks])
    there = [n for n in store.list(f"{set_folder(spec)}/{IMAGES}", recursive=True) if n.endswith(".png")]
    wanted = {n.removeprefix(f"{IMAGES}/") for n in table["file_name"].to_pylist()}
    if wanted != set(there) or len(table) != spec.ipc * classes:
        raise RunError(
            f"synthesize: {set_folder(spec)} holds {len(there)} images, not the {spec.ipc * classes} of its "
            "blocks; run the same command again, or use --overwrite"
        )
    return table


class SynthesizeBlock(BlockActor):
    """Turns latents into PNGs."""

    def __init__(self, job: BlockJob, networks: OpenNetworks = open_networks) -> None:
        super().__init__(job, networks)
        self.folders = folder_names(job.classes)

    def write(self, spec: SetSpec, block: int) -> int:
        """Sample, decode and write one block. Returns its number of images."""
        subsets = self.job.store.read_table(subset_file(spec, block))
        pixels, names = self.pixels(spec, subsets), self.job.classes["name"]
        rows, files = [], {}
        for row, image in zip(subsets.drop(["latent"]).to_pylist(), pixels, strict=True):
            name = f"{IMAGES}/{self.folders[row['label']]}/{row['index']}.png"
            data = png(image, self.job.config.synthesis.image_size)
            files[f"{set_folder(spec)}/{name}"] = data
            class_name = names[row["label"]].as_py()
            rows.append(row | {"file_name": name, "class_name": class_name, "sha256": hashlib.sha256(data).hexdigest()})
        self.job.store.write_many(files)
        self.job.store.write_table(block_mark(spec, block), pa.Table.from_pylist(rows, IMAGE_SCHEMA))
        return len(rows)

    def pixels(self, spec: SetSpec, subsets: pa.Table) -> np.ndarray:
        """subsets/ rows => pixels (N, H, W, 3) uint8, in fixed batches."""
        sampler = self.sampler
        if spec.config.guides:
            assert spec.timestep is not None, "guides are of Gaussians"
            guide = block_guide(self.job.store, spec, subsets["label"].to_pylist(), sampler, self.job.source)
            latents = sampler.steered(subsets, spec.timestep, guide, spec.config.guide.until)
        else:
            latents = sampler.starts(subsets) if spec.is_clean else sampler.sample(subsets, spec.timestep)
        latents = self.refined(spec, subsets, sampler.optimise(subsets, latents))
        return to_pixels(sampler.decode(latents)).numpy()

    def refined(self, spec: SetSpec, subsets: pa.Table, latents: torch.Tensor) -> torch.Tensor:
        """Clean latents moved to the features of real images, if the set asks for it: whole classes at a time."""
        config, job = spec.config, self.job
        if not config.refines:
            return latents
        refine, kind = config.refine, feature_kind(config.refine)
        names, labels = tuple(job.classes["name"].to_pylist()), torch.tensor(subsets["label"].to_pylist())
        order = generator("order of networks", spec.seed).permutation(refine.networks).tolist()
        batch = config.inversion.batch_size
        assert isinstance(batch, int), "settled before actors start"
        side = latents.shape[-1] * self.sampler.autoencoder.factor
        first, last = int(labels.min()), int(labels.max()) + 1
        moved = torch.empty(latents.shape)
        for part in whole_classes(range(first, last), spec.ipc, batch):
            rows = (labels >= part.start) & (labels < part.stop)

            def network(number: int, part: range = part) -> tuple[Features, torch.Tensor]:
                goes_on()
                features = random_features(number, side, refine.width, names, job.device)
                return features, read_means(job.source or job.store, kind, number, part).to(job.device)

            start, places = latents[rows].to(job.device), (labels[rows] - part.start).to(job.device)
            decode = self.sampler.decode_with_gradient
            match = partial(match_features, start, places, decode, network, order, refine.steps, refine.lr)
            moved[rows] = with_room(match, batch).cpu()
        return moved
