"""From trained networks to a folder that diffusers and d3hr_ray load: a DiTPipeline, its classes, how it was made."""

import csv
import io
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from d3hr_ray.pretraining.networks import Networks
from d3hr_ray.pretraining.optimise import Row
from d3hr_ray.store import Store

PACKAGES = ("d3hr-ray", "torch", "diffusers", "ray", "numpy")


def save(
    networks: Networks, class_names: Sequence[str], curve: Sequence[Row], record: dict[str, Any], store: Store
) -> None:
    """Write the pipeline in fp16 and its papers; training.json comes last and marks the folder as complete."""
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it doubts every cast to fp16, of no module here
    parts: dict[str, Any] = {"vae": networks.vae, "transformer": networks.transformer, "scheduler": networks.scheduler}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            weights: Any = part.to("cpu", torch.float16) if isinstance(part, torch.nn.Module) else part
            weights.save_pretrained(f"{folder}/{name}")
        for file in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            store.write_bytes(file.relative_to(folder).as_posix(), file.read_bytes())
    index = {name: ["diffusers", type(part).__name__] for name, part in sorted(parts.items())}
    store.write_json(
        "model_index.json", {"_class_name": "DiTPipeline", "_diffusers_version": version("diffusers"), **index}
    )
    store.write_json("classes.json", list(class_names))
    store.write_bytes("curves.csv", curve_csv(curve).encode())
    store.write_bytes("curves.png", curve_png(curve))
    store.write_json("training.json", {**record, "versions": {name: version(name) for name in PACKAGES}})


def curve_csv(curve: Sequence[Row]) -> str:
    """Rows => CSV with a column for every name that any row has."""
    out = io.StringIO()
    columns = list(dict.fromkeys(name for row in curve for name in row))
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(curve)
    return out.getvalue()


def curve_png(curve: Sequence[Row]) -> bytes:
    """Rows => one plot per phase, losses against steps."""
    phases = list(dict.fromkeys(str(row["phase"]) for row in curve))
    figure = Figure(figsize=(5 * len(phases), 3.5), layout="constrained")
    for axis, phase in zip(figure.subplots(1, len(phases), squeeze=False)[0], phases, strict=True):
        rows = [row for row in curve if row["phase"] == phase]
        for name in (n for n in rows[0] if n not in ("phase", "step")):
            axis.plot([row["step"] for row in rows], [row[name] for row in rows], label=name)
        axis.set(title=phase, xlabel="step", yscale="log")
        axis.legend()
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=80, metadata={"Software": None})
    return out.getvalue()
