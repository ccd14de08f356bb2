"""All plots, as PNG bytes: of accuracies, of how normal latents are, and t-SNE. No display is needed.

A plot of accuracies takes rows of evaluations/results.parquet (accuracies in [0, 1]) and is None where these hold
nothing to plot. They are drawn as last-epoch top-1 in percent; bars and bands are 95 % intervals, of two values their
range.
"""

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pyarrow as pa
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator

from d3hr_ray.evaluation.baselines import DRAWN
from d3hr_ray.evaluation.ranking import spread, summarise
from d3hr_ray.report.names import label_of

Rows = Sequence[dict[str, Any]]
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # images per class
MOST_CLASSES = 30  # in plots that show every class
LINE = ("set", "inversion_guidance", "guidance", "arch", "protocol")  # what a line of by_timestep is of


def by_timestep(rows: Rows) -> bytes | None:
    """D3HR's Figure 5: accuracy against the timestep of the Gaussians, a line per guidance, a panel per IPC."""
    rows = [r for r in rows if r["timestep"] is not None]
    panels = sorted({r["ipc"] for r in rows})
    if len({r["timestep"] for r in rows}) < 2:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.4), squeeze=False)
    named = [r | {"set": label_of(r)} for r in rows]
    colours = _colours(_line_name(r) for r in named)
    for axis, ipc in zip(axes[0], panels, strict=True):
        cells = summarise([r for r in named if r["ipc"] == ipc], [*LINE, "timestep"])
        for name in sorted({_line_name(c) for c in cells}):
            points = sorted((c for c in cells if _line_name(c) == name), key=lambda c: c["timestep"])
            _line(axis, [p["timestep"] for p in points], points, name, colours[name])
        axis.set(title=f"IPC {ipc}", xlabel="timestep t of the Gaussians", ylabel="top-1 (%)")
        axis.grid(alpha=0.3)
    _legend(figure)
    return save_figure(figure)


def _line_name(cell: dict[str, Any]) -> str:
    guidance = f"{cell['inversion_guidance']:g}/{cell['guidance']:g}"
    return f"{cell['set']} guidance {guidance}, {cell['arch']}, {cell['protocol']}"


def _colours(names: Iterable[str]) -> dict[str, Any]:
    """A colour of its own for every name, the same in all panels."""
    found = sorted(set(names))
    few = len(found) <= 20  # as many as tab20 has
    shades = plt.get_cmap("tab20")(range(20)) if few else plt.get_cmap("turbo")(np.linspace(0, 1, len(found)))
    return dict(zip(found, map(tuple, shades), strict=False))


def _grid(panels: int, width: float, height: float) -> tuple[plt.Figure, Sequence[plt.Axes]]:
    """A figure of so many panels, each of a size in inches, at most three side by side."""
    columns = min(3, panels)
    lines = -(-panels // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(width * columns, height * lines), squeeze=False)
    for axis in axes.flat[panels:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:panels])


