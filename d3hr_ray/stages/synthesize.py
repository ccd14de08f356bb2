"""synthesize: subsets/<variant>/ => distilled/<variant>/, one PNG per latent.

Each block of a variant is one unit: an actor samples and decodes it in fixed batches, writes the PNGs, and last a table
of what it wrote, which is the block's done mark. A variant is complete when its manifest.json is there.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from d3hr_ray.config import RunConfig, RunError
from d3hr_ray.datasets.classes import folder_names
from d3hr_ray.layout import block_mark, subset_file
from d3hr_ray.models.autoencoder import to_pixels
from d3hr_ray.runtime.actors import Pool
from d3hr_ray.sets import Variant
from d3hr_ray.stages.blocks import BlockActor, BlockJob, run_blocks
from d3hr_ray.stages.images import IMAGE_SCHEMA, png
from d3hr_ray.store import Store


def run_synthesize(store: Store, config: RunConfig, variants: Sequence[Variant], classes: pa.Table, pool: Pool) -> None:
    """Make the images of every block that is not done, of all variants in one stream."""
    done = {(v, b) for v in variants for b in _finished(store, v)}
    run_blocks(SynthesizeBlock, store, config, variants, classes, pool, "synthesize", lambda v, b: (v, b) in done)


def _finished(store: Store, variant: Variant) -> list[int]:
    """Blocks whose mark and PNGs are all there."""
    there = set(store.list(f"distilled/{variant.name}", recursive=True))
    marks = store.list(f".done/synthesize/{variant.name}")
    tables = {int(m.partition(".")[0]): store.read_table(f".done/synthesize/{variant.name}/{m}") for m in marks}
    return [block for block, table in tables.items() if there.issuperset(table["file_name"].to_pylist())]


def written_images(store: Store, variant: Variant, classes: int) -> pa.Table:
    """IMAGE_SCHEMA rows of a whole variant, by label and index. Raises RunError unless every image is there once."""
    blocks = range(len(variant.blocks(classes)))
    table = pa.concat_tables([store.read_table(block_mark(variant, b)) for b in blocks])
    there = [n for n in store.list(f"distilled/{variant.name}/train", recursive=True) if n.endswith(".png")]
    wanted = {n.removeprefix("train/") for n in table["file_name"].to_pylist()}
    if wanted != set(there) or len(table) != variant.ipc * classes:
        raise RunError(
            f"synthesize: distilled/{variant.name} holds {len(there)} images, not the {variant.ipc * classes} of its "
            "blocks; run the same command again, or use --overwrite"
        )
    return table


class SynthesizeBlock(BlockActor):
    """Turns latents into PNGs."""

    def __init__(self, job: BlockJob) -> None:
        super().__init__(job)
        self.folders = folder_names(job.classes)

    def write(self, variant: Variant, block: int) -> int:
        """Sample, decode and write one block. Returns its number of images."""
        subsets = self.job.store.read_table(subset_file(variant, block))
        pixels, names = self.pixels(variant, subsets), self.job.classes["name"]
        rows, files = [], {}
        for row, image in zip(subsets.drop(["latent"]).to_pylist(), pixels, strict=True):
            name = f"train/{self.folders[row['label']]}/{row['index']}.png"
            data = png(image, self.job.config.synthesis.image_size)
            files[f"distilled/{variant.name}/{name}"] = data
            class_name = names[row["label"]].as_py()
            rows.append(row | {"file_name": name, "class_name": class_name, "sha256": hashlib.sha256(data).hexdigest()})
        self.job.store.write_many(files)
        self.job.store.write_table(block_mark(variant, block), pa.Table.from_pylist(rows, IMAGE_SCHEMA))
        return len(rows)

    def pixels(self, variant: Variant, subsets: pa.Table) -> np.ndarray:
        """subsets/ rows => pixels (N, H, W, 3) uint8, in fixed batches."""
        sampler = self.sampler
        latents = sampler.starts(subsets) if variant.clean else sampler.sample(subsets, variant.timestep)
        return to_pixels(sampler.decode(sampler.optimise(subsets, latents))).numpy()
