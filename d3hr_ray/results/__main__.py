"""The project's results: records in results/<section>/, and the page that is made of them.

    python -m d3hr_ray.results                         # docs/results.md, as `make results`
    python -m d3hr_ray.results --add runs/in1k/evaluations/summary.csv --record results/imagenet/soft.json \\
        --title "ImageNet-1K, soft labels" --command "jobs/evaluate.py ..."

--add takes any CSV of a job: evaluations/summary.csv, sweeps/<name>/cells.csv, report/scores-correlations.csv.
"""

import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from d3hr_ray.cli.exits import guard, refusing
from d3hr_ray.cli.parsing import parse
from d3hr_ray.config import setting
from d3hr_ray.config.fields import DATA, OUTPUT, check
from d3hr_ray.results.adding import read_csv, tabulate
from d3hr_ray.results.records import ABOUT, Record, to_json
from d3hr_ray.results.render import page

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class ResultsFlags:
    """Command line of the module."""

    add: tuple[str, ...] = setting(
        (), "CSVs of one kind, whose rows make the table of a new record.", DATA, metavar="CSV ..."
    )
    record: str = setting("", "Of --add: results/<section>/<name>.json to write; the CSVs go beside it.", OUTPUT)
    title: str = setting("", "Of --add: the table's heading.", DATA)
    command: str = setting("", "Of --add: what makes the table again, a command a line.", DATA)
    machine: str = setting("", "Of --add: what it was measured on.", DATA, shown="this machine")
    intro: str = setting("", "Of --add: what is measured; stands above the table.", DATA)
    note: str = setting("", "Of --add: what was found; stands below it.", DATA)
    beside: str = setting(
        "", "Of --add: a record of the same section whose rows stand below these, such as published.json.", DATA
    )


def main() -> None:
    """Make the page, or a record and then the page."""
    flags = parse(ResultsFlags, __doc__ or "")
    with refusing():
        if flags.add:
            add_record(flags)
        target = ROOT / "docs" / "results.md"
        target.write_text(page(ROOT))
    print(target)


def add_record(flags: ResultsFlags) -> None:
    """Write a record of a job's CSVs, and copy these beside it. Raises ValueError naming the flag that is wrong."""
    check(bool(flags.record), "--add needs --record results/<section>/<name>.json")
    path = Path(flags.record)
    check(path.suffix == ".json", f"--record {path} must end in .json")
    check(
        (path.parent / ABOUT).is_file(),
        f'--record {path}: {path.parent / ABOUT} is not there; write {{"title": ..., "place": ...}} to it first',
    )
    check(
        flags.beside in ("", *(file.name for file in path.parent.glob("*.json"))),
        f"--beside {flags.beside}: no file of {path.parent}; give its name there, such as published.json",
    )
    sources = [Path(table) for table in flags.add]
    rows = [row for source in sources for row in read_csv(source)]
    columns, cells = tabulate(rows)
    names = [f"{path.stem}{'' if len(sources) == 1 else f'-{k}'}.csv" for k in range(len(sources))]
    measured = date.fromtimestamp(max(source.stat().st_mtime for source in sources)).isoformat()
    record = Record(
        flags.title, measured, flags.machine or _machine(), columns, cells, flags.command, flags.intro, flags.note,
        tuple(names), beside=flags.beside,
    )  # fmt: skip
    for source, name in zip(sources, names, strict=True):
        shutil.copyfile(source, path.parent / name)
    path.write_text(to_json(record))
    print(path)


def _machine() -> str:
    from d3hr_ray.benchmarks.measure import machine  # imports torch

    return str(machine()["summary"])


if __name__ == "__main__":
    guard(main)
