"""A CSV that a job wrote => the columns and rows of a record."""

import csv
from collections.abc import Sequence
from pathlib import Path

from d3hr_ray.evaluation.ranking import accuracy_of
from d3hr_ray.results.records import Cell

ACCURACIES = {"set", "ipc", "arch", "protocol", "top1_last", "n"}  # of summary.csv and cells.csv
WHOLE = "all images"  # the column of the whole set
DIGITS = 4  # significant ones, of figures that are shown as they are
Row = dict[str, str]


def read_csv(path: Path) -> list[Row]:
    """The rows of a CSV. Raises ValueError if there are none."""
    with open(path, newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def tabulate(rows: Sequence[Row]) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """Rows of a job's CSV => columns and rows: accuracies by IPC, anything else as it is."""
    if rows[0].keys() >= ACCURACIES:
        return accuracies(rows)
    columns = tuple(rows[0])
    return columns, tuple(tuple(_short(row[name]) for name in columns) for row in rows)


def accuracies(rows: Sequence[Row]) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """Cells of accuracy => a row per set, student and protocol, a column per IPC or for the whole set; in percent.

    Students, protocols and teachers of which there is one have no column. A name loses its IPC, which its column says.
    Sweeps of one run may share cells. Raises ValueError for two accuracies of one cell, two versions in one row.
    """
    rows = [row | {"ipc": ""} if row.get("method") == "real-full" else row for row in rows]
    varied = [name for name in ("arch", "protocol", "teacher") if len({row.get(name) for row in rows}) > 1]
    ipcs = sorted({row["ipc"] for row in rows}, key=lambda ipc: (ipc == "", int(ipc or 0)))
    table: dict[tuple[str, ...], dict[str, str]] = {}
    means: dict[tuple[str, ...], str] = {}
    versions: dict[tuple[str, ...], str] = {}
    for row in rows:
        key = (*(row[name] for name in varied), _name(row))
        if means.setdefault((*key, row["ipc"]), row["top1_last"]) != row["top1_last"]:
            raise ValueError(f"two accuracies of {_name(row)} at IPC {row['ipc']}: give CSVs of one run and protocol")
        version = row.get("protocol_version", "")
        if row["ipc"] and versions.setdefault(key, version) != version:
            raise ValueError(
                f"{_name(row)} was trained under versions {versions[key]} and {version} of {row['protocol']}"
            )
        table.setdefault(key, {})[row["ipc"]] = _accuracy(row)
    columns = (*varied, "set", *(f"IPC {ipc}" if ipc else WHOLE for ipc in ipcs))
    return columns, tuple((*key, *(own.get(ipc) for ipc in ipcs)) for key, own in sorted(table.items()))


def _name(row: Row) -> str:
    guided = f" {float(row['inversion_guidance']):g}/{float(row['guidance']):g}" if row.get("guidance") else ""
    return row["set"].replace(f"-ipc{row['ipc']}", "", 1) + guided


def _accuracy(row: Row) -> str:
    """As the job prints it; what was not to be said, such as an interval of two sets, is empty."""
    names = ("n", *(f"top1_last{end}" for end in ("", "_low", "_high", "_ci95")))
    return accuracy_of({name: float(row.get(name) or "nan") for name in names})


def _short(text: str) -> Cell:
    """A figure with few digits, any other word as it is, nothing as None."""
    try:
        return f"{float(text):.{DIGITS}g}" if "." in text else text or None
    except ValueError:
        return text
