"""How well each subset matches its Gaussian, beside a single random draw."""

import pyarrow as pa
import torch

from d3hr_ray.numerics import groups
from d3hr_ray.stages.fit import read_gaussians
from d3hr_ray.stages.search import Variant
from d3hr_ray.store import Store


def matching_table(store: Store, variant: Variant, read: list[int], rejected: list[int], names: list[str]) -> pa.Table:
    """Per class: images read and rejected, the mean and std matching loss, a random draw's, and both skewnesses."""
    subsets = store.read_table(f"subsets/{variant.name}", columns=["label", "latent"])
    gaussians = None if variant.timestep is None else read_gaussians(store, variant.timestep)
    rows = []
    for label, name in enumerate(names):
        row: dict[str, object] = {
            "set": variant.name,
            "label": label,
            "class": name,
            "images": read[label],
            "rejected": rejected[label],
        }
        if gaussians is not None:
            mean_D, std_D = gaussians[0][label], gaussians[1][label]
            chosen = subsets.filter(pa.array(label == x for x in subsets["label"].to_pylist()))
            latents_ND = torch.tensor(chosen["latent"].to_pylist())
            draw_ND = groups.random_subset(mean_D, std_D, variant.ipc, 0, 0, variant.seed, label)
            for prefix, subset_ND in (("", latents_ND), ("random_", draw_ND)):
                row[f"{prefix}loss"] = float(groups.scores(subset_ND[None], mean_D, std_D, 0.0))
                row[f"{prefix}skew"] = float(groups.skewness(subset_ND[None]).norm())
        rows.append(row)
    return pa.Table.from_pylist(rows)


def format_table(table: pa.Table, limit: int = 20) -> str:
    """The table as text; above `limit` classes, their totals and means."""
    rows = table.to_pylist()
    matched = "loss" in table.column_names
    lines = [f"{'class':<22} {'images':>8} {'rejected':>8} {'loss':>10} {'random draw':>11} {'ratio':>8}"]
    if len(rows) > limit:
        total: dict[str, object] = {"class": f"all {len(rows)} classes"}
        for key in ("images", "rejected"):
            total[key] = sum(r[key] for r in rows)
        for key in ("loss", "random_loss") if matched else ():
            total[key] = sum(r[key] for r in rows) / len(rows)
        rows = [total]
    for r in rows:
        text = f"{r['class'][:22]:<22} {r['images']:>8} {r['rejected']:>8}"
        if matched:
            text += f" {r['loss']:>10.3g} {r['random_loss']:>11.4g} {r['loss'] / r['random_loss']:>8.1e}"
        lines.append(text)
    return "\n".join(lines)
