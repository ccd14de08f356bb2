"""Accuracies as they are shown: in a sentence, in the page's table and plots, on the cards of sets; what to do next."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from d3hr_ray.config import DataConfig, fingerprint
from d3hr_ray.datasets.source import data_name
from d3hr_ray.datasets.splits import held_out_of
from d3hr_ray.evaluation.baselines import DRAWN
from d3hr_ray.evaluation.protocols import sees_whole
from d3hr_ray.evaluation.ranking import LEAST_SETS, accuracy_of, summarise
from d3hr_ray.evaluation.sets import DistilledSet, Made
from d3hr_ray.evaluation.trials import records
from d3hr_ray.layout import CARD, GAUSSIANS, MANIFEST, METADATA, REPORT
from d3hr_ray.report import plots
from d3hr_ray.report.names import label_of
from d3hr_ray.report.sheets import figure
from d3hr_ray.report.tables import in_order
from d3hr_ray.stages.card import PREVIEW, arguments, card_text
from d3hr_ray.stages.publish import looks_of
from d3hr_ray.store import Store

MORE_IPC = (20, 50)  # that are proposed next
TABLED = (
    "set", "kind", "fidelity", "method", "search", "guidance", "inversion_guidance", "timestep", "arch", "protocol",
    "ipc",
)  # fmt: skip
# What no two rows of a card's table share.
CARDED = ("data", "test", "arch", "protocol", "protocol_version", "teacher", "ipc")


def meaning(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of one test set => a sentence per student, protocol and IPC: the best set beside random real images."""
    lines = []
    named = [row | {"set": label_of(row)} for row in rows if row["method"] != "real-full"]
    for arch, protocol, ipc in sorted({(r["arch"], r["protocol"], r["ipc"]) for r in named}):
        here = [r for r in named if (r["arch"], r["protocol"], r["ipc"]) == (arch, protocol, ipc)]
        cells = sorted(summarise(here, ("set", "method", "settings", "timestep")), key=lambda c: -c["top1_last"])
        made = next((c for c in cells if c["method"] not in DRAWN), None)
        drawn = [c for c in cells if c["method"] == "real-random"]
        real = max(drawn, key=lambda c: c["n"], default=None)  # not the best of those of several sources
        if made:
            images = "1 image" if ipc == 1 else f"{ipc} images"
            beside = f"; on as many random real images {accuracy_of(real)} %: {_difference(made, real)}" if real else ""
            trained = f"{arch} (protocol {protocol}) trained on {images} per class of {made['set']}"
            lines.append(f"{trained} reaches {accuracy_of(made)} %{beside}.")
    return lines


def _difference(made: dict[str, Any], real: dict[str, Any]) -> str:
    """How much better the made ones are, and whether that is more than chance where there is enough to tell."""
    points = 100 * (made["top1_last"] - real["top1_last"])
    text = f"{abs(points):.1f} points {'more' if points >= 0 else 'less'}"
    apart = made["top1_last_low"] > real["top1_last_high"] or made["top1_last_high"] < real["top1_last_low"]
    if min(made["n"], real["n"]) < LEAST_SETS:
        return text
    return text if apart else f"{text}, within their intervals"


def evaluating(folder: str, data: DataConfig) -> str:
    """The command that evaluates the sets of a run folder, which was made of these images."""
    test = " --data TEST_IMAGES" if held_out_of(data) is None else ""
    return f"python jobs/evaluate.py --distilled {folder}{test}"


def resizing(folder: str) -> str:
    """The command that makes sets of other sizes of a run folder's Gaussians."""
    return f"python jobs/distill.py --from-gaussians {folder} --ipc {' '.join(map(str, MORE_IPC))} --out NEW"


def after_distilling(store: Store, data: DataConfig) -> str:
    """What to type next, for a terminal."""
    return f"next: {evaluating(shown(store), data)}"


def after_evaluating(store: Store) -> list[str]:
    """What to type next, for a terminal; nothing where nothing is known to follow."""
    return [f"next, other sizes: {resizing(shown(store))}"] if store.list(GAUSSIANS) else []


def shown(store: Store) -> str:
    """A folder as people here would type it: relative where it lies below the working folder."""
    if "://" in store.uri:
        return store.uri
    below = os.path.relpath(store.uri)
    return store.uri if below.startswith("..") else below


def accuracy_sections(store: Store, rows: list[dict[str, Any]], classes: list[str]) -> Iterator[str]:
    """A section per test set: the sweep's and the held-out one's numbers never mix. Plots go into report/ too."""
    tested = sorted({_tested(row) for row in rows})
    titles = {data: data_name(data) for data, _ in tested}
    slugs = _slugs(tested)
    for data, test in tested:
        here = [row for row in rows if _tested(row) == (data, test)]
        title = titles[data] if len(set(titles.values())) == len(titles) else data
        if [place for place, _ in tested].count(data) > 1:
            title = f"{title} (images {test[:6]})"
        yield f"<h2>Accuracy on {escape(title)}</h2>"
        yield from (f"<p>{escape(line)}</p>" for line in meaning(here))
        yield accuracy_table(here)
        yield '<p class="note">Last-epoch top-1 in percent, mean ± 95 % interval over sets (of one set: over '
        yield "students), of two sets: both values. Bold: a column's best.</p>"
        count = len(here[0]["per_class"])  # other sets than the run's may have other classes
        names = classes if len(classes) == count else [str(k) for k in range(count)]
        yield from _plots(store, here, names, slugs[data, test])


