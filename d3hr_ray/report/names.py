"""What tables, plots and sheets call a set: its name, and where several settings share one, what they differ in."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, get_args

from d3hr_ray.config import RunConfig, settings_of
from d3hr_ray.evaluation.baselines import Baseline

# Of a config's field, the flag of jobs/distill.py that sets it; fields without one are called as they are.
FLAGS = {s.path: s.name.replace("_", "-") for s in settings_of(RunConfig).values()}
MOST_ITEMS = 4  # of a list; those of a longer one are counted
REAL = ("real-full", *get_args(Baseline))


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
    rules, full = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for row in rows:
        if row["method"] != "real-full":
            rules[row["protocol"]].add(_rules(row))

    def shown(row: dict[str, Any]) -> str:
        known = rules[row["protocol"]]
        return _uncapped(row, known) if len(known) > 1 else row["protocol"]

    for row in rows:  # it may be seen fewer times than others, and stands beside them all the same
        if row["method"] == "real-full":
            full[shown(row)].add(_rules(row))

    def named(row: dict[str, Any]) -> dict[str, Any]:
        protocol = shown(row)
        if row["method"] == "real-full" and len(full[protocol]) > 1:
            row = row | {what: f"{_what(row)} {row['protocol_version']}" for what in ("set", "kind")}
        return row | {"protocol": protocol}

    return [named(row) for row in rows]


def _uncapped(row: dict[str, Any], known: Collection[str]) -> str:
    """The rules of a row; of a full set that is seen fewer times, those of the sets that it stands beside."""
    own = _rules(row)
    version, _, cap = (row["protocol_version"] or "").rpartition("+epochs=")
    beside = _rules(row | {"protocol_version": version})
    is_capped = row["method"] == "real-full" and cap.isdecimal() and beside in known
    return beside if is_capped and own not in known else own


def _rules(row: dict[str, Any]) -> str:
    return " ".join(filter(None, (row["protocol"], row["protocol_version"], row["teacher"])))


def disambiguate_sets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which sets of different settings have different names: what they differ in joins a name they share.

    That is flag=value for each difference, such as `optimise=0`, the same at every timestep and IPC; or the settings'
    fingerprint, where a row that an older version wrote has no config, or a difference has no words.
    """
    rows = _of_one_source(rows)
    namesakes: dict[tuple[Any, ...], dict[str | None, str | None]] = defaultdict(dict)
    for row in rows:
        known = namesakes[_kind(row)]
        known[row.get("settings")] = known.get(row.get("settings")) or row.get("config")
    words = {kind: _words(configs) for kind, configs in namesakes.items()}
    named = [(row, words[_kind(row)][row.get("settings")]) for row in rows]
    return [r | {"set": f"{r['set']} {w}", "kind": f"{_what(r)} {w}"} if w else r for r, w in named]


def _of_one_source(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which real images of an older version, which kept no source of theirs, are of the one that is known."""
    known: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.get("method") in REAL and row.get("settings"):
            known[row["method"]].add(row["settings"])
    only = {method: min(found) for method, found in known.items() if len(found) == 1}
    return [r | {"settings": only[r["method"]]} if r.get("method") in only else r for r in rows]


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
        return ",".join(map(str, value)) if len(value) <= MOST_ITEMS else f"{value[0]},...({len(value)})"
    return str(value)