def _legend(figure: plt.Figure) -> None:
    """One legend beside all panels, each name once."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        lines, names = axis.get_legend_handles_labels()
        handles |= dict(zip(names, lines, strict=True))
    figure.tight_layout()
    found = sorted(handles)
    drawn = [handles[name] for name in found]
    figure.legend(drawn, found, fontsize=7, loc="upper left", bbox_to_anchor=(1, 0.97))


def _line(axis: plt.Axes, x: Sequence[float], cells: Rows, name: str, colour: Any) -> None:
    mean = [100 * c["top1_last"] for c in cells]
    low, high = (100 * np.array([c[f"top1_last_{end}"] for c in cells]) for end in ("low", "high"))
    axis.plot(x, mean, marker="o", label=name, color=colour)
    axis.fill_between(x, low.clip(0), high.clip(max=100), alpha=0.15, color=colour)


def one_setting(rows: Rows) -> list[dict[str, Any]]:
    """Of every kind of set only the timestep, guidances and candidates with most IPCs, the best of these."""
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], list[dict[str, Any]]]] = {}
    for row in rows:
        setting = tuple(row.get(name) for name in ("timestep", "inversion_guidance", "guidance", "candidates", "lr"))
        groups.setdefault((label_of(row), row["arch"], row["protocol"]), {}).setdefault(setting, []).append(row)
    chosen = []
    for settings in groups.values():
        mean = {k: (len({m["ipc"] for m in v}), np.mean([m["top1_last"] for m in v])) for k, v in settings.items()}
        chosen += settings[max(mean, key=lambda k: mean[k])]
    return chosen


def _of_sets(rows: Rows, name: str) -> np.ndarray:
    """A figure of each set in percent (S, ...), its students' mean; of a single set its students': as in tables."""
    sets: dict[Any, list[Any]] = {}
    for row in rows:
        sets.setdefault(row["set_hash"], []).append(row[name])
    each = [np.mean(values, 0) for values in sets.values()] if len(sets) > 1 else next(iter(sets.values()))
    return 100 * np.array(each)


def by_ipc(rows: Rows) -> bytes | None:
    """Accuracy against images per class, a line per kind of set, a panel per student and protocol."""
    rows = one_setting([r for r in rows if r["ipc"]])
    panels = sorted({(r["arch"], r["protocol"]) for r in rows if r["method"] != "real-full"})
    if not panels:
        return None
    figure, axes = _grid(len(panels), 4.6, 3.6)
    colours = _colours(map(label_of, rows))
    for axis, panel in zip(axes, panels, strict=True):
        here = [r for r in rows if (r["arch"], r["protocol"]) == panel]
        for kind in sorted({label_of(r) for r in here}):
            members = [r for r in here if label_of(r) == kind]
            cells = sorted(summarise(members, ["ipc"]), key=lambda c: c["ipc"])
            if members[0]["method"] == "real-full":
                axis.axhline(100 * cells[0]["top1_last"], color="k", ls=":", lw=1, label=kind)
            else:
                _line(axis, [c["ipc"] for c in cells], cells, kind, colours[kind])
        axis.set(xscale="log", title=f"{panel[0]}, {panel[1]}", xlabel="images per class", ylabel="top-1 (%)")
        ends = [r["ipc"] for r in here if r["method"] != "real-full"]
        ticks = [t for t in TICKS if min(ends) <= t <= max(ends)] or sorted(set(ends))
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    _legend(figure)
    return save_figure(figure)


def boxes(rows: Rows) -> bytes | None:
    """D3HR's Figure 4: accuracies over seeds as boxes, a row per kind, a panel per IPC, student and protocol."""
    rows = one_setting([r for r in rows if r["ipc"] and r["method"] != "real-full"])
    counts = summarise(rows, ["set", "arch", "protocol"])
    if not counts or max(c["n"] for c in counts) < 3:
        return None
    panels = sorted({(r["ipc"], r["arch"], r["protocol"]) for r in rows})
    most = max(len({label_of(r) for r in rows if (r["ipc"], r["arch"], r["protocol"]) == panel}) for panel in panels)
    figure, axes = _grid(len(panels), 5, 1 + 0.17 * most)  # a line of text per kind
    for axis, panel in zip(axes, panels, strict=True):
        here = [r for r in rows if (r["ipc"], r["arch"], r["protocol"]) == panel]
        kinds = sorted({label_of(r) for r in here}, reverse=True)  # the first on top
        values = [_of_sets([r for r in here if label_of(r) == kind], "top1_last") for kind in kinds]
        names = [f"{k}, n={len(v)}" for k, v in zip(kinds, values, strict=True)]
        axis.boxplot(values, tick_labels=names, widths=0.6, orientation="horizontal")
        axis.tick_params(axis="y", labelsize=6)
        axis.set_title(f"IPC {panel[0]}, {panel[1]}, {panel[2]}", fontsize=8)
        axis.set_xlabel("top-1 (%)", fontsize=8)
        axis.grid(alpha=0.3, axis="x")
    figure.tight_layout()
    return save_figure(figure)


