"""A sweep's table, and its best setting as a preset that jobs/distill.py accepts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from d3hr_ray.config import RunConfig, as_dict
from d3hr_ray.evaluation.naming import sets_apart
from d3hr_ray.evaluation.results import cells_table, summarise
from d3hr_ray.evaluation.trials import SCHEMA
from d3hr_ray.sets import spec_of, with_axes
from d3hr_ray.store import Store

SETTING = (
    "method", "search", "candidates", "components", "rank", "timestep", "inversion_guidance", "guidance", "fidelity",
    "settings",
)  # fmt: skip
AXES = (*SETTING, "ipc", "arch", "protocol", "protocol_version", "lr", "teacher")


def write_sweep(
    store: Store,
    name: str,
    base: RunConfig,
    rows: Sequence[dict[str, Any]],
    stopped: Sequence[dict[str, Any]],
) -> str:
    """Write trials.parquet, trials.csv, cells.csv, settings.json and best.json; return what to tell.

    `stopped` are rows of students that a scheduler stopped: they are in the trials' table alone, as what they would
    have reached is not known. settings.json has the configs, but for seed, timestep and IPC, by the rows' `settings`.
    """
    folder = f"sweeps/{name}"
    configs = {row["settings"]: json.loads(row["config"]) for row in (*rows, *stopped)}
    table = all_trials(rows, stopped)
    store.write_table(f"{folder}/trials.parquet", table)
    store.write_csv(f"{folder}/trials.csv", table)
    cells = sorted(summarise(sets_apart(rows), ("set", *AXES)), key=lambda c: -c["top1_last"])
    store.write_csv(f"{folder}/cells.csv", cells_table(cells))
    best = best_cell(cells)
    preset = _preset(base, best, configs[best["settings"]])
    found = {key: best[key] for key in (*AXES, "n", "top1_last")}
    store.write_json(f"{folder}/settings.json", configs)
    store.write_json(f"{folder}/best.json", {"config": as_dict(preset), "found": found})
    line = f"{len(rows)} students finished, {len(stopped)} stopped early"
    words = ", ".join(f"{axis} {best[axis]}" for axis in SETTING[:-1] if best[axis] is not None)
    return f"{line}; best over IPCs and students: {words}\n{store.uri}/{folder}: trials.csv, cells.csv, best.json"


def all_trials(rows: Sequence[dict[str, Any]], stopped: Sequence[dict[str, Any]]) -> pa.Table:
    """A row per trial, `state` finished or stopped; a stopped one's `top1_last` is that after its `epoch`."""
    fields = [f for f in SCHEMA if f.name not in ("per_class", "config")]  # settings.json has the configs
    schema = pa.schema([*fields, pa.field("state", pa.string()), pa.field("epoch", pa.int32())])
    every = [r | {"state": "finished"} for r in rows] + [r | {"state": "stopped"} for r in stopped]
    return pa.Table.from_pylist(every, schema)


def best_cell(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The distillation setting with the highest mean over IPCs, students and protocols, as its best single cell."""
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in _tuned(cells):
        settings.setdefault(tuple(cell[axis] for axis in SETTING), []).append(cell)
    most = max(map(len, settings.values()))
    whole = [members for members in settings.values() if len(members) == most]
    return max(whole, key=lambda members: sum(m["top1_last"] for m in members) / len(members))[0]


def _tuned(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the training hyperparameters that were tried on a cell only the best: a set is worth what it can train."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cell in cells:
        place = tuple(cell[axis] for axis in (*SETTING, "ipc", "arch", "protocol"))
        best[place] = max(best.get(place, cell), cell, key=lambda c: c["top1_last"])
    return list(best.values())


def _preset(base: RunConfig, cell: Mapping[str, Any], plain: Mapping[str, Any]) -> RunConfig:
    """The config of a cell's sets as a preset: its timestep and IPC, and the data and seed of the base."""
    made = spec_of(with_axes(plain, cell["timestep"], cell["ipc"], base.seed)).config
    timesteps = base.inversion.timesteps if cell["timestep"] is None else made.inversion.timesteps
    return replace(made, data=base.data, inversion=replace(made.inversion, timesteps=timesteps))
