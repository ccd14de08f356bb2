"""A record is one measured table with all that one needs to make it again; records lie in results/<section>/*.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Cell = str | int | float | None  # None: not measured
ABOUT = "section.json"  # of a section's folder: its title, its place on the page, and what stands above its tables

SOURCE = "source"  # the column of published rows, which no command of ours makes


@dataclass(frozen=True)
class Record:
    """One table. `intro` stands above it and says what is measured, `note` below and says what was found.

    `command` makes the table again, a command a line; `date` (year-month-day) and `machine` say when and on what it was
    measured; `data` are files beside the record with every figure, `figure` a picture, from the repository's root.
    `beside` is another record of the section, whose rows stand below these, such as published ones.
    Raises ValueError for a field that says nothing, and for a row of another length than the columns.
    """

    title: str
    date: str
    machine: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    command: str = ""
    intro: str = ""
    note: str = ""
    data: tuple[str, ...] = ()
    figure: str = ""
    beside: str = ""

    def __post_init__(self) -> None:
        for name in ("title", "date", "machine", "columns", "rows"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; a record says what was measured, when, on what and how")
        if not self.command and SOURCE not in self.columns:
            raise ValueError(f"command is empty; what was not measured here has a column {SOURCE!r}")
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"the row of {row[0]!r} has {len(row)} cells for {len(self.columns)} columns")


@dataclass(frozen=True)
class Section:
    """A folder of records: its title, its place among the sections, and what is said of all its tables."""

    title: str
    place: int
    intro: str = ""


def read_sections(root: Path) -> list[tuple[Section, list[tuple[Path, Record]]]]:
    """results/ => its sections by place, each with its records by file name.

    A folder without section.json holds raw figures, and so do folders within a section. Raises ValueError naming the
    file that is no record.
    """
    found = []
    for about in root.glob(f"*/{ABOUT}"):
        files = sorted(path for path in about.parent.glob("*.json") if path != about)
        found.append((_read(about, Section), [(path, _read(path, Record)) for path in files]))
    return sorted(found, key=lambda section: section[0].place)


def _read(path: Path, kind: type[Any]) -> Any:
    plain = json.loads(path.read_text())
    try:
        if "columns" in plain:
            plain |= {"columns": tuple(plain["columns"]), "rows": tuple(map(tuple, plain["rows"]))}
            plain["data"] = tuple(plain.get("data", ()))
        for text in {"command", "intro", "note"} & plain.keys():
            plain[text] = "\n".join(plain[text]) if isinstance(plain[text], list) else plain[text]
        return kind(**plain)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no {kind.__name__.lower()}: {error}; raw figures lie a folder below") from error


def to_json(record: Record) -> str:
    """A record as text that people edit and compare: a line per line of text, and per row."""
    plain = {name: value for name, value in asdict(record).items() if value}
    lines = []
    for name, value in plain.items():
        if name == "rows":
            text = "[\n    " + ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in value) + "\n  ]"
        elif isinstance(value, str) and "\n" in value:
            text = json.dumps(value.split("\n"), ensure_ascii=False, indent=4).replace("\n]", "\n  ]")
        else:
            text = json.dumps(value, ensure_ascii=False)
        lines.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
