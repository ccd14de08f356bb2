"""What CaO2's first stage kept of each class's pool, and where it had to fill up with images of another class."""

from math import isnan

import pyarrow as pa

from d3hr_ray.stages.choose import choice_file
from d3hr_ray.stages.search import Variant
from d3hr_ray.store import Store

LISTED = 20  # classes that are named


def chosen_table(store: Store, variant: Variant, names: list[str]) -> pa.Table:
    """Per class: candidates and those on class, kept ones and those on class, their mean probability of the class."""
    blocks = range(len(variant.blocks(len(names))))
    table = pa.concat_tables([store.read_table(choice_file(variant, b)) for b in blocks])
    return table.add_column(1, "class", pa.array([names[label] for label in table["label"].to_pylist()]))


def chosen_text(table: pa.Table) -> str:
    """One line for all classes, and one for each that had too few candidates on class."""
    rows = table.to_pylist()
    total = {key: sum(r[key] for r in rows) for key in ("candidates", "correct", "kept", "kept_correct")}
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
