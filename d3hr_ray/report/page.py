"""report/index.html: one page that holds everything, images embedded, readable on a phone, no script and no network.

A distill run, an evaluation and a sweep write it, with the CSVs and plots beside it.
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa

from d3hr_ray.config import data_config
from d3hr_ray.datasets.images import Loadable
from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.look import Seen, look_of
from d3hr_ray.datasets.source import data_name
from d3hr_ray.evaluation.ranking import ranking
from d3hr_ray.evaluation.sets import DistilledSet, Made, run_of
from d3hr_ray.evaluation.trials import records
from d3hr_ray.layout import (
    CARD,
    CLASSES,
    DISTILLED,
    EVALUATIONS,
    GAUSSIANS,
    MANIFEST,
    METADATA,
    PROBES,
    REALS,
    REJECTED,
    REPORT,
    RESULTS,
    RUN,
    finished,
    set_folder,
)
from d3hr_ray.methods.d3hr import Run
from d3hr_ray.report.accuracy import accuracy_sections, after_distilling, evaluating, resizing, write_card
from d3hr_ray.report.names import disambiguate, disambiguate_sets
from d3hr_ray.report.plots import normality_figure, tsne_figure
from d3hr_ray.report.sheets import (
    TESTED,
    contact_sheet,
    document,
    figure,
    images_section,
    keep_reals,
    link,
    sheet_of,
    sheets_section,
    table,
    write_sheets,
)
from d3hr_ray.report.tables import MATCHING_HEAD, chosen_text, format_ranking, matching_rows, matching_text
from d3hr_ray.runs import close_run
from d3hr_ray.runtime.summary import format_summary, summary
from d3hr_ray.sets import sets_of
from d3hr_ray.stages.choose import chosen_table
from d3hr_ray.stages.measures import MIN_IMAGES, matching_table, normality_table, probe_latents
from d3hr_ray.store import Store

PAGE = f"{REPORT}/index.html"
METHODS = {
    "d3hr": "D3HR", "cao2": "CaO2", "d3hr+cao2": "D3HR and CaO2", "gaussian": "a random draw of the Gaussians",
    "dit": "plain sampling", "random": "a random choice of real images",
}  # fmt: skip
NORMALITY = {
    "normality.png": "How far latent dimensions are from normal, before and after inversion.",
    "tsne.png": "t-SNE of one class, before and after inversion (the paper's Figure 1).",
}


def report_evaluation(
    store: Store,
    real: Loadable,
    rows: Sequence[dict[str, Any]],
    sets: Sequence[DistilledSet],
    show_reals: bool = True,
) -> str:
    """Write report/ of an evaluation or a sweep and say where.

    That is the page, contact sheets of `sets`, DD-Ranking's scores, and real images if they may be shown. The scores
    are of `rows` alone; the page's tables are of all records in the folder.
    """
    lines = []
    runs = [run_of(found.images.store) for found in sets if isinstance(found.images, Made)]
    show_reals = show_reals and all(may_show_reals(run) for run in [store, *runs] if run)
    if show_reals and not store.exists(REALS):
        store.write_bytes(TESTED, sheet_of(real.load(glance=True), "real test images"))
    elif not show_reals:
        for name in (TESTED, REALS):
            store.delete(name)
    write_sheets(store, rows, sets, show_reals)
    if scores := ranking(disambiguate_sets(rows)):
        store.write_csv(f"{REPORT}/ranking.csv", pa.Table.from_pylist(scores))
        lines = [format_ranking(scores)]
    return "\n".join([*lines, f"report: {write_page(store)}"])


def may_show_reals(store: Store) -> bool:
    """Whether the run of a folder was not distilled with --no-real-images."""
    return not store.exists(RUN) or bool(store.read_json(RUN).get("real_images", True))


def write_page(store: Store) -> str:
    """Gather what a run folder holds into report/index.html and return its URI; empty sections are left out."""
    rows = disambiguate([r for r in records(store) if r["protocol"] != "teacher"])
    run = store.read_json(RUN) if store.exists(RUN) else None
    classes = store.read_table(CLASSES)["name"].to_pylist() if store.exists(CLASSES) else []
    title = _title(run, rows)
    body = [f"<h1>{escape(title)}</h1>", *_lead(run, len(classes))]
    body += [*accuracy_sections(store, rows, classes), *_next(store, run, bool(rows))]
    body += [*images_section(store, run, classes), *sheets_section(store), *_matching(store, run), *_normality(store)]
    body += [*_files(store, run), *_facts(run, rows)]
    store.write_bytes(PAGE, document(f"{title}: d3hr_ray report", body))
    return f"{store.uri}/{PAGE}"


def _title(run: dict[str, Any] | None, rows: Sequence[dict[str, Any]]) -> str:
    """Not a path, and not the folder's name: equal runs have equal reports, wherever they lie."""
    if run:
        name, method = data_name(run["config"]["data"]["uri"]), METHODS[run["config"]["method"]]
        return f"{name}, distilled by {method}" if name else f"Images by {method}"
    return "Accuracy on " + ", ".join(sorted({data_name(str(r.get("data"))) for r in rows}))


