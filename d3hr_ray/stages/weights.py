"""weights: mixtures/ => what each image of a set stands for, the column `weight` of its metadata.parquet.

A set that is matched at once has its images by component, as they were shared out. One that was chosen from a pool says
which component each comes from in its subsets/, but for those of older versions.
"""

import pyarrow as pa
import torch

from d3hr_ray.layout import subset_file
from d3hr_ray.numerics.mixture import components_of, weights_of
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.mixture import by_label, mixture_kind, read_counts
from d3hr_ray.store import Store

COMPONENT = "component"  # of each image: a column of subsets/ that were chosen from a pool


def pool_components(pools: Store, pool: SetSpec, labels: range) -> dict[int, torch.Tensor]:
    """The component of each of a pool's candidates, (M,) by index, for each label; none where it has no components."""
    if not pool.has_weights:
        return {}
    counts = _counts(pools, pool, labels)
    return {label: components_of(count_C, pool.ipc) for label, count_C in counts.items()}


def image_weights(store: Store, mixtures: Store, spec: SetSpec, classes: int) -> pa.Array | None:
    """A weight per image of a set, float32, by label and index; None for one whose images count alike, or are unknown.

    `mixtures` is the folder that has the set's mixtures: its own, or its pool's.
    """
    if not spec.has_weights:
        return None
    counts = _counts(mixtures, spec, range(classes))
    if spec.config.has_pool:
        components = _chosen_components(store, spec, classes)
    else:
        components = {label: components_of(count_C, spec.ipc) for label, count_C in counts.items()}
    if components is None:
        return None
    weights = [weights_of(counts[label], components[label]) for label in range(classes)]
    return pa.array(torch.cat(weights).numpy(), pa.float32())


def _counts(mixtures: Store, spec: SetSpec, labels: range) -> dict[int, torch.Tensor]:
    assert spec.timestep is not None, "mixtures are fitted at a timestep"
    return read_counts(mixtures, mixture_kind(spec.config, spec.timestep, spec.images_per_class), labels)


def _chosen_components(store: Store, spec: SetSpec, classes: int) -> dict[int, torch.Tensor] | None:
    """The component of each chosen image of each label, by index; None where a file of subsets/ does not say."""
    names = [subset_file(spec, block) for block in range(len(spec.blocks(classes)))]
    if any(COMPONENT not in columns for columns in store.side_by_side(store.column_names, names)):
        return None
    rows = store.read_tables(names, ["label", "index", COMPONENT])
    found = by_label(rows.sort_by([("label", "ascending"), ("index", "ascending")]), range(classes))
    return {label: torch.tensor(own[COMPONENT].to_pylist()) for label, own in found.items()}
