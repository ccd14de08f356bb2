"""The report of a distill run: what was read, how well subsets match, normality, contact sheets."""

import numpy as np

from d3hr_ray.datasets.listing import Listing
from d3hr_ray.datasets.look import Seen, look_of
from d3hr_ray.evaluation.latents import MIN_IMAGES, matching_table, normality_table, probe_latents
from d3hr_ray.evaluation.trials import records
from d3hr_ray.layout import MANIFEST, METADATA, PROBES, REALS, REJECTED, REPORT, RUN, finished, set_folder
from d3hr_ray.methods.d3hr import Run
from d3hr_ray.report.cards import write_card
from d3hr_ray.report.meaning import after_distilling
from d3hr_ray.report.page import write_page
from d3hr_ray.report.plots import normality_figure, tsne_figure
from d3hr_ray.report.sheets import contact_sheet
from d3hr_ray.report.shots import keep_reals
from d3hr_ray.report.tables import chosen_table, chosen_text, matching_text
from d3hr_ray.runs import close_run
from d3hr_ray.runtime.summary import format_summary, summary
from d3hr_ray.sets import sets_of
from d3hr_ray.store import Store


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
            table = matching_table(run.store, spec, rejected, names)
            run.store.write_csv(f"{REPORT}/matching-{spec.name}.csv", table)
            lines.append(matching_text(table))
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
    lines.append(after_distilling(run.store, run.config.data.format))
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
    table = normality_table(labels, states, names)
    if len(table):
        run.store.write_bytes(f"{REPORT}/normality.png", normality_figure(table))
        first = int(labels[0])
        if (labels == first).sum() >= MIN_IMAGES:
            figure = tsne_figure(labels, states, first, names[first], run.config.seed)
            run.store.write_bytes(f"{REPORT}/tsne.png", figure)
        run.store.write_csv(f"{REPORT}/normality.csv", table)
