"""Flags of settings: a job's flags dataclass gets one for each field of a config, from what the field carries."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import field, make_dataclass, replace
from types import GenericAlias
from typing import Any, Literal, TypeVar, get_args, get_origin

from d3hr_ray.config import Setting, flag_of, settings_of

T = TypeVar("T")


def with_settings(config: type) -> Callable[[type[T]], type[T]]:
    """A decorator: a flag for each setting of a config, None or () unless it is given."""

    def decorate(flags: type[T]) -> type[T]:
        return _extended(flags, [(s, _optional(s), _empty(s)) for s in settings_of(config).values()])

    return decorate


def with_own(config: type, *names: str) -> Callable[[type[T]], type[T]]:
    """A decorator: a flag for some settings of a config, with its defaults."""

    def decorate(flags: type[T]) -> type[T]:
        chosen = [settings_of(config)[name] for name in names]
        return _extended(flags, [(s, s.type, s.field.default) for s in chosen])

    return decorate


def given(flags: Any, name: str) -> Any:
    """The value of a setting's flag; None if it was not given."""
    value = getattr(flags, name)
    return None if value == () else value


def text_of(value: Any) -> str:
    """A value as people type it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(text_of, value)) if isinstance(value, tuple) else "" if value is None else str(value)


def _extended(flags: type[T], settings: list[tuple[Setting, Any, Any]]) -> type[T]:
    more: list[Any] = []
    for s, hint, default in settings:
        flag = replace(s.flag, shown=s.flag.shown or text_of(s.field.default))
        more.append((s.name, hint, field(default=default, metadata={"flag": flag})))
    made = make_dataclass(flags.__name__, more, bases=(flags,), frozen=True)
    made.__module__, made.__doc__ = flags.__module__, flags.__doc__
    return made


def _optional(setting: Setting) -> Any:
    """int => int | None, tuple[int, int] => tuple[int, ...], bool => yes or no."""
    if get_origin(setting.type) is tuple:
        return GenericAlias(tuple, (get_args(setting.type)[0], ...))
    return (Literal["yes", "no"] if setting.type is bool else setting.type) | None


def _empty(setting: Setting) -> Any:
    return () if get_origin(setting.type) is tuple else None


def typed_flags(argv: Sequence[str] | None = None) -> set[str]:
    """The flags that a command line names, whatever their values: --at-once of `--at_once=2`."""
    return set(filter(None, map(flag_in, sys.argv[1:] if argv is None else argv)))


def flag_in(word: str) -> str:
    """The flag that a word of a command line names, --at-once of `--at_once=2`; "" of a value."""
    return flag_of(word[2:].partition("=")[0]) if word.startswith("--") else ""
