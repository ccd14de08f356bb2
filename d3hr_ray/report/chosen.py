"""What CaO2's first stage kept of each class's pool, and where it had to fill up with images of another class."""

from collections.abc import Sequence
from math import isnan

import pyarrow as pa
import pyarrow.compute as pc

from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.choose import read_choices
from d3hr_ray.store import Store

LISTED = 20  # classes that are named
COUNTS = ("candidates", "correct", "kept", "kept_correct")


def chosen_table(store: Store, spec: SetSpec, names: list[str]) -> pa.Table:
    """Per class: candidates and those on class, kept ones and those on class, their mean probability of the class."""
    table = read_choices(store, spec, len(names))
    return table.add_column(1, "class", pa.array([names[label] for label in table["label"].to_pylist()]))


def pools_table(sets: Sequence[tuple[str, SetSpec]], classes: int) -> pa.Table:
    """A row per set, given as its URI and spec: sums over its classes, and how many of these had to fill up.

    What a classifier tells is None where none judged (--select none).
    """
    rows = []
    for uri, spec in sets:
        table = read_choices(Store(uri).at("../.."), spec, classes)
        told = {key: pc.sum(table[key]).as_py() for key in COUNTS}
        told["filled_up"] = pc.sum(pc.less(table["kept_correct"], table["kept"])).as_py()
        unjudged = dict.fromkeys(("correct", "kept_correct", "filled_up"))
        rows.append({"uri": uri} | told | (unjudged if isnan(table["kept_own"][0].as_py()) else {}))
    return pa.Table.from_pylist(rows)


def pools_text(table: pa.Table) -> str:
    """One line on all sets of a sweep."""
    judged = [n for n in table["filled_up"].to_pylist() if n is not None]
    if not any(judged):
        return f"pools: {len(judged)} judged sets, none with a class that had to fill up"
    return (
        f"pools: {sum(n > 0 for n in judged)} of {len(judged)} judged sets had to fill up classes with images that the "
        "classifier takes for another; a larger pool has more to choose from"
    )


def chosen_text(table: pa.Table) -> str:
    """One line for all classes, and one for each that had too few candidates on class."""
    rows = table.to_pylist()
    total = {key: sum(r[key] for r in rows) for key in COUNTS}
    if isnan(rows[0]["kept_own"]):
        return f"pool: the first {total['kept']} of {total['candidates']} candidates, not judged (--select none)"
    short = [r for r in rows if r["kept_correct"] < r["kept"]]
    lines = [
        f"pool: {total['correct']} of {total['candidates']} candidates on class, {total['kept_correct']} of the "
        f"{total['kept']} kept"
    ]
    lines += [
        f"  class {r['class']}: filled up with {r['kept'] - r['kept_correct']} of {r['kept']} that the classifier "
        "takes for another class; a larger --pool has more to choose from"
        for r in short[:LISTED]
    ]
    return "\n".join([*lines, *([f"  and {len(short) - LISTED} more classes"] if len(short) > LISTED else [])])
