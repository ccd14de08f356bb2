"""Command line => a flags dataclass; what is wrong with it is one line that names the flag and the fix."""

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, field, fields, make_dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from d3hr_ray.cli.exits import refuse
from d3hr_ray.cli.flags import flag_in, text_of
from d3hr_ray.config import Flag, flag_of
from d3hr_ray.config.fields import GROUPS

T = TypeVar("T")
ELSEWHERE = {  # flags that people look for in jobs without them
    "resume": "; it is not needed: the same command resumes",
    "cluster-timestep": "; it is of jobs/distill.py",
}
METAVARS = {int: "INT ...", float: "FLOAT ..."}  # of lists; of words NAME ...


def parse(flags: type[T], description: str, argv: Sequence[str] | None = None) -> T:
    """Command line => a flags dataclass. A wrong flag exits with status 2 and one line that names it and the fix."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv or "-h" in argv:
        _parsed(flags, description, argv)
    try:
        return read(flags, argv)
    except ValueError as error:
        refuse(f"{error} (see --help)")


def read(flags: type[T], argv: Sequence[str]) -> T:
    """Words of a command line => a flags dataclass. Raises ValueError for a wrong flag, with its name and the fix."""
    lists, before = _list_flags(flags), set[str]()
    for word, following in zip(argv, [*argv, "--"][1:], strict=True):
        flag = flag_in(word)
        if flag in lists and following.startswith("--") and "=" not in word:
            raise ValueError(f"{word} has no value; give one or more, or leave it out")
        if flag in lists and flag in before:
            raise ValueError(f"{flag} is given twice; give it once, with all its values")
        before.add(flag)
    flag = ""
    for word in argv:
        flag = word.rstrip("=") if word.startswith("--") else flag
        if word == "" or re.fullmatch(r"--[\w-]+=", word):
            raise ValueError(f"{flag} has an empty value; is a variable of the shell not set?")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return _parsed(flags, "", argv)
    except SystemExit as stop:
        raise ValueError(_one_line(said.getvalue(), flags)) from stop


def _parsed(flags: type[T], description: str, argv: Sequence[str]) -> T:
    options = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)
    groups: Any = tyro.cli(_grouped(flags), description=description, args=argv, config=options)
    return flags(**{f.name: getattr(getattr(groups, _flag(f).group), f.name) for f in fields(flags)})  # type: ignore[arg-type]


def _grouped(flags: type) -> type:
    """The flags of each group of --help as a dataclass of their own."""
    hints = get_type_hints(flags, include_extras=True)
    parts: list[Any] = []
    for group, about in GROUPS.items():
        own = [(f.name, _annotated(f, hints[f.name]), field(default=f.default)) for f in _of_group(flags, group)]
        if own:
            part = make_dataclass(group, own, frozen=True)
            part.__doc__ = about or None
            parts.append((group, part))
    return make_dataclass(flags.__name__, parts, frozen=True)


def _of_group(flags: type, group: str) -> Iterator[Field[Any]]:
    return (f for f in fields(flags) if _flag(f).group == group)


def _flag(f: Field[Any]) -> Flag:
    flag: Flag = f.metadata["flag"]
    return flag


def _annotated(f: Field[Any], hint: Any) -> Any:
    """A field's type with its help, its one real default and what its value is called."""
    flag, listed = _flag(f), get_origin(hint) is tuple
    shown = flag.shown or ("" if isinstance(f.default, bool) or f.default is MISSING else text_of(f.default))
    metavar = flag.metavar or (METAVARS.get(get_args(hint)[0], "NAME ...") if listed else None)
    hint_text = f"(default: {shown})" if shown else ""
    return Annotated[hint, tyro.conf.arg(help=flag.help, metavar=metavar, help_behavior_hint=hint_text)]


def _list_flags(flags: type) -> set[str]:
    """The flags that take a list; tyro would take a list without values for an empty one."""
    return {flag_of(f.name) for f in fields(flags) if isinstance(f.default, tuple)}


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
        known = [f.name.replace("_", "-") for f in fields(flags)]
        return message + (ELSEWHERE.get(unknown[1]) or meant(unknown[1], known, "--"))
    if choice := re.match(r"invalid choice '(.*)' for argument '(--[\w-]+)'", message):
        return f"{choice[0]}; give one of: {', '.join(_choices(flags, choice[2]))}"
    if positional := re.match(r"invalid choice '(.*)' for argument '\w+\.(\w+)'|Missing from [^{]*\{", message):
        typed, name = positional[1], positional[2] or next(f.name for f in fields(flags) if f.default is MISSING)
        words = _choices(flags, flag_of(name))
        said = f"{name} is missing" if typed is None else f"{typed!r} is unknown{meant(typed, words)}"
        return f"{said}; give one of: {', '.join(words)}"
    if re.search(r"arguments: \['[^' ]+,[^' ]+'\]", message):
        message += "; values are separated by spaces, not commas"
    usage = re.search(r"Argument helptext:\s+(--[^\n]+)", "\n".join(rest))
    return message + (f"; write {usage[1].strip()}" if usage else "")


def _choices(flags: type, typed: str) -> list[str]:
    """The words that a flag takes, in their own order."""
    hints = {flag_of(name): hint for name, hint in get_type_hints(flags).items()}

    def words(hint: Any) -> list[str]:
        if get_origin(hint) is Literal:
            return [str(word) for word in get_args(hint)]
        return [word for inner in get_args(hint) for word in words(inner)]

    return words(hints[typed])
