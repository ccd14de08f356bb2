"""Patterns of names, as text: * ? [0-9] {a,b} and {00..09}, in any part of a path, as in a shell."""

import os
import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from glob import escape
from itertools import product, takewhile

MAX_NAMES = 100_000  # of a pattern's braces
BRACES = re.compile(r"(?<!\[)\{([^{}]*(?:,|\.\.)[^{}]*)\}")


def has_signs(text: str) -> bool:
    """Whether a text is a pattern."""
    return re.search(r"[*?[]", text) is not None or BRACES.search(text) is not None


def expand_braces(pattern: str) -> list[str]:
    """'{a,b}' and '{00..12}' in any place => the patterns that they stand for, as in a shell."""
    pieces = BRACES.split(pattern)  # text, braces, text, ...
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MAX_NAMES:
        raise ValueError(f"--data: the braces of {pattern} name {count:,} files, more than {MAX_NAMES:,}; use *")
    return ["".join(found) for found in product(*choices)]


def _choices(inner: str) -> Sequence[str]:
    limits = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inner)
    if limits is None:
        return inner.split(",")
    low, high = limits.groups()
    numbers = range(int(low), int(high) + 1)
    if len(numbers) > MAX_NAMES:
        raise ValueError(f"--data: {{{inner}}} names {len(numbers):,} files, more than {MAX_NAMES:,}; use *")
    width = len(low) if low.startswith("0") else 0
    return [str(number).zfill(width) for number in numbers]


def pattern_of(wanted: Collection[str], names: Sequence[str]) -> str | None:
    """A folder or a short pattern that names the files wanted and no other; None if there is none."""
    wanted = frozenset(wanted)
    shared = os.path.commonpath([os.path.dirname(name) for name in wanted])
    if shared and all((name in wanted) == name.startswith(f"{shared}/") for name in names):
        return literal(shared)
    columns = [list(column) for column in zip(*(name.split("/") for name in wanted), strict=False)]
    ways = (
        lambda column: literal(_start(column).rstrip("0123456789")) + "*",
        lambda column: "*" + literal(_end(column)),
        lambda column: "*",
    )
    for way in ways:
        parts = [literal(column[0]) if len(set(column)) == 1 else way(column) for column in columns]
        tail = _end(columns[-1]).rpartition(".")[1:]
        if parts[-1].endswith("*"):
            parts[-1] += literal("".join(tail))
        if {name for name in names if _matches(name, parts)} == wanted:
            return "/".join(parts)
    return None


def _matches(name: str, parts: list[str]) -> bool:
    own = name.split("/")
    return len(own) == len(parts) and all(map(fnmatchcase, own, parts))


def _start(words: Sequence[str]) -> str:
    """The letters that all words begin with."""
    return "".join(letters[0] for letters in takewhile(lambda found: len(set(found)) == 1, zip(*words, strict=False)))


def _end(words: Sequence[str]) -> str:
    return _start([word[::-1] for word in words])[::-1]


def literal(text: str) -> str:
    """Text as a pattern that matches it alone."""
    return re.sub(r"[{]", "[{]", escape(text))
