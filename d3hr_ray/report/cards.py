"""Cards of a run's sets with what is known after they are published: a preview, and the accuracies measured."""

from collections.abc import Iterator, Sequence
from typing import Any

from d3hr_ray.datasets.source import data_name
from d3hr_ray.evaluation.ranking import LEAST_SETS, accuracy_of, summarise
from d3hr_ray.evaluation.sets import DistilledSet, Made
from d3hr_ray.evaluation.trials import records
from d3hr_ray.layout import CARD, MANIFEST, METADATA
from d3hr_ray.report.tables import in_order
from d3hr_ray.stages.card import PREVIEW, arguments, card_text
from d3hr_ray.stages.publish import looks_of
from d3hr_ray.store import Store

CELL = ("data", "arch", "protocol", "protocol_version", "teacher", "ipc")


def write_card(own: Store, rows: Sequence[dict[str, Any]], preview: bytes | None = None) -> None:
    """A set's README.md anew, in its folder `own`: with the accuracies of `rows` that are its, and with a picture."""
    manifest, images = own.read_json(MANIFEST), own.read_table(METADATA)
    if preview is not None:
        own.write_bytes(PREVIEW, preview)
    measured = [row for row in rows if row["set_hash"] == manifest["set_hash"]]
    cells = in_order(summarise(measured, CELL))
    own.write_bytes(CARD, card_text(manifest, looks_of(own, images), list(_lines(cells)), _how(cells)).encode())


def write_cards(store: Store, sets: Sequence[DistilledSet]) -> None:
    """The cards of those of `sets` that lie in a run folder, with all accuracies in its records."""
    rows = records(store)
    for found in sets:
        if isinstance(found.images, Made) and found.images.store.uri.startswith(f"{store.uri}/"):
            write_card(found.images.store, rows)


def _lines(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
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


def _how(cells: Sequence[dict[str, Any]]) -> str:
    """Arguments of d3hr_ray.train_student that train as the first cell of hard labels and no further flags."""
    for cell in cells:
        version, _, changes = cell["protocol_version"].partition("+")
        name, _, value = changes.partition("=")
        if cell["teacher"] is None and (not changes or (name == "epochs" and value.isdecimal())):
            own = {"arch": cell["arch"], "protocol": cell["protocol"]}
            own |= {"glyphs": True} if "-glyphs" in version else {}
            return arguments(**own, **({"epochs": int(value)} if changes else {}))
    return ""
