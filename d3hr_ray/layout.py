"""Names of the files in a run folder (docs/design.md), spelt out here and nowhere else, and what their presence says.

All that --status needs, and no network.
"""

from d3hr_ray.sets import SetSpec
from d3hr_ray.store import MARKS, TEMP, Store

RUN = "run.json"
CLASSES = "classes.parquet"
LATENTS = "latents"  # a file per shard of images
REJECTED = "rejected"
GAUSSIANS = "gaussians"  # a file per timestep
MIXTURES = "mixtures"
FEATURES = "features"  # of real images, a folder per kind, a file per random network or t
SUBSETS = "subsets"  # a folder per set, a file per block of labels
POOLS = "pools"
DISTILLED = "distilled"  # a folder per set
MANIFEST, METADATA, CARD, IMAGES = "manifest.json", "metadata.parquet", "README.md", "train"  # in a set's folder
SETS, INVERSIONS = "sets", "inversions"  # folders of a sweep's settings, each a run folder
EVALUATIONS = "evaluations"
RECORDS = f"{EVALUATIONS}/runs"  # a file per student
RESULTS = f"{EVALUATIONS}/results.parquet"
SWEEPS = "sweeps"  # a folder per sweep
REPORT = "report"
REALS = f"{REPORT}/real.parquet"  # a few real images per class, for its page
PROBES = f"{MARKS}/probes"  # VAE latents of the images whose normality is tested
VERSIONS = f"{MARKS}/versions.parquet"  # of the images' files
KEYS = f"{MARKS}/keys"  # of the bytes of each image that is in latents/; runs of older versions have none
REUSED = f"{MARKS}/reused.parquet"  # the images whose latents come from the run of --extend, and from which shard
# All that a run may write; --overwrite deletes these and nothing else.
# What is made of something goes before it, marks before the latents that they vouch for, and run.json last: what a
# killed --overwrite leaves is whole, or is made again, so that it neither mixes two runs nor locks the folder.
OWN = (
    DISTILLED,
    SUBSETS,
    POOLS,
    MIXTURES,
    FEATURES,
    GAUSSIANS,
    SETS,
    INVERSIONS,
    EVALUATIONS,
    SWEEPS,
    REPORT,
    TEMP,
    MARKS,
    REJECTED,
    LATENTS,
    CLASSES,
    RUN,
)
SEEN = "seen"  # marks of what inverting met in each shard's images; shards of older versions have none


def shard_file(shard: int) -> str:
    """Name of a shard's file within latents/ and rejected/."""
    return f"part-{shard:06d}.parquet"


def latents_file(shard: int) -> str:
    """Of a shard's accepted images."""
    return f"{LATENTS}/{shard_file(shard)}"


def rejected_file(shard: int) -> str:
    """Of a shard's rejected images."""
    return f"{REJECTED}/{shard_file(shard)}"


def keys_file(shard: int) -> str:
    """Of the keys of a shard's accepted images."""
    return f"{KEYS}/{shard_file(shard)}"


def probes_file(shard: int) -> str:
    """Of the VAE's latents of a shard's probes."""
    return f"{PROBES}/{shard_file(shard)}"


def finished(store: Store) -> dict[int, dict[str, int]]:
    """Shards whose done mark and files are all there, with their counts, those of what was SEEN among them."""
    latents, rejected, seen = set(store.list(LATENTS)), set(store.list(REJECTED)), store.marks(SEEN)
    return {
        shard: counts | seen.get(shard, {})
        for shard, counts in store.marks("invert").items()
        if (not counts["accepted"] or shard_file(shard) in latents)
        and (not counts["rejected"] or shard_file(shard) in rejected)
    }


def gaussian_file(t: int) -> str:
    """Of a timestep's Gaussians."""
    return f"{GAUSSIANS}/t{t:04d}.parquet"


def subset_folder(spec: SetSpec) -> str:
    """Of a set's latents."""
    return f"{SUBSETS}/{spec.name}"


def subset_file(spec: SetSpec, block: int) -> str:
    """Of a block's latents."""
    return f"{subset_folder(spec)}/part-{block:06d}.parquet"


def pool_folder(spec: SetSpec) -> str:
    """Of a pool's candidates, or of what was chosen for a set."""
    return f"{POOLS}/{spec.name}"


def candidate_file(pool: SetSpec, block: int) -> str:
    """Of a block's judged candidates."""
    return f"{pool_folder(pool)}/part-{block:06d}.parquet"


def choice_file(spec: SetSpec, block: int) -> str:
    """Of what was chosen for a block."""
    return f"{pool_folder(spec)}/choice-{block:06d}.parquet"


def block_marks(spec: SetSpec) -> str:
    """Folder of the tables that mark a set's blocks as done."""
    return f"{MARKS}/synthesize/{spec.name}"


def block_mark(spec: SetSpec, block: int) -> str:
    """Of the table that marks a block as done and tells what it wrote."""
    return f"{block_marks(spec)}/{block:06d}.parquet"


def recipe_file(name: str) -> str:
    """Of what a set or pool is made with, by its name."""
    return f"{MARKS}/recipes/{name}.json"


def set_folder(spec: SetSpec) -> str:
    """Of a distilled set: images, card, metadata and, last, the manifest."""
    return f"{DISTILLED}/{spec.name}"


def manifest_file(spec: SetSpec) -> str:
    """Of a distilled set; where it is, the set is complete."""
    return f"{set_folder(spec)}/{MANIFEST}"


def run_at(found: Store) -> Store:
    """The run folder that a distilled set's folder lies in."""
    return found.at("../..")


def sweep_folder(name: str) -> str:
    """Of a sweep's tables, plots and best preset."""
    return f"{SWEEPS}/{name}"


def sweep_flags_file(name: str) -> str:
    """Of the flags that a sweep is resumed with."""
    return f"{sweep_folder(name)}/sweep.json"


def stopped_folder(name: str) -> str:
    """Of the students that a sweep's scheduler stopped."""
    return f"{sweep_folder(name)}/stopped"


def teacher_folder(name: str) -> str:
    """Of a teacher that was trained on the full set."""
    return f"{EVALUATIONS}/teachers/{name}"


def student_folder(arch: str, key: str) -> str:
    """Of a student that was kept, by the key of its trial."""
    return f"{EVALUATIONS}/students/{arch}-{key}"
