"""Command line => a flags dataclass; what is wrong with it is one line that names the flag and the fix."""

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Annotated, TypeVar

import tyro

from d3hr_ray.cli.exits import refuse

T = TypeVar("T")

# Optional flags: None, or an empty tuple, means that the preset (or the default that the help states) decides.
Ints = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")]
Words = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")]


def parse(flags: type[T], description: str, argv: Sequence[str] | None = None) -> T:
    """Command line => a flags dataclass. A wrong flag exits with status 2 and one line that names it and the fix."""
    options = (tyro.conf.FlagCreatePairsOff,)
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv or "-h" in argv:
        return tyro.cli(flags, description=description, args=argv, config=options)
    for flag, following in zip(argv, [*argv, "--"][1:], strict=True):
        is_list = flag.startswith("--") and flag[2:].replace("-", "_") in _list_flags(flags)
        if is_list and following.startswith("--"):
            refuse(f"{flag} has no value; give one or more, or leave it out (see --help)")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(flags, description=description, args=argv, config=options)
    except SystemExit as stop:
        refuse(f"{_one_line(said.getvalue(), flags)} (see --help)")
        raise AssertionError from stop  # refuse does not return


def _list_flags(flags: type) -> set[str]:
    """Names of the fields that take a list; tyro would take a list without values for its default."""
    return {f.name for f in fields(flags) if f.default == ()}


def nearest(typed: str, known: Iterable[str]) -> list[str]:
    """What a mistyped word may stand for, likeliest first, three at most: what it begins or what begins it, else what
    it is a part of (`lr` of `optimise-lr`), else what is spelt alike."""
    typed, known = typed.replace("_", "-"), list(known)
    begun = [word for word in known if word.startswith(typed) or typed.startswith(word)]
    parts = [word for word in known if typed in word.split("-")]
    apart = sorted(begun or parts, key=lambda word: abs(len(word) - len(typed)))
    return (apart or difflib.get_close_matches(typed, known, 3, 0.6))[:3]


def meant(typed: str, known: Iterable[str], prefix: str = "") -> str:
    """ "; perhaps you meant a or b", or nothing where no known word is near."""
    words = [prefix + word for word in nearest(typed, known)]
    return f"; perhaps you meant {' or '.join(filter(None, [', '.join(words[:-1]), words[-1]]))}" if words else ""


def _one_line(box: str, flags: type) -> str:
    """The message of tyro's box, framed or plain, without its title, its repeated help and its hint on --help."""
    lines = [line.strip(" │") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    text = "\n".join(lines if "╭" in box else lines[2:])
    message, *rest = re.split(r"\n[─-]{5,}\n", text)
    message = re.split(r"\s+Got errors:", message)[0]
    message = " ".join(message.split())
    if unknown := re.match(r"Unrecognized options: --([\w-]+)", message):
        return message + meant(unknown[1], [f.name.replace("_", "-") for f in fields(flags)], "--")
    usage = re.search(r"Argument helptext:\s+(--[^\n]+)", "\n".join(rest))
    return message + (f"; write {usage[1].strip()}" if usage else "")
