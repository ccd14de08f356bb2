"""report/index.html: one page that holds everything, images embedded, readable on a phone, no script and no network."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import pyarrow as pa

from d3hr_ray.datasets.images import Loadable
from d3hr_ray.evaluation.ranking import ranking, summarise
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.evaluation.trials import records
from d3hr_ray.layout import CLASSES, DISTILLED, REPORT, RUN
from d3hr_ray.report import plots
from d3hr_ray.report.names import disambiguate, disambiguate_sets, label_of
from d3hr_ray.report.sheets import SHEETS, sheet_of, write_sheets
from d3hr_ray.report.tables import accuracy_of, format_ranking
from d3hr_ray.store import Store

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1100px;padding:1rem;color:#1c2330;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d5dae3;padding-bottom:.2rem}
img{max-width:100%;height:auto;display:block}figure{margin:1rem 0}figcaption{color:#566;font-size:.9rem}
.pair{display:flex;flex-wrap:wrap;gap:1rem}.pair figure{flex:1 1 320px;margin:0;min-width:0}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e6e9ef;white-space:nowrap}
th:first-child,td:first-child,.facts td{text-align:left}.facts td{white-space:normal}
tr:hover td{background:#f4f6fa}.best{font-weight:700}
code{background:#f0f2f6;padding:0 .25rem;border-radius:3px}
@media(prefers-color-scheme:dark){body{background:#12161d;color:#dde3ee}th,td,h2{border-color:#333c4a}
tr:hover td{background:#1b212b}code{background:#222936}img{background:#fff}figcaption{color:#9ab}}
"""


PAGE = f"{REPORT}/index.html"


def report_evaluation(
    store: Store, real: Loadable, rows: Sequence[dict[str, Any]], sets: Sequence[DistilledSet]
) -> str:
    """Write report/ of an evaluation or a sweep and say where.

    That is the page, contact sheets of `sets` and of real images, and DD-Ranking's scores. The scores are of `rows`
    alone; the page's tables are of all records in the folder.
    """
    lines = []
    store.write_bytes(f"{REPORT}/real.png", sheet_of(real.load(glance=True), "real test images"))
    write_sheets(store, rows, sets)
    if scores := ranking(disambiguate_sets(rows)):
        store.write_csv(f"{REPORT}/ranking.csv", pa.Table.from_pylist(scores))
        lines = [format_ranking(scores)]
    return "\n".join([*lines, f"report: {write_page(store)}"])


def write_page(store: Store) -> str:
    """Gather what a run folder holds into report/index.html and return its URI; empty sections are left out."""
    rows = disambiguate([r for r in records(store) if r["protocol"] != "teacher"])
    run = store.read_json(RUN) if store.exists(RUN) else None
    classes = store.read_table(CLASSES)["name"].to_pylist() if store.exists(CLASSES) else []
    # Not the folder's name where there is a run: equal runs have equal reports, wherever they lie.
    name = f"{run['config']['data']['uri']}, {run['config']['method']}" if run else store.name
    body = [f"<h1>{escape(name)}</h1>", _facts(run, rows), *_accuracy(store, rows, classes), *_sheets(store)]
    body += _stored(store)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(name)}: d3hr_ray report</title><style>{STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>"
    )
    store.write_bytes(PAGE, page.encode())
    return f"{store.uri}/{PAGE}"


GUIDED = ("inversion", "synthesis")


