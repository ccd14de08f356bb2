"""reuse: the latents of images that an earlier run has inverted => the first shards of latents/ of a grown run.

A Ray task per shard copies the rows that stay and gives them the labels of the grown run's classes. The copy makes the
new run whole: the earlier one may be deleted.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from d3hr_ray.config import RunError
from d3hr_ray.datasets.look import COLUMNS
from d3hr_ray.layout import CLASSES, REUSED, RUN, SEEN, finished, keys_file, latents_file, probes_file
from d3hr_ray.runs import read_run
from d3hr_ray.runtime.tasks import bounded
from d3hr_ray.stages.growth import new_labels
from d3hr_ray.stages.read import content_of
from d3hr_ray.stages.shards import source_runs
from d3hr_ray.store import Store


def run_reuse(store: Store, lineage: Mapping[str, Any], classes: pa.Table, timesteps: tuple[int, ...]) -> None:
    """Take every shard that is not there yet from the run that `lineage` names, labelled as `classes` says.

    `classes` is a classes.parquet. Raises RunError if that run is another now, or has lost what is to be taken.
    """
    done, reused = finished(store), store.read_table(REUSED).combine_chunks()
    left = [(shard, *rows) for shard, rows in enumerate(source_runs(reused)) if shard not in done]
    if not left:
        return
    run = Store(lineage["run"])
    if not run.exists(RUN) or read_run(run)["started"] != lineage["started"]:
        raise RunError(
            f"reuse: {run.uri}, from which {store.uri} was to take images, is gone or another run now; start "
            f"{store.uri} anew with --overwrite"
        )
    labels, theirs, ids = new_labels(run.read_table(CLASSES), classes), finished(run), reused["image_id"]
    if lost := sorted({source for _, source, *_ in left} - theirs.keys()):
        others = f" and {len(lost) - 1:,} others" if lost[1:] else ""
        raise RunError(
            f"reuse: {run.uri} has lost latents that {store.uri} takes from it (shard {lost[0]}{others}); the command "
            "that began it makes them again, or start anew without --extend"
        )
    for stage in ("invert", SEEN):  # a shard whose files are lost gets other marks
        store.unmark(stage, {shard for shard, *_ in left})
    jobs = [
        (n, (store, run, labels, timesteps, n, source, ids.slice(a, b - a).combine_chunks(), theirs[source]))
        for n, source, a, b in left
    ]
    for _ in bounded(take_shard, jobs, f"take latents of {run.name}"):
        pass


def take_shard(
    store: Store,
    run: Store,
    labels: np.ndarray,
    timesteps: tuple[int, ...],
    shard: int,
    source: int,
    ids: pa.Array,
    counts: Mapping[str, int],
) -> None:
    """Copy the images `ids` of a run's shard `source` into a shard here; its done mark comes last.

    `labels` are the new ones by the old, `counts` the run's of that shard. What was SEEN in its images is told of the
    whole shard, also where only some of them are taken.
    """
    columns = ["image_id", "label", *(f"z_{t}" for t in timesteps)]
    latents = _relabelled(run.read_table(latents_file(source), columns), ids, labels)
    if len(latents) != len(ids):
        raise RunError(
            f"reuse: {latents_file(source)} of {run.uri} has lost {len(ids) - len(latents):,} images that it had; "
            "start anew without --extend"
        )
    store.write_table(latents_file(shard), latents)
    if run.exists(probes_file(source)):
        probes = _relabelled(run.read_table(probes_file(source)), ids, labels)
        if len(probes):
            store.write_table(probes_file(shard), probes)
    whole = len(ids) == counts["accepted"] + counts["rejected"]
    content = {"content": counts["content"]} if whole and "content" in counts else {}
    if run.exists(keys_file(source)):
        keys = _chosen(run.read_table(keys_file(source)), ids)
        store.write_table(keys_file(shard), keys)
        content = {"content": content_of(keys)}
    if seen := {name: counts[name] for name in COLUMNS if name in counts}:
        store.mark(SEEN, shard, **seen)
    store.mark("invert", shard, accepted=len(ids), rejected=0, reused=len(ids), **content)


def _chosen(table: pa.Table, ids: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table["image_id"], value_set=ids)).combine_chunks()


def _relabelled(table: pa.Table, ids: pa.Array, labels: np.ndarray) -> pa.Table:
    chosen = _chosen(table, ids)
    return chosen.set_column(1, "label", pa.array(labels[chosen["label"].to_numpy()], pa.int32()))
