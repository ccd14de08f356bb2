"""The page's accuracies: what they say in a sentence, the table, and plots."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from d3hr_ray.datasets.source import data_name
from d3hr_ray.evaluation.ranking import accuracy_of, summarise
from d3hr_ray.layout import REPORT
from d3hr_ray.report import plots
from d3hr_ray.report.html import figure
from d3hr_ray.report.meaning import meaning
from d3hr_ray.report.names import label_of
from d3hr_ray.store import Store


def accuracy_sections(store: Store, rows: list[dict[str, Any]], classes: list[str]) -> Iterator[str]:
    """A section per test set: the sweep's and the held-out one's numbers never mix. Plots go into report/ too."""
    tested = sorted({str(r.get("data")) for r in rows})
    titles = {data: data_name(data) for data in tested}
    for data in tested:
        here = [r for r in rows if str(r.get("data")) == data]
        title = titles[data] if len(set(titles.values())) == len(tested) else data
        yield f"<h2>Accuracy on {escape(title)}</h2>"
        yield from (f"<p>{escape(line)}</p>" for line in meaning(here))
        yield accuracy_table(here)
        yield '<p class="note">Last-epoch top-1 in percent, mean ± 95 % interval over sets (of one set: over '
        yield "students), of two sets: both values. Bold: a column's best.</p>"
        slug = "".join(c if c.isalnum() else "-" for c in data.rpartition("://")[2])[-40:].strip("-")
        yield from _plots(store, here, classes or [str(k) for k in range(len(here[0]["per_class"]))], slug)


def _plots(store: Store, rows: list[dict[str, Any]], names: list[str], slug: str) -> Iterator[str]:
    drawn = {
        "accuracy-by-ipc": ("Accuracy by images per class, each kind at its best setting.", plots.by_ipc(rows)),
        "accuracy-by-timestep": ("Accuracy against the timestep of the Gaussians.", plots.by_timestep(rows)),
        "seeds": ("Spread over seeds: searches beside random draws and real images.", plots.boxes(rows)),
        "matching-and-accuracy": ("Matching loss and accuracy of each set.", plots.against_loss(rows)),
        "per-class": ("Accuracy per class.", plots.per_class(rows, names)),
        "confusion": ("Which class is taken for which.", plots.confusions(rows, names)),
    }
    for name, (caption, png) in drawn.items():
        if png is not None:
            store.write_bytes(f"{REPORT}/{slug}-{name}.png", png)
            yield figure(png, caption)


def accuracy_table(rows: Sequence[dict[str, Any]]) -> str:
    """Sets down, student x protocol x IPC across."""
    columns = sorted({(r["arch"], r["protocol"], r["ipc"] or 0) for r in rows if r["method"] != "real-full"})
    cells = {}
    for cell in summarise(rows, SHOWN):
        cells[_kind(cell), cell["arch"], cell["protocol"], cell["ipc"] or 0] = cell
    full = {(k[1], k[2]): c for k, c in cells.items() if c["method"] == "real-full"}
    kinds = sorted({k[0] for k, c in cells.items() if c["method"] != "real-full"})
    best = {c: max((cells[k, *c]["top1_last"] for k in kinds if (k, *c) in cells), default=0) for c in columns}
    head = "".join(f"<th>{escape(a)}<br>{escape(p)}<br>IPC {i}</th>" for a, p, i in columns)
    lines = []
    for kind in kinds:
        line = "".join(_cell(cells.get((kind, *c)), best[c]) for c in columns)
        lines.append(f"<tr><td>{escape(kind)}</td>{line}</tr>")
    if full:
        lines.append("<tr><td>real-full</td>" + "".join(_cell(full.get(c[:2]), 2.0) for c in columns) + "</tr>")
    return f'<div class="wide"><table class="narrow"><tr><th>set</th>{head}</tr>{"".join(lines)}</table></div>'


SHOWN = (
    "set", "kind", "fidelity", "method", "search", "guidance", "inversion_guidance", "timestep", "arch", "protocol",
    "ipc",
)  # fmt: skip


def _kind(cell: dict[str, Any]) -> str:
    name = label_of(cell)
    if cell["timestep"] is not None:
        name += f" t={cell['timestep']}"
    if cell["guidance"] is not None and cell["method"] not in ("random", "real-random"):
        name += f" w={cell['inversion_guidance']:g}/{cell['guidance']:g}"
    return name


def _cell(cell: dict[str, Any] | None, best: float) -> str:
    if cell is None:
        return "<td></td>"
    strong = ' class="best"' if cell["top1_last"] >= best else ""
    return f'<td{strong} title="n = {cell["n"]}">{accuracy_of(cell)}</td>'