def _facts(run: dict[str, Any] | None, rows: Sequence[dict[str, Any]]) -> str:
    facts: list[tuple[str, object]] = []
    if run:
        config = run["config"]
        timesteps = ", ".join(map(str, config["inversion"]["timesteps"]))
        facts = [
            ("data", config["data"]["uri"]),
            ("images", f"{run['inputs']['images']:,}"),
            ("model", config["model"]["name"]),
            ("method", f"{config['method']}, {config['search']['method']} search, t = {timesteps}"),
            ("inversion / sampling guidance", " / ".join(f"{config[k]['guidance']:g}" for k in GUIDED)),
            ("seed", run["seed"]),
            ("versions", ", ".join(f"{k} {v}" for k, v in run["versions"].items())),
        ]
    if rows:
        teachers = sorted({f"{r['teacher']} ({r['teacher_top1']:.1%})" for r in rows if r["teacher"]})
        facts += [("students trained", len(rows)), ("teachers", ", ".join(teachers) or "none")]
        facts += [("tested on", ", ".join(sorted({str(r.get("data")) for r in rows})))]
    cells = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in facts)
    return f'<table class="facts">{cells}</table>'


def _accuracy(store: Store, rows: list[dict[str, Any]], classes: list[str]) -> Iterable[str]:
    """A section per test set: the sweep's and the held-out one's numbers never mix."""
    for data in sorted({str(r.get("data")) for r in rows}):
        here = [r for r in rows if str(r.get("data")) == data]
        slug = "".join(c if c.isalnum() else "-" for c in data.rpartition("://")[2])[-40:].strip("-")
        yield f"<h2>Accuracy on {escape(data)}</h2>"
        yield "<p>Last-epoch top-1 in percent, mean ± 95 % interval over sets (of one set: over students), "
        yield "of two sets: both values. Bold: a column's best.</p>"
        yield _table(here)
        names = classes or [str(k) for k in range(len(here[0]["per_class"]))]
        drawn = {
            "accuracy-by-ipc": (
                "Accuracy by images per class, each kind at its best setting.",
                plots.by_ipc(here),
            ),
            "accuracy-by-timestep": ("Accuracy against the timestep of the Gaussians.", plots.by_timestep(here)),
            "seeds": ("Spread over seeds: searches beside random draws and real images.", plots.boxes(here)),
            "matching-and-accuracy": ("Matching loss and accuracy of each set.", plots.against_loss(here)),
            "per-class": ("Accuracy per class.", plots.per_class(here, names)),
            "confusion": ("Which class is taken for which.", plots.confusions(here, names)),
        }
        for name, (caption, png) in drawn.items():
            if png is not None:
                store.write_bytes(f"{REPORT}/{slug}-{name}.png", png)
                yield figure(png, caption)


def _table(rows: Sequence[dict[str, Any]]) -> str:
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
    return f'<div class="wide"><table><tr><th>set</th>{head}</tr>{"".join(lines)}</table></div>'


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


def _sheets(store: Store) -> Iterable[str]:
    """Contact sheets, two and two: real images, the run's sets, then those evaluated last, the best first."""
    drawn = set(store.list(REPORT))
    captions = {f"{REPORT}/{name}.png": name for name in store.at(DISTILLED).folders() if f"{name}.png" in drawn}
    if store.exists(f"{SHEETS}/names.json"):
        captions |= {f"{SHEETS}/{file}": name for file, name in store.read_json(f"{SHEETS}/names.json").items()}
    if captions:
        yield "<h2>Images</h2>"
    if captions and store.exists(f"{REPORT}/real.png"):
        captions = {f"{REPORT}/real.png": "real images: the first of each class in the test set"} | captions
    sheets = [figure(store.read_bytes(file), caption) for file, caption in captions.items()]
    for at in range(0, len(sheets), 2):
        yield f'<div class="pair">{"".join(sheets[at : at + 2])}</div>'


def _stored(store: Store) -> Iterable[str]:
    """What the distill run measured of its latents."""
    wanted = {
        "normality.png": "How far latent dimensions are from normal, before and after inversion.",
        "tsne.png": "t-SNE of one class, before and after inversion (the paper's Figure 1).",
    }
    there = [n for n in wanted if store.exists(f"{REPORT}/{n}")]
    if there:
        yield "<h2>Normality</h2>"
    for name in there:
        yield figure(store.read_bytes(f"{REPORT}/{name}"), wanted[name])


def figure(png: bytes, caption: str) -> str:
    """An image with its caption, the bytes inside the page."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
