"""What tables and plots call a set: its name, and where several settings share one, what they differ in."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from d3hr_ray.config import RunConfig, settings_of

# Of a config's field, the flag of jobs/distill.py that sets it; fields without one are called as they are.
FLAGS = {s.path: s.name.replace("_", "-") for s in settings_of(RunConfig).values()}
LISTED = 4  # items of a longer list are counted
METHODS = {
    "d3hr": "D3HR", "cao2": "CaO2", "d3hr+cao2": "D3HR and CaO2", "gaussian": "a random draw of the Gaussians",
    "dit": "plain sampling", "random": "a random choice of real images",
}  # fmt: skip


def label_of(row: dict[str, Any]) -> str:
    """What a plot calls a set's kind, the same at every timestep and IPC, and whose code it follows if not ours."""
    whose = row.get("fidelity") or "fixed"
    return _what(row) + (f" {whose}" if whose != "fixed" else "")


def _what(row: dict[str, Any]) -> str:
    return str(row.get("kind") or row["set"])


def name_of(cell: dict[str, Any]) -> str:
    """What a printed table calls a cell's sets: their name, guidances, and whose code they follow if not ours."""
    guided = cell.get("guidance") is not None
    guidance = f" {cell['inversion_guidance']:g}/{cell['guidance']:g}" if guided else ""
    fidelity = "" if cell.get("fidelity") in (None, "fixed") else f" {cell['fidelity']}"
    return f"{cell['set']}{guidance}{fidelity}"


def disambiguate(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which what must not mix has different names: protocols of several versions or teachers, sets."""
    rows = disambiguate_sets(rows)
    rules: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["method"] != "real-full":  # which may be seen fewer times, and stands beside the others all the same
            rules[row["protocol"]].add(_rules(row))
    return [r | {"protocol": _rules(r)} if len(rules[r["protocol"]]) > 1 else r for r in rows]


def _rules(row: dict[str, Any]) -> str:
    return " ".join(filter(None, (row["protocol"], row["protocol_version"], row["teacher"])))


def disambiguate_sets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which sets of different settings have different names: what they differ in joins a name they share.

    That is flag=value for each difference, such as `optimise=0`, the same at every timestep and IPC; or the settings'
    fingerprint, where a row that an older version wrote has no config, or a difference has no words.
    """
    namesakes: dict[tuple[Any, ...], dict[str | None, str | None]] = defaultdict(dict)
    for row in rows:
        known = namesakes[_kind(row)]
        known[row.get("settings")] = known.get(row.get("settings")) or row.get("config")
    words = {kind: _words(configs) for kind, configs in namesakes.items()}
    named = [(row, words[_kind(row)][row.get("settings")]) for row in rows]
    return [r | {"set": f"{r['set']} {w}", "kind": f"{_what(r)} {w}"} if w else r for r, w in named]


def _kind(row: dict[str, Any]) -> tuple[Any, ...]:
    return label_of(row), row.get("inversion_guidance"), row.get("guidance")


def _words(configs: dict[str | None, str | None]) -> dict[str | None, str]:
    """The config of each of some settings, as JSON => what distinguishes each from the others."""
    if len(configs) == 1:
        return {settings: "" for settings in configs}
    leaves = {settings: dict(_leaves(json.loads(text or "{}"))) for settings, text in configs.items()}
    every = sorted({path for own in leaves.values() for path in own})
    differ = [path for path in every if len({repr(own.get(path)) for own in leaves.values()}) > 1]
    words = {
        settings: " ".join(f"{_flag(path)}={_value(own[path])}" for path in differ if path in own)
        for settings, own in leaves.items()
    }
    is_enough = all(configs.values()) and len(set(words.values())) == len(words)
    return words if is_enough else {settings: (settings or "")[:4] for settings in configs}


def _leaves(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _flag(path: str) -> str:
    return FLAGS.get(path, path.rpartition(".")[2].replace("_", "-"))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value)) if len(value) <= LISTED else f"{value[0]},...({len(value)})"
    return str(value)
