"""The report of a distill run: what was read, how well subsets match, normality, contact sheets."""

import numpy as np

from d3hr_ray.datasets.look import Seen, look_of
from d3hr_ray.layout import PROBES, finished
from d3hr_ray.methods.d3hr import Run
from d3hr_ray.report.chosen import chosen_table, chosen_text
from d3hr_ray.report.contact import contact_sheet
from d3hr_ray.report.matching import format_table, matching_table
from d3hr_ray.report.normality import MIN_IMAGES, normality_figure, normality_table, probe_latents, tsne_figure
from d3hr_ray.report.page import write_page
from d3hr_ray.runs import close_run
from d3hr_ray.runtime.summary import format_summary, summary
from d3hr_ray.sets import sets_of
from d3hr_ray.store import Store


def report(run: Run) -> str:
    """Write report/, close the run, and return the summary as text."""
    names = run.classes["name"].to_pylist()
    rejected = _rejected_per_class(run.store, len(names))
    if run.store.exists(PROBES) and not run.store.exists("report/normality.csv"):
        _write_normality(run, names)
    lines, sets = [], {}
    for spec in sets_of(run.config):
        folder = f"distilled/{spec.name}"
        images = run.store.read_table(f"{folder}/metadata.parquet")
        run.store.write_bytes(f"report/{spec.name}.png", contact_sheet(run.store, spec.name, images))
        lines += ["", f"{spec.name}: {len(images)} images in {run.store.uri}/{folder}"]
        if run.config.has_pool:
            chosen = chosen_table(run.store, spec, names)
            run.store.write_csv(f"report/chosen-{spec.name}.csv", chosen)
            lines.append(chosen_text(chosen))
        if spec.timestep is not None and not spec.is_clean:
            table = matching_table(run.store, spec, rejected, names)
            run.store.write_csv(f"report/matching-{spec.name}.csv", table)
            lines.append(format_table(table))
        lines.append(f"contact sheet: {run.store.uri}/report/{spec.name}.png")
        sets[spec.name] = run.store.read_json(f"{folder}/manifest.json")["set_hash"]
    recorded = run.store.read_json("run.json").get("sets", {})
    done = finished(run.store).values()
    counts = {key: sum(c[key] for c in done) for key in ("accepted", "rejected")} if done else None
    seen = Seen.total(done)
    lines += ["", *met] if (met := seen.describe(look_of(run.config.fidelity))) else []
    stages = summary()
    lines += ["", format_summary(stages)] if stages else []
    costs = {"stages": stages} if stages else {}
    facts = {"counts": counts, "seen": seen.plain() if done else None}
    close_run(run.store, facts | {"sets": recorded | sets} | costs)
    lines.append(f"report: {write_page(run.store)}")
    return "\n".join(lines)


def _rejected_per_class(store: Store, classes: int) -> list[int]:
    if not store.list("rejected"):
        return [0] * classes
    labels = store.read_table("rejected", columns=["label"])["label"].to_numpy()
    return [int(c) for c in np.bincount(labels, minlength=classes)]


def _write_normality(run: Run, names: list[str]) -> None:
    labels, states = probe_latents(run.store, run.config.inversion.timesteps)
    table = normality_table(labels, states, names)
    if len(table):
        run.store.write_bytes("report/normality.png", normality_figure(table))
        first = int(labels[0])
        if (labels == first).sum() >= MIN_IMAGES:
            figure = tsne_figure(labels, states, first, names[first], run.config.seed)
            run.store.write_bytes("report/tsne.png", figure)
        run.store.write_csv("report/normality.csv", table)
