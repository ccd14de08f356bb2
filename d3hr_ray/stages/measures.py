"""Measures of a run's latents, without a network: how well subsets match Gaussians, how close to normal classes are.

D3HR rests on the second (Lemma 3.1 and Figure 1 of the paper): inversion should bring a class nearer to normal. The
tests run on the run's probes: up to 200 images of each of the first 10 classes.
"""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from d3hr_ray.layout import LATENTS, PROBES, gaussian_file, subset_file, subset_folder
from d3hr_ray.numerics import groups
from d3hr_ray.numerics.seeds import normal
from d3hr_ray.runtime.tasks import bounded
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.fit import Gaussians, read_gaussians, share_gaussians, to_tensors
from d3hr_ray.store import Store

MIN_IMAGES = 8  # Shapiro-Wilk says nothing below
MAX_DIMS = 512  # dims tested per class: evenly spaced, as neighbours say the same


def matching_table(store: Store, spec: SetSpec, rejected: list[int], names: list[str]) -> pa.Table:
    """Per class: images read and rejected, the mean and std matching loss, a random draw's, and both skewnesses."""
    assert spec.timestep is not None, "noise has nothing to match"
    blocks = range(len(spec.blocks(len(names))))
    gaussians = share_gaussians(store, [spec.timestep])[spec.timestep]
    found = dict(bounded(matching_block, [(b, (store, spec, b, gaussians)) for b in blocks]))
    losses = [row for b in blocks for row in found[b]]
    counts = store.read_table(gaussian_file(spec.timestep), columns=["label", "count"]).sort_by("label")["count"]
    rows = [
        {"set": spec.name, "label": label, "class": name, "images": count + lost, "rejected": lost} | loss
        for label, (name, count, lost, loss) in enumerate(zip(names, counts.to_pylist(), rejected, losses, strict=True))
    ]
    return pa.Table.from_pylist(rows)


def matching_block(store: Store, spec: SetSpec, block: int, gaussians: Gaussians) -> list[dict[str, float]]:
    """Losses of each label of a subsets/ file, in label order."""
    means_KD, stds_KD = gaussians
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
            row[f"{prefix}skew"] = float(groups.skewness(groups.varying(group_ND[None], std_D)).norm())
        rows.append(row)
    return rows


def moment_scores(run: Store, spec: SetSpec) -> dict[str, float]:
    """Norms of the errors of the subset's mean and std against the class Gaussian, averaged.

    NaN without a Gaussian, and for subsets of clean latents: a Gaussian is of noised ones.
    """
    nothing = {"mean_error": float("nan"), "std_error": float("nan")}
    folder, timestep = subset_folder(spec), spec.timestep
    if timestep is None or spec.is_clean or not run.exists(gaussian_file(timestep)) or not run.list(folder):
        return nothing
    table = run.read_table(folder, columns=["label", "latent"])
    labels, latents = to_tensors(table, "latent")
    mean_KD, std_KD = read_gaussians(run, timestep)
    errors = defaultdict(list)
    for label in labels.unique().tolist():
        own_ND = latents[labels == label]
        errors["mean_error"].append(float((own_ND.mean(0) - mean_KD[label]).norm()))
        if len(own_ND) > 1:
            errors["std_error"].append(float((own_ND.std(0) - std_KD[label]).norm()))
    return nothing | {key: float(np.mean(values)) for key, values in errors.items()}


def probe_latents(store: Store, timesteps: tuple[int, ...]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Labels (N,) of the probes and their latents {t: (N, D) float64}, t = 0 being the VAE's."""
    labels: list[np.ndarray] = []
    states: dict[int, list[np.ndarray]] = {t: [] for t in (0, *timesteps)}
    for file in store.list(PROBES):
        before = store.read_table(f"{PROBES}/{file}")
        after = store.read_table(f"{LATENTS}/{file}")
        after = after.filter(pc.is_in(after["image_id"], before["image_id"].combine_chunks()))
        labels.append(before["label"].to_numpy())
        for t, parts in states.items():
            lists = (after if t else before)[f"z_{t}"].combine_chunks()
            parts.append(lists.flatten().to_numpy().reshape(len(lists), -1).astype(np.float64))
    return np.concatenate(labels), {t: np.concatenate(parts) for t, parts in states.items()}


def normality_table(labels: np.ndarray, states: dict[int, np.ndarray], names: list[str]) -> pa.Table:
    """Per (class, t): share of dims that fail Shapiro-Wilk at 5 %, mean |skewness|, mean |excess kurtosis|."""
    rows = []
    for label in np.unique(labels):
        chosen = labels == label
        if chosen.sum() >= MIN_IMAGES:
            for t, z in states.items():
                rows.append({"label": int(label), "class": names[label], "timestep": t} | _normality(z[chosen]))
    return pa.Table.from_pylist(rows)


def _normality(z: np.ndarray) -> dict[str, float | int]:
    """(N, D) => the measures over at most MAX_DIMS dims. A normal sample fails Shapiro in 5 % of its dims."""
    from scipy import stats  # takes seconds to import

    dims = np.unique(np.linspace(0, z.shape[1] - 1, min(MAX_DIMS, z.shape[1])).astype(int))
    z = z[:, dims]
    z = z[:, z.std(0) > 0]
    failed = [stats.shapiro(column).pvalue < 0.05 for column in z.T]
    return {
        "images": len(z),
        "shapiro_failed": float(np.mean(failed)) if failed else float("nan"),
        "abs_skew": float(np.abs(stats.skew(z, 0)).mean()),
        "abs_kurtosis": float(np.abs(stats.kurtosis(z, 0)).mean()),
    }
