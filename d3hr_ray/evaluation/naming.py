"""What tables and plots call a set: its name, and where several settings share one, what they differ in."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

# Of a config's field, the flag of jobs/distill.py that sets it; others are called as the field is.
FLAGS = {"cao2.iterations": "optimise", "cao2.lr": "optimise-lr", "search.method": "search", "mended": "mend"}
NAME = ("set", "fidelity", "inversion_guidance", "guidance")  # what every table tells of a set


def name_of(cell: dict[str, Any]) -> str:
    """What a printed table calls a cell's sets: their name, guidances, and whose code they follow if not ours."""
    guided = cell.get("guidance") is not None
    guidance = f" {cell['inversion_guidance']:g}/{cell['guidance']:g}" if guided else ""
    fidelity = "" if cell.get("fidelity") in (None, "fixed") else f" {cell['fidelity']}"
    return f"{cell['set']}{guidance}{fidelity}"


def sets_apart(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose sets are named apart: what their settings differ in joins a name that several share.

    That is flag=value for each difference, such as `optimise=0`, or the settings' fingerprint where a row of before has
    no config.
    """
    namesakes: dict[tuple[Any, ...], dict[str | None, str | None]] = defaultdict(dict)
    for row in rows:
        known = namesakes[_name(row)]
        known[row.get("settings")] = known.get(row.get("settings")) or row.get("config")
    words = {name: _words(configs) for name, configs in namesakes.items()}
    return [r | {"set": " ".join([r["set"], *words[_name(r)][r.get("settings")]])} for r in rows]


def _name(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in NAME)


def _words(configs: dict[str | None, str | None]) -> dict[str | None, list[str]]:
    """The config of each of some settings, as JSON => what tells each apart from the others."""
    if len(configs) == 1:
        return {settings: [] for settings in configs}
    if not all(configs.values()):
        return {settings: [(settings or "")[:4]] for settings in configs}
    leaves = {settings: dict(_leaves(json.loads(text or "{}"))) for settings, text in configs.items()}
    every = sorted({path for own in leaves.values() for path in own})
    differ = [path for path in every if len({repr(own.get(path)) for own in leaves.values()}) > 1]
    return {
        settings: [f"{_flag(path)}={_value(own[path])}" for path in differ if path in own]
        for settings, own in leaves.items()
    }


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
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
