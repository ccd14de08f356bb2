"""Names of the files in a run folder, and what their presence says: all that --status needs, and no network."""

from d3hr_ray.sets import SetSpec
from d3hr_ray.store import Store

SEEN = "seen"  # marks of what inverting met in each shard's images; shards of older versions have none


def shard_file(shard: int) -> str:
    """Name of a shard's file within latents/ and rejected/."""
    return f"part-{shard:06d}.parquet"


def finished(store: Store) -> dict[int, dict[str, int]]:
    """Shards whose done mark and files are all there, with their counts, those of what was SEEN among them."""
    latents, rejected, seen = set(store.list("latents")), set(store.list("rejected")), store.marks(SEEN)
    return {
        shard: counts | seen.get(shard, {})
        for shard, counts in store.marks("invert").items()
        if (not counts["accepted"] or shard_file(shard) in latents)
        and (not counts["rejected"] or shard_file(shard) in rejected)
    }


def gaussian_file(t: int) -> str:
    """Name of a timestep's file within the run folder."""
    return f"gaussians/t{t:04d}.parquet"


def subset_file(spec: SetSpec, block: int) -> str:
    """Name of a block's file within the run folder."""
    return f"subsets/{spec.name}/part-{block:06d}.parquet"


def candidate_file(pool: SetSpec, block: int) -> str:
    """Name of a block's file of judged candidates within the run folder."""
    return f"pools/{pool.name}/part-{block:06d}.parquet"


def block_mark(spec: SetSpec, block: int) -> str:
    """Name of the table that marks a block as done and tells what it wrote."""
    return f".done/synthesize/{spec.name}/{block:06d}.parquet"
