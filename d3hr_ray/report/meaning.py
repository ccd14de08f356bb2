"""What accuracies say in a sentence, and what people may type next."""

import os
from collections.abc import Sequence
from typing import Any

from d3hr_ray.evaluation.baselines import DRAWN
from d3hr_ray.evaluation.ranking import LEAST_SETS, accuracy_of, summarise
from d3hr_ray.layout import GAUSSIANS
from d3hr_ray.report.names import label_of
from d3hr_ray.store import Store

MORE_IPC = (20, 50)


def meaning(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of one test set => a sentence per student, protocol and IPC: the best set beside random real images."""
    lines = []
    named = [row | {"set": label_of(row)} for row in rows if row["method"] != "real-full"]
    for arch, protocol, ipc in sorted({(r["arch"], r["protocol"], r["ipc"]) for r in named}):
        here = [r for r in named if (r["arch"], r["protocol"], r["ipc"]) == (arch, protocol, ipc)]
        cells = sorted(summarise(here, ("set", "method", "settings", "timestep")), key=lambda c: -c["top1_last"])
        made = next((c for c in cells if c["method"] not in DRAWN), None)
        real = next((c for c in cells if c["method"] == "real-random"), None)
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


def evaluating(folder: str, data_format: str) -> str:
    """The command that evaluates the sets of a run folder, whose images are of this format."""
    test = "" if data_format in ("digits", "idx") else " --data TEST_IMAGES"  # those know their own
    return f"python jobs/evaluate.py --distilled {folder}{test}"


def resizing(folder: str) -> str:
    """The command that makes sets of other sizes of a run folder's Gaussians."""
    return f"python jobs/distill.py --from-gaussians {folder} --ipc {' '.join(map(str, MORE_IPC))} --out NEW"


def after_distilling(store: Store, data_format: str) -> str:
    """What to type next, for a terminal."""
    return f"next: {evaluating(shown(store), data_format)}"


def after_evaluating(store: Store) -> list[str]:
    """What to type next, for a terminal; nothing where nothing is known to follow."""
    return [f"next, other sizes: {resizing(shown(store))}"] if store.list(GAUSSIANS) else []


def shown(store: Store) -> str:
    """A folder as people here would type it: relative where it lies below the working folder."""
    if "://" in store.uri:
        return store.uri
    below = os.path.relpath(store.uri)
    return store.uri if below.startswith("..") else below