def _lead(run: dict[str, Any] | None, classes: int) -> Iterator[str]:
    if run:
        sizes = " or ".join(map(str, sorted(run["config"]["search"]["ipc"])))
        images = run["inputs"]["images"]
        source = f"{images:,} real images of {classes} classes" if images else f"{classes} classes of the model"
        yield f"<p>{source}, and in their place small sets to train on: {sizes} images per class.</p>"


def _next(store: Store, run: dict[str, Any] | None, evaluated: bool) -> Iterator[str]:
    """The next command to type; RUN stands for the folder, whose name the page does not know."""
    if not run:
        return
    if not evaluated:
        command = evaluating("RUN", data_config(run["config"]["data"]))
        yield "<h2>Accuracy</h2><p>Not measured yet. Next, train students on the sets and on as many real images:</p>"
    elif store.list(GAUSSIANS):
        command = resizing("RUN")
        yield "<p>Next, sets of other sizes, without a look at the images:</p>"
    else:
        return
    yield f'<pre>{escape(command)}</pre><p class="note">RUN is the folder that this report/ lies in.</p>'


def _matching(store: Store, run: dict[str, Any] | None) -> Iterator[str]:
    """How well each set's latents match the Gaussians of their classes."""
    there = [n for n in store.list(REPORT) if n.startswith("matching-") and n.endswith(".csv")] if run else []
    if not there:
        return
    yield "<h2>Matching</h2><p>Loss: how far the mean and std of a class's chosen latents are from those of its "
    yield "Gaussian. Random draw: the same of a random draw from that Gaussian. Ratio: loss over random draw; "
    yield "the smaller, the better the few images stand for the class.</p>"
    for at, name in enumerate(there):
        rows = matching_rows(store.read_csv(f"{REPORT}/{name}", ("class",)).to_pylist())
        opened, title = " open" * (at == len(there) - 1), name.removeprefix("matching-").removesuffix(".csv")
        yield f"<details{opened}><summary>{escape(title)}</summary>{table(MATCHING_HEAD, rows, 'names')}</details>"


def _normality(store: Store) -> Iterator[str]:
    """What the distill run measured of its latents."""
    there = [n for n in NORMALITY if store.exists(f"{REPORT}/{n}")]
    if there:
        yield "<h2>Normality</h2><p>Why it matters: a class is kept as a Gaussian, so the nearer its latents are to "
        yield "normal, the more of the class a draw from that Gaussian shows.</p>"
    for name in there:
        yield figure(store.read_bytes(f"{REPORT}/{name}"), NORMALITY[name])


def _files(store: Store, run: dict[str, Any] | None) -> Iterator[str]:
    """Links to what lies beside the page."""
    items = [link(f"../{n}", n) for n in (f"{EVALUATIONS}/summary.csv", RESULTS) if store.exists(n)]
    items += [link(n, f"{REPORT}/{n}") for n in store.list(REPORT) if n.endswith(".csv")]
    for name in store.at(DISTILLED).folders() if run else []:
        folder = f"{DISTILLED}/{name}"
        parts = [link(f"../{folder}/{file}", text) for file, text in ((CARD, "card"), (MANIFEST, "manifest"))]
        items.append(f"{link(f'../{folder}/', folder)}: {', '.join(parts)}")
    if items:
        yield f"<h2>Files</h2><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def _facts(run: dict[str, Any] | None, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    facts: list[tuple[str, object]] = []
    if run:
        config = run["config"]
        timesteps = ", ".join(map(str, config["inversion"]["timesteps"]))
        facts = [
            ("data", config["data"]["uri"]),
            ("images", f"{run['inputs']['images']:,}"),
            ("model", config["model"]["name"]),
            ("method", f"{config['method']}, {config['search']['method']} search, t = {timesteps}"),
            (
                "inversion / sampling guidance",
                " / ".join(f"{config[k]['guidance']:g}" for k in ("inversion", "synthesis")),
            ),
            ("seed", run["seed"]),
            ("versions", ", ".join(f"{k} {v}" for k, v in run["versions"].items())),
        ]
    if rows:
        teachers = sorted({f"{r['teacher']} ({r['teacher_top1']:.1%})" for r in rows if r["teacher"]})
        facts += [("students trained", len(rows)), ("teachers", ", ".join(teachers) or "none")]
        facts += [("tested on", ", ".join(sorted({str(r.get("data")) for r in rows})))]
    yield f"<h2>How it was made</h2>{table((), facts, 'facts')}"


