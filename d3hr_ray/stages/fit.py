"""fit: latents/ => gaussians/, the mean and unbiased variance of every (label, timestep).

Ray tasks sum fixed groups of files into float64 moments; a fixed tree merges them, so that the result does not depend
on how many workers there are or which is first. A default groupby took 10 to 60 times as long (docs/ray.md).
"""

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import torch

from d3hr_ray.config import RunError
from d3hr_ray.layout import LATENTS, gaussian_file
from d3hr_ray.numerics.moments import Moments, PowerSums
from d3hr_ray.runtime.progress import progress
from d3hr_ray.runtime.tasks import Reference, deferred, fetch, shared
from d3hr_ray.store import Store

FILES_PER_TASK = 64  # at 512 images of 4096 fp16 each, a task reads 268 MB, one file at a time
PerClass = dict[int, Moments]
Gaussians = tuple[torch.Tensor, torch.Tensor]  # mean and std (K, D)


def run_fit(
    store: Store, timesteps: tuple[int, ...], classes: list[str], accepted: int, source: Store | None = None
) -> None:
    """Fit every timestep that has no Gaussians yet, to the latents of `source`, if that is not `store`.

    Raises RunError for a class with fewer than 2 images.
    """
    source = source or store
    files = source.list(LATENTS)
    groups = [files[at : at + FILES_PER_TASK] for at in range(0, len(files), FILES_PER_TASK)]
    for t in sorted(timesteps):
        if not store.exists(gaussian_file(t)):
            moments = fit_tree(source, groups, t)
            store.write_table(gaussian_file(t), gaussian_table(moments, t, classes, accepted))


def fit_tree(store: Store, groups: list[list[str]], t: int) -> PerClass:
    """Moments over all groups of files. Partials stay on the cluster; the driver receives the root alone.

    With shuffled classes a partial holds all of them: 65 MB for 1000 classes at D = 4096.
    """
    if not groups:  # every image was rejected
        return {}
    partial = deferred(partial_moments)
    root = merge_tree([partial(store, group, t) for group in groups], deferred(merge))
    with progress(1, f"fit t={t}", "tree") as bar:
        moments: PerClass = fetch(root, f"fit t={t}")
        bar.update()
    return moments


def partial_moments(store: Store, files: list[str], t: int) -> PerClass:
    """Moments per label of one timestep over a group of latents files, in their order."""
    sums: PowerSums | None = None
    for file in files:
        table = store.read_table(f"{LATENTS}/{file}", columns=["label", f"z_{t}"])
        labels, latents = to_tensors(table, f"z_{t}")
        sums = sums or PowerSums(latents.shape[1])
        sums.add(latents, labels)
    return sums.moments() if sums else {}


def to_tensors(table: pa.Table, column: str) -> tuple[torch.Tensor, torch.Tensor]:
    """latents/ table => labels (N,) and one column's latents (N, D): the table's memory, not to be written to."""
    values = torch.from_dlpack(table[column].combine_chunks().flatten())
    return torch.from_numpy(table["label"].to_numpy().copy()), values.reshape(len(table), -1)


def merge(a: PerClass, b: PerClass) -> PerClass:
    """Moments of the union, label by label."""
    return a | {label: a[label].merge(m) if label in a else m for label, m in b.items()}


def merge_tree(parts: list[Any], join: Callable[[Any, Any], Any] = merge) -> Any:
    """Join neighbours until one is left: the same tree whatever the order in which the parts (1 or more) were made."""
    while len(parts) > 1:
        parts = [join(*parts[i : i + 2]) if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
    return parts[0]


def gaussian_table(moments: PerClass, t: int, classes: list[str], accepted: int) -> pa.Table:
    """Per-label moments => the contract's rows of one timestep. Raises RunError if a class or an image is missing."""
    for label, name in enumerate(classes):
        count = moments[label].count if label in moments else 0
        if count < 2:
            raise RunError(
                f"fit: class {name!r} has {count} usable image(s); its variance needs 2: add images, mend those in "
                "rejected/, or leave it out of --classes"
            )
    total = sum(m.count for m in moments.values())
    if total != accepted:
        raise RunError(
            f"fit: latents/ holds {total} images at t={t}, but {accepted} were accepted; use --overwrite to start anew"
        )
    labels = sorted(moments)
    return pa.table(
        {
            "label": pa.array(labels, pa.int32()),
            "timestep": pa.array([t] * len(labels), pa.int32()),
            "count": pa.array([moments[label].count for label in labels], pa.int64()),
            "mean": list_column(torch.stack([moments[label].mean_D for label in labels])),
            "variance": list_column(torch.stack([moments[label].variance() for label in labels])),
        }
    )


def list_column(rows_ND: torch.Tensor) -> pa.Array:
    """Rows (N, D) => a column of N lists of float32, as the files of a run have latents and moments."""
    values = pa.array(rows_ND.float().flatten().numpy())
    return pa.FixedSizeListArray.from_arrays(values, rows_ND.shape[1]).cast(pa.list_(pa.float32()))


def read_gaussians(store: Store, t: int) -> Gaussians:
    """Stored Gaussians of one timestep => mean (K, D) and std (K, D) float32, in label order."""
    table = store.read_table(gaussian_file(t)).sort_by("label")
    columns = (torch.from_numpy(table[c].combine_chunks().flatten().to_numpy().copy()) for c in ("mean", "variance"))
    mean, variance = (c.reshape(len(table), -1) for c in columns)
    return mean, variance.sqrt()


def share_gaussians(store: Store, timesteps: Iterable[int]) -> dict[int, Reference]:
    """Stored Gaussians by timestep, each read once and sent to each node once, for any number of tasks."""
    return {t: shared(read_gaussians(store, t)) for t in set(timesteps)}
