"""The plain form of a config: what run.json holds, fingerprints are taken of, and refusals compare."""

import hashlib
import json
from dataclasses import fields, is_dataclass
from typing import Any


def as_dict(config: Any) -> dict[str, Any]:
    """Config dataclass => plain JSON types, tuples as lists, so that it compares equal after a JSON round trip."""
    plain: dict[str, Any] = json.loads(json.dumps(_written(config)))
    return plain


def _written(config: Any) -> dict[str, Any]:
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    unwritten = {f.name for f in fields(config) if f.metadata.get("late") and values[f.name] == f.default}
    return {
        name: _written(value) if is_dataclass(value) else value
        for name, value in values.items()
        if name not in unwritten
    }


def with_tuples(plain: dict[str, Any]) -> dict[str, Any]:
    """The lists of plain JSON as tuples again, as fields hold them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}


def fingerprint(*parts: Any) -> str:
    """16 hex digits that change when any part does. Parts are config dataclasses or JSON values."""
    plain = [as_dict(p) if is_dataclass(p) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """'search.ipc: [10] -> [50]' for every leaf that differs between two plain configs."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name}: {a} -> {b}")
    return found
