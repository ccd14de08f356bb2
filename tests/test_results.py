"""docs/results.md is what the records say; each record says how to make it again; a job's CSV becomes one."""

import csv
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commands import check, commands
from conftest import ROOT

from d3hr_ray.results import __main__ as job
from d3hr_ray.results.adding import accuracies, tabulate
from d3hr_ray.results.records import SOURCE, Record, read_sections, to_json
from d3hr_ray.results.render import page, with_rows

RECORDS = {path: record for _, records in read_sections(ROOT / "results") for path, record in records}
NAMED = [pytest.param(path, id=str(path.relative_to(ROOT / "results"))) for path in RECORDS]
MADE = Record("t", "2026-01-02", "m", ("set", "IPC 1"), (("ours", 1.5), ("theirs", None)), "make demo")


def test_the_page_is_made_of_the_records_and_never_edited_by_hand():
    assert (ROOT / "docs" / "results.md").read_text() == page(ROOT), "run `make results`"


@pytest.mark.parametrize("path", NAMED)
def test_a_record_names_a_command_that_its_job_takes(path):
    record = RECORDS[path]
    assert record.command or SOURCE in record.columns
    wrong = [found for words in commands(record.command) if (found := check(words))]
    assert not wrong
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record.date)


@pytest.mark.parametrize("path", NAMED)
def test_a_record_is_written_as_it_is_read(path):
    assert path.read_text() == to_json(RECORDS[path])
    for name in (*RECORDS[path].data, *filter(None, [RECORDS[path].beside])):
        assert (path.parent / name).is_file()
    assert not RECORDS[path].figure or (ROOT / RECORDS[path].figure).is_file()


@pytest.mark.parametrize("wrong", [{"command": ""}, {"title": ""}, {"rows": (("a",),)}, {"rows": ()}])
def test_a_record_that_says_too_little_is_refused(wrong):
    with pytest.raises(ValueError, match=r"empty|cells"):
        replace(MADE, **wrong)


def test_a_file_that_is_no_record_is_named(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "section.json").write_text('{"title": "X", "place": 1}')
    (tmp_path / "x" / "raw.json").write_text('{"ratios": {}}')
    with pytest.raises(ValueError, match=r"raw\.json is no record: .*a folder below"):
        read_sections(tmp_path)


def test_published_rows_stand_below_ours_with_their_source():
    published = Record("p", "2026-01-02", "m", ("method", "IPC 1", "IPC 9", SOURCE), (("DC", "70", "80", "a paper"),))
    columns, rows = with_rows(MADE, published)
    assert columns == ("set", "IPC 1", SOURCE)
    assert rows == (("ours", 1.5, None), ("theirs", None, None), ("DC", "70", "a paper"))


def test_what_the_whole_set_gives_stands_in_its_own_column_or_not_at_all():
    rows = (("DC", "70", None, "a paper"), ("whole set", None, "93.5", "a paper"))
    published = Record("p", "2026-01-02", "m", ("method", "IPC 1", "all images", SOURCE), rows)
    assert with_rows(MADE, published)[1][2:] == (("DC", "70", "a paper"),)
    wide = replace(MADE, columns=("set", "all images"))
    assert with_rows(wide, published)[1][2:] == (("whole set", "93.5", "a paper"),)


def cell(**other: object) -> dict[str, str]:
    plain = {
        "set": "d3hr-moments-t600-ipc10", "ipc": 10, "arch": "convnet-d3", "protocol": "hard", "teacher": "", "n": 3,
        "top1_last": 0.5, "top1_last_ci95": 0.012, "top1_last_low": 0.49, "top1_last_high": 0.51,
    }  # fmt: skip
    return {key: str(value) for key, value in (plain | other).items()}


def test_accuracies_become_a_row_per_set_and_a_column_per_ipc():
    rows = [cell(), cell(set="d3hr-moments-t600-ipc2", ipc=2, n=2), cell(set="real-full", ipc="", n=1, top1_last=0.9)]
    columns, table = accuracies(rows)
    assert columns == ("set", "IPC 2", "IPC 10", "all images")
    assert table == (
        ("d3hr-moments-t600", "50.0 (49.0, 51.0)", "50.0 ± 1.2", None),
        ("real-full", None, None, "90.0"),
    )
    assert accuracies([cell(), cell(arch="resnet18")])[0] == ("arch", "set", "IPC 10")
    with pytest.raises(ValueError, match="two accuracies of d3hr-moments-t600 at IPC 10"):
        accuracies([cell(), cell(top1_last=0.6)])
    with pytest.raises(ValueError, match="d3hr-moments-t600 was trained under versions 1 and 2 of"):
        accuracies([cell(protocol_version="1"), cell(set="d3hr-moments-t600-ipc50", ipc="50", protocol_version="2")])
    assert accuracies([cell(), cell()]) == accuracies([cell()])  # of two sweeps that share it


def test_any_other_csv_is_shown_as_it_is():
    assert tabulate([{"class": "4", "loss": "0.0123456"}]) == (("class", "loss"), (("4", "0.01235"),))


def test_one_command_turns_a_jobs_csv_into_a_record(tmp_path, monkeypatch, capsys):
    section = tmp_path / "results" / "mine"
    section.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (section / "section.json").write_text('{"title": "Mine", "place": 1}')
    with open(tmp_path / "summary.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, cell().keys())
        writer.writeheader()
        writer.writerow(cell())
    monkeypatch.setattr(job, "ROOT", tmp_path)
    words = f"--add {tmp_path}/summary.csv --record {section}/hard.json --title Hard --machine here"
    monkeypatch.setattr(sys, "argv", ["results", *words.split(), "--command", "python jobs/evaluate.py"])
    job.main()
    record = json.loads((section / "hard.json").read_text())
    assert record["rows"] == [["d3hr-moments-t600", "50.0 ± 1.2"]] and record["command"] == "python jobs/evaluate.py"
    assert (section / "hard.csv").read_text() == (tmp_path / "summary.csv").read_text()
    assert "[hard.csv](../results/mine/hard.csv)" in Path(tmp_path / "docs" / "results.md").read_text()
    monkeypatch.setattr(sys, "argv", ["results", "--add", f"{tmp_path}/summary.csv", "--record", "nowhere/x.json"])
    with pytest.raises(SystemExit) as stop:
        job.main()
    assert stop.value.code == 2 and "section.json is not there" in capsys.readouterr().err
    beside = ["--beside", "results/mine/published.json"]
    monkeypatch.setattr(sys, "argv", ["results", *words.split(), "--command", "python jobs/evaluate.py", *beside])
    with pytest.raises(SystemExit):
        job.main()
    assert f"--beside {beside[1]}: no file of {section}; give its name there" in capsys.readouterr().err