def report(run: Run, listing: Listing | None, show_reals: bool = True) -> str:
    """Write report/, close the run, and return the summary as text.

    Real images are read from the `listing`, or are those of the run whose Gaussians this one has, if they may be shown.
    """
    _write_reals(run, listing, show_reals)
    names = run.classes["name"].to_pylist()
    rejected = _rejected_per_class(run.store, len(names))
    if run.store.exists(PROBES) and not run.store.exists(f"{REPORT}/normality.csv"):
        _write_normality(run, names)
    lines, sets, rows = [], {}, records(run.store)
    for spec in sets_of(run.config):
        folder = set_folder(spec)
        images = run.store.read_table(f"{folder}/{METADATA}")
        sheet = contact_sheet(run.store, spec, images)
        run.store.write_bytes(f"{REPORT}/{spec.name}.png", sheet)
        write_card(run.store.at(folder), rows, sheet)
        lines += ["", f"{spec.name}: {len(images)} images in {run.store.uri}/{folder}"]
        if run.config.has_pool:
            chosen = chosen_table(run.store, spec, names)
            run.store.write_csv(f"{REPORT}/chosen-{spec.name}.csv", chosen)
            lines.append(chosen_text(chosen))
        if spec.timestep is not None and not spec.is_clean:
            matching = matching_table(run.store, spec, rejected, names)
            run.store.write_csv(f"{REPORT}/matching-{spec.name}.csv", matching)
            lines.append(matching_text(matching))
        lines.append(f"contact sheet: {run.store.uri}/{REPORT}/{spec.name}.png")
        sets[spec.name] = run.store.read_json(f"{folder}/{MANIFEST}")["set_hash"]
    recorded = run.store.read_json(RUN).get("sets", {})
    done = finished(run.store).values()
    counts = {key: sum(c[key] for c in done) for key in ("accepted", "rejected")} if done else None
    seen = Seen.total(done)
    lines += ["", *met] if (met := seen.describe(look_of(run.config.fidelity))) else []
    stages = summary()
    lines += ["", format_summary(stages)] if stages else []
    costs = {"stages": stages} if stages else {}
    facts = {"counts": counts, "seen": seen.plain() if done else None, "real_images": show_reals}
    close_run(run.store, facts | {"sets": recorded | sets} | costs)
    lines.append(f"report: {write_page(run.store)}")
    lines.append(after_distilling(run.store, run.config.data))
    return "\n".join(lines)


def _write_reals(run: Run, listing: Listing | None, show: bool) -> None:
    if not show:
        run.store.delete(REALS)
    elif listing is not None and len(listing):
        keep_reals(run.store, run.config, listing, run.config.synthesis.image_size or run.card.image_size)
    elif run.latents != run.store and run.latents.exists(REALS):
        run.store.write_bytes(REALS, run.latents.read_bytes(REALS))


def _rejected_per_class(store: Store, classes: int) -> list[int]:
    if not store.list(REJECTED):
        return [0] * classes
    labels = store.read_table(REJECTED, columns=["label"])["label"].to_numpy()
    return [int(c) for c in np.bincount(labels, minlength=classes)]


def _write_normality(run: Run, names: list[str]) -> None:
    labels, states = probe_latents(run.store, run.config.inversion.timesteps)
    measured = normality_table(labels, states, names)
    if len(measured):
        run.store.write_bytes(f"{REPORT}/normality.png", normality_figure(measured))
        first = int(labels[0])
        if (labels == first).sum() >= MIN_IMAGES:
            drawn = tsne_figure(labels, states, first, names[first], run.config.seed)
            run.store.write_bytes(f"{REPORT}/tsne.png", drawn)
        run.store.write_csv(f"{REPORT}/normality.csv", measured)
