"""What a field of a config carries: its flag, its help, and who looks at it.

Command lines, overlays, variants of a sweep and the refusal of idle flags are derived from it.
"""

import functools
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

# Groups of --help, in its order, and what is said of some.
DATA, MODEL, METHOD, MATCHING, GUIDANCE = "data", "model", "method", "matching", "guides"
CAO2, REFINEMENT = "CaO2", "refinement"
TRAINING, CLUSTER, OUTPUT = "training", "cluster", "output"
GROUPS = dict.fromkeys((DATA, MODEL, METHOD, MATCHING, GUIDANCE, CAO2, REFINEMENT, TRAINING, CLUSTER, OUTPUT), "") | {
    MATCHING: "Of --method d3hr and d3hr+cao2.",
    GUIDANCE: "Of --method d3hr.",
    CAO2: "Of --method cao2 and d3hr+cao2.",
    REFINEMENT: "Of --method d3hr, d3hr+cao2 and gaussian.",
}


@dataclass(frozen=True)
class Flag:
    """How people give a field, and what it does.

    `shown` is what the help calls its default, where that is not the field's own. `methods` look at it, all if none is
    named; `needs` is a field beside it that must be on: not 0, and not "none". `upstream`: settled once a run has
    Gaussians. `varies`: --variants of a sweep may change it; all else is an axis, is settled by the inversion, or
    decides no result.
    """

    help: str
    group: str
    name: str = ""  # with underscores, where it is not the field's
    shown: str = ""
    metavar: str = ""
    methods: tuple[str, ...] = ()
    needs: str = ""
    upstream: bool = False
    varies: bool = False


def setting(default: Any, help: str, group: str, *, late: bool = False, **flag: Any) -> Any:
    """A dataclass field with its flag. MISSING is for a field without a default.

    A `late` field is one that older runs do not have; its default is what was true of them. Plain configs leave it out
    where it has that default, so that the fingerprints of those runs stay.
    """
    return field(default=default, metadata={"flag": Flag(help, group, **flag), "late": late})


@dataclass(frozen=True)
class Setting:
    """A field of a config, or of a config in it: search.method."""

    section: str  # "" for the config's own
    field: Field[Any]
    type: Any
    flag: Flag

    @property
    def name(self) -> str:
        """Of its flag, with underscores."""
        return self.flag.name or self.field.name

    @property
    def path(self) -> str:
        """Where it is: search.method."""
        return f"{self.section}.{self.field.name}".lstrip(".")


@functools.cache
def settings_of(config: type) -> Mapping[str, Setting]:
    """All settings that have a flag, those of the sections first, by the name of the flag."""
    hints, own, inner = get_type_hints(config), [], []
    for f in fields(config):
        if is_dataclass(hints[f.name]):
            inner += [Setting(f.name, s.field, s.type, s.flag) for s in settings_of(hints[f.name]).values()]
        elif f.metadata:
            own.append(Setting("", f, hints[f.name], f.metadata["flag"]))
    found = {s.name: s for s in [*own, *inner]}
    assert len(found) == len(own) + len(inner), f"two settings of {config.__name__} have one flag"
    return MappingProxyType(found)


def flag_of(name: str) -> str:
    """A flag as people type it."""
    return "--" + name.replace("_", "-")


def check(ok: bool, message: str) -> None:
    """Raise ValueError with a message unless all is well."""
    if not ok:
        raise ValueError(message)


def one_of(flag: str, value: str, options: Any) -> None:
    """Raise ValueError unless a value is one of a Literal's."""
    check(value in get_args(options), f"{flag} {value!r} is not one of: {', '.join(get_args(options))}")
