"""Records => docs/results.md."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from d3hr_ray.results.adding import WHOLE
from d3hr_ray.results.records import Cell, Record, read_sections

Row = tuple[Cell, ...]

HEAD = """For those who compare methods, or ask what a number in the README rests on: every table, with its command.

# Results

<!-- made by `make results` from the records in results/: change those, not this page -->
"""


def page(root: Path) -> str:
    """The repository's root => the whole page: a list of its sections, then every record's table with its command."""
    sections = read_sections(root / "results")
    lines = [HEAD, *(f"- [{section.title}](#{anchor(section.title)})" for section, _ in sections)]
    for section, records in sections:
        lines += ["", f"## {section.title}", *([""] if section.intro else []), *section.intro.splitlines()]
        named = {path.name: record for path, record in records}
        for path, record in records:
            if record.beside and record.beside not in named:
                raise ValueError(f"{path}: beside is {record.beside!r}; it is a file of its folder: {', '.join(named)}")
            below = named.get(record.beside)
            lines += ["", *record_lines(record, f"../results/{path.parent.name}", below)]
    return "\n".join(lines) + "\n"


def record_lines(record: Record, folder: str, below: Record | None = None) -> Iterator[str]:
    """A record => Markdown: title, table with the rows of another one below, what was found, and how it was made."""
    yield f"### {record.title}"
    if record.intro:
        yield from ("", record.intro)
    yield ""
    yield from table_lines(*(with_rows(record, below) if below else (record.columns, record.rows)))
    if record.figure:
        yield from ("", f"![{record.title}](../{record.figure})")
    if record.note:
        yield from ("", record.note)
    links = ", ".join(f"[{name}]({folder}/{name})" for name in record.data)
    data = f" All figures: {links}." if links else ""
    yield from ("", f"{record.machine}, {record.date}.{data}")
    if record.command:
        yield from ("", "```", record.command, "```")


def with_rows(record: Record, below: Record) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """Columns and rows of a record, and below them another's, whose columns are found by name.

    The first column of those below, what a method is called, goes to ours of sets; accuracies at sizes that we have not
    are left out, with the methods that have no others, and other columns (labels, source) are added.
    """
    sizes = [name for name in below.columns if name.startswith("IPC") or name == WHOLE]
    added = [name for name in below.columns[1:] if name not in (*record.columns, *sizes)]
    columns = (*record.columns, *added)
    ours = [(*row, *(None for _ in added)) for row in record.rows]
    names = ("set", *below.columns[1:])
    theirs = [dict(zip(names, row, strict=True)) for row in below.rows]
    theirs = [row for row in theirs if not sizes or any(row[name] for name in sizes if name in columns)]
    return columns, (*ours, *(tuple(row.get(name) for name in columns) for row in theirs))


def table_lines(columns: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    """Columns and rows as a Markdown table."""
    yield _row(columns)
    yield "|" + "---|" * len(columns)
    yield from map(_row, rows)


def _row(cells: Sequence[Cell]) -> str:
    return "| " + " | ".join("" if cell is None else str(cell).replace("|", "\\|") for cell in cells) + " |"


def anchor(title: str) -> str:
    """A heading => what GitHub calls it in links."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.strip().replace(" ", "-")