def against_loss(rows: Rows) -> bytes | None:
    """Accuracy of each set against how far its latents are from their Gaussian: does matching pay?

    Under the student and protocol with most rows alone: others reach other accuracies on the same sets.
    """
    rows = [r for r in rows if r.get("score") is not None and np.isfinite(r["score"]) and "cao2" not in r["method"]]
    ways = Counter((r["arch"], r["protocol"]) for r in rows)
    way = max(sorted(ways), key=lambda w: ways[w], default=None)
    rows = [r for r in rows if (r["arch"], r["protocol"]) == way]
    if len({r["set_hash"] for r in rows}) < 3:
        return None
    panels = sorted({r["ipc"] for r in rows})
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3), squeeze=False)
    for axis, ipc in zip(axes[0], panels, strict=True):
        for kind in sorted({label_of(r) for r in rows}):
            here = [r for r in rows if r["ipc"] == ipc and label_of(r) == kind]
            axis.scatter([r["score"] for r in here], [100 * r["top1_last"] for r in here], s=10, alpha=0.6, label=kind)
        axis.set(title=f"IPC {ipc}", xlabel="matching loss (mean over classes)", xscale="symlog")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("top-1 (%)")
    figure.suptitle(", ".join(way or ()), fontsize=9)
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    return save_figure(figure)


def per_class(rows: Rows, classes: Sequence[str]) -> bytes | None:
    """Mean accuracy of every class with its interval, the best distilled kind beside random real images."""
    if len(classes) > MOST_CLASSES:
        return None
    chosen = _chosen(rows)
    if not chosen:
        return None
    figure, axis = plt.subplots(figsize=(max(5, 0.55 * len(classes)), 3))
    for i, (kind, members) in enumerate(chosen.items()):
        stats = [spread(values) for values in _of_sets(members, "per_class").T]
        mean = np.array([s.mean for s in stats])
        ends = [mean - [s.low for s in stats], [s.high for s in stats] - mean]
        x = np.arange(len(classes)) + (i - (len(chosen) - 1) / 2) * 0.38
        axis.bar(x, mean, 0.36, yerr=ends, label=kind, capsize=2)
    axis.set_xticks(range(len(classes)), classes, rotation=45 if max(map(len, classes)) > 3 else 0)
    axis.set(ylabel="accuracy (%)", ylim=(0, 101))
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(alpha=0.3, axis="y")
    return save_figure(figure)


def confusions(rows: Rows, classes: Sequence[str]) -> bytes | None:
    """Which class is taken for which, in percent of the class, off the diagonal only; same sets as `per_class`."""
    chosen = {k: [m for m in v if m.get("confusion")] for k, v in _chosen(rows).items()}
    chosen = {k: v for k, v in chosen.items() if v}
    if not chosen or len(classes) > MOST_CLASSES:
        return None
    figure, axes = plt.subplots(1, len(chosen), figsize=(4.6 * len(chosen), 4), squeeze=False)
    for axis, (kind, members) in zip(axes[0], chosen.items(), strict=True):
        counts = np.array([m["confusion"] for m in members])
        share = (counts / counts.sum(2, keepdims=True).clip(min=1)).mean(0)
        np.fill_diagonal(share, 0)
        drawn = axis.imshow(100 * share, cmap="magma_r", vmin=0)
        figure.colorbar(drawn, ax=axis, shrink=0.8)
        axis.set_title(f"{kind}: errors (% of class)", fontsize=9)
        axis.set_xticks(range(len(classes)), classes, fontsize=7, rotation=90 if max(map(len, classes)) > 3 else 0)
        axis.set_yticks(range(len(classes)), classes, fontsize=7)
        axis.set(xlabel="predicted", ylabel="true")
    return save_figure(figure)


def _chosen(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """The best distilled kind and real-random, at the middle IPC under the student and protocol with most rows."""
    rows = one_setting([r for r in rows if r["ipc"] and r["method"] != "real-full"])
    panels: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["arch"], row["protocol"], row["ipc"]), []).append(row)
    if not panels:
        return {}
    here = max(panels.values(), key=lambda members: (len(members), -abs(members[0]["ipc"] - 10)))
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in here:
        kinds.setdefault(f"{label_of(row)}, IPC {row['ipc']}", []).append(row)
    real = {k: v for k, v in kinds.items() if v[0]["method"] == "real-random"}
    made = {k: v for k, v in kinds.items() if v[0]["method"] not in DRAWN}
    best = max(made, key=lambda k: np.mean([m["top1_last"] for m in made[k]])) if made else None
    return ({best: made[best]} if best else {}) | real


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


def save_figure(figure: plt.Figure) -> bytes:
    """Figure => PNG bytes; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
