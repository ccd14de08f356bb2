"""How well each subset matches its Gaussian, beside a single random draw."""

import pyarrow as pa
import torch

from d3hr_ray.layout import gaussian_file, subset_file
from d3hr_ray.numerics import groups
from d3hr_ray.numerics.seeds import normal
from d3hr_ray.runtime.tasks import bounded
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.fit import read_gaussians
from d3hr_ray.store import Store


def matching_table(store: Store, spec: SetSpec, rejected: list[int], names: list[str]) -> pa.Table:
    """Per class: images read and rejected, the mean and std matching loss, a random draw's, and both skewnesses."""
    assert spec.timestep is not None, "noise has nothing to match"
    blocks = range(len(spec.blocks(len(names))))
    found = dict(bounded(matching_block, [(b, (store, spec, b)) for b in blocks]))
    losses = [row for b in blocks for row in found[b]]
    counts = store.read_table(gaussian_file(spec.timestep), columns=["label", "count"]).sort_by("label")["count"]
    rows = [
        {"set": spec.name, "label": label, "class": name, "images": count + lost, "rejected": lost} | loss
        for label, (name, count, lost, loss) in enumerate(zip(names, counts.to_pylist(), rejected, losses, strict=True))
    ]
    return pa.Table.from_pylist(rows)


def matching_block(store: Store, spec: SetSpec, block: int) -> list[dict[str, float]]:
    """Losses of each label of a subsets/ file, in label order."""
    assert spec.timestep is not None
    means_KD, stds_KD = read_gaussians(store, spec.timestep)
    table = store.read_table(subset_file(spec, block), columns=["label", "latent"])
    latents = torch.from_numpy(table["latent"].combine_chunks().flatten().to_numpy().copy())
    rows = []
    for label, subset_ND in zip(
        table["label"].unique().to_pylist(), latents.reshape(-1, spec.ipc, means_KD.shape[1]), strict=True
    ):
        mean_D, std_D = means_KD[label], stds_KD[label]
        draw_ND = mean_D + std_D * normal((spec.ipc, len(mean_D)), "draw", spec.seed, label)
        row = {}
        for prefix, group_ND in (("", subset_ND), ("random_", draw_ND)):
            row[f"{prefix}loss"] = float(groups.scores(group_ND[None], mean_D, std_D, 0.0))
            row[f"{prefix}skew"] = float(groups.skewness(group_ND[None]).norm())
        rows.append(row)
    return rows


def format_table(table: pa.Table, limit: int = 20) -> str:
    """The table as text; above `limit` classes, their totals and means."""
    rows = table.to_pylist()
    if len(rows) > limit:
        total = {key: sum(r[key] for r in rows) for key in ("images", "rejected")}
        means = {key: sum(r[key] for r in rows) / len(rows) for key in ("loss", "random_loss")}
        rows = [{"class": f"all {len(rows)} classes"} | total | means]
    lines = [f"{'class':<22} {'images':>8} {'rejected':>8} {'loss':>10} {'random draw':>11} {'ratio':>8}"]
    lines += [
        f"{r['class'][:22]:<22} {r['images']:>8} {r['rejected']:>8} {r['loss']:>10.3g} {r['random_loss']:>11.4g} "
        f"{r['loss'] / r['random_loss'] if r['random_loss'] else float('nan'):>8.1e}"
        for r in rows
    ]
    return "\n".join(lines)
