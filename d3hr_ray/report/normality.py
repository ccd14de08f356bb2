"""Is each class close to one Gaussian? Shapiro-Wilk, skewness and kurtosis per dim, before and after inversion.

D3HR rests on it (Lemma 3.1 and Figure 1 of the paper): inversion should bring a class nearer to normal. The tests run
on the run's probes: up to 200 images of each of the first 10 classes.
"""

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib import pyplot as plt
from scipy import stats

from d3hr_ray.layout import PROBES
from d3hr_ray.report.contact import save_figure
from d3hr_ray.store import Store

MIN_IMAGES = 8  # Shapiro-Wilk says nothing below
MAX_DIMS = 512  # dims tested per class: evenly spaced, as neighbours say the same


def probe_latents(store: Store, timesteps: tuple[int, ...]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Labels (N,) of the probes and their latents {t: (N, D) float64}, t = 0 being the VAE's."""
    labels: list[np.ndarray] = []
    states: dict[int, list[np.ndarray]] = {t: [] for t in (0, *timesteps)}
    for file in store.list(PROBES):
        before = store.read_table(f"{PROBES}/{file}")
        after = store.read_table(f"latents/{file}")
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


def normality_figure(table: pa.Table) -> bytes:
    """The three measures against t, a line per class and their mean, as PNG."""
    rows = table.to_pylist()
    steps = sorted({r["timestep"] for r in rows})
    titles = {
        "shapiro_failed": "dims failing Shapiro at 5 %\n(a normal sample: 0.05)",
        "abs_skew": "mean |skewness|",
        "abs_kurtosis": "mean |excess kurtosis|",
    }
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        per_class = {c: [r[key] for r in rows if r["label"] == c] for c in dict.fromkeys(r["label"] for r in rows)}
        for values in per_class.values():
            axis.plot(range(len(steps)), values, color="0.75", linewidth=1)
        mean = np.mean(list(per_class.values()), 0)
        axis.plot(range(len(steps)), mean, "o-", color="C0", label="mean of classes")
        axis.set_xticks(range(len(steps)), ["VAE" if t == 0 else f"t={t}" for t in steps])
        axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=9)
    axes[0].axhline(0.05, color="C3", linestyle=":", linewidth=1)
    axes[0].legend(fontsize=8)
    return save_figure(figure)


def tsne_figure(labels: np.ndarray, states: dict[int, np.ndarray], label: int, name: str, seed: int) -> bytes:
    """One class in VAE space and in noise space beside draws of its fitted Gaussian: the paper's Figure 1, as PNG."""
    from sklearn.manifold import TSNE  # takes seconds to import

    t = max(states)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.8))
    for axis, step in zip(axes, (0, t), strict=True):
        z = states[step][labels == label]
        draws = np.random.default_rng(seed).normal(z.mean(0), z.std(0, ddof=1), z.shape)
        both = np.concatenate([z, draws])
        perplexity = min(30.0, (len(both) - 1) / 3)
        flat = TSNE(perplexity=perplexity, random_state=seed % 2**32, init="pca").fit_transform(both)
        axis.scatter(*flat[len(z) :].T, s=10, color="0.75", label="draws of the fitted Gaussian")
        axis.scatter(*flat[: len(z)].T, s=10, color="C0", label="images")
        axis.set_title(f"class {name}: " + ("VAE space" if step == 0 else f"noise space, t={step}"), fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].legend(fontsize=8)
    return save_figure(figure)