def _slugs(tested: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What the plots of each test set are called: the end of its path, with a fingerprint where two end alike."""
    ends = {
        which: "".join(c if c.isalnum() else "-" for c in which[0].rpartition("://")[2])[-40:].strip("-")
        for which in tested
    }
    many = Counter(ends.values())
    return {which: f"{end}-{fingerprint(which)[:6]}" if many[end] > 1 else end for which, end in ends.items()}


def _tested(row: dict[str, Any]) -> tuple[str, str]:
    """Where a row's test images lie, and their digest: others, or of another size, may have been at the same place."""
    return str(row.get("data")), str(row.get("test"))


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
    for cell in summarise(rows, TABLED):
        cells[_kind(cell), cell["arch"], cell["protocol"], cell["ipc"] or 0] = cell
    full = {k[:3]: c for k, c in cells.items() if c["method"] == "real-full"}
    kinds = sorted({k[0] for k, c in cells.items() if c["method"] != "real-full"})
    best = {c: max((cells[k, *c]["top1_last"] for k in kinds if (k, *c) in cells), default=0) for c in columns}
    head = "".join(f"<th>{escape(a)}<br>{escape(p)}<br>IPC {i}</th>" for a, p, i in columns)
    lines = []
    for kind in kinds:
        line = "".join(_cell(cells.get((kind, *c)), best[c]) for c in columns)
        lines.append(f"<tr><td>{escape(kind)}</td>{line}</tr>")
    for kind in sorted({k[0] for k in full}):
        line = "".join(_cell(full.get((kind, *c[:2])), 2.0) for c in columns)
        lines.append(f"<tr><td>{escape(kind)}</td>{line}</tr>")
    return f'<div class="wide"><table class="narrow"><tr><th>set</th>{head}</tr>{"".join(lines)}</table></div>'


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


def write_card(own: Store, rows: Sequence[dict[str, Any]], preview: bytes | None = None) -> None:
    """A set's README.md anew, in its folder `own`: with the accuracies of `rows` that are its, and with a picture."""
    manifest, images = own.read_json(MANIFEST), own.read_table(METADATA)
    if preview is not None:
        own.write_bytes(PREVIEW, preview)
    measured = [row for row in rows if row["set_hash"] == manifest["set_hash"]]
    cells = in_order(summarise(measured, CARDED))
    text = card_text(manifest, looks_of(own, images), list(_card_table(cells)), _card_arguments(cells))
    own.write_bytes(CARD, text.encode())


def write_cards(store: Store, sets: Sequence[DistilledSet]) -> None:
    """The cards of those of `sets` that lie in a run folder, with all accuracies in its records."""
    rows = records(store)
    for found in sets:
        if isinstance(found.images, Made) and found.images.store.uri.startswith(f"{store.uri}/"):
            write_card(found.images.store, rows)


def _card_table(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A Markdown table of a set's own accuracies."""
    if not cells:
        return
    yield "Students trained on this set alone, tested on real images; last-epoch top-1 in percent, mean ± 95 % interval"
    yield f"over students (of fewer than {LEAST_SETS}: all values)."
    yield ""
    yield "| tested on | student | protocol, version | teacher | students | top-1 |"
    yield "|---|---|---|---|---|---|"
    for c in cells:
        how = f"{c['arch']} | {c['protocol']}, {c['protocol_version']} | {c['teacher'] or 'none'}"
        yield f"| {data_name(str(c['data']))} | {how} | {c['students']} | {accuracy_of(c)} |"


def _card_arguments(cells: Sequence[dict[str, Any]]) -> str:
    """Arguments of d3hr_ray.train_student that train as the first cell of hard labels and no further flags."""
    for cell in cells:
        version, _, changes = cell["protocol_version"].partition("+")
        changed = dict(change.partition("=")[::2] for change in changes.split(",") if change)
        epochs = changed.get("epochs", "0")
        whole = sees_whole([cell["protocol"]])  # and the card loads test images from their centre
        if cell["teacher"] is None and not whole and changed.keys() <= {"epochs", "weights"} and epochs.isdecimal():
            own = {"arch": cell["arch"], "protocol": cell["protocol"]}
            own |= {"glyphs": True} if "-glyphs" in version else {}
            own |= {"upright": True} if "-upright" in version else {}
            own |= {"epochs": int(epochs)} if "epochs" in changed else {}
            return arguments(**own, **({"weights": True} if "weights" in changed else {}))
    return ""
