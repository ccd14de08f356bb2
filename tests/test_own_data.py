"""docs/own-data.md as written: from nothing to the accuracy of distilled images beside that of random real ones."""

import csv
import importlib
import json
import sys
from pathlib import Path

import pytest
from commands import blocks, commands, lay_out, run, runnable
from conftest import ROOT

PAGE = ROOT / "docs" / "own-data.md"
CLASSES = 3
SOON = {  # the page's commands with so little to do that nothing is learnt
    "--size tiny": "--size tiny --vae-steps 50 --dit-steps 50",
    "--check-samples 120": "--check-samples 6",
    "--epochs 200": "--epochs 2 --workers 0",
}


def made(folder: Path) -> dict[tuple[str, str], float]:
    """The page's files are there => top-1 by method and IPC."""
    assert len(list(folder.glob("shapes/train/*/[0-9]*.png"))) == 40 * CLASSES
    extends = json.loads((folder / "runs" / "shapes-grown" / "run.json").read_text())["inputs"]["extends"]
    assert (extends["reused"], extends["inverted"]) == (40 * CLASSES, 5 * CLASSES)
    assert json.loads((folder / "my-model" / "training.json").read_text())["settings"]["architecture"]
    with open(folder / "runs" / "shapes" / "evaluations" / "summary.csv", newline="") as lines:
        top1 = {(row["method"], row["ipc"]): float(row["top1_last"]) for row in csv.DictReader(lines)}
    assert set(top1) == {(method, ipc) for method in ("d3hr", "real-random") for ipc in ("1", "10")}
    return top1


def run_here(text: str, monkeypatch) -> None:
    """A block's jobs in this process, with the test session's Ray."""
    for long, short in SOON.items():
        text = text.replace(long, short)
    for python, script, *flags in commands(text):
        assert python == "python" and script.startswith("jobs/")
        monkeypatch.setattr(sys, "argv", [script, *flags])
        importlib.import_module(script.removesuffix(".py").replace("/", ".")).main()


@pytest.mark.slow
def test_the_pages_commands_lead_from_a_folder_to_an_accuracy(ray_session, here, tmp_path, monkeypatch):
    """In a minute, with models that know nothing; `make docs-check` trains them. tests/test_sweep.py sweeps."""
    found = runnable(PAGE)
    assert all(any(words in block.text for block in found) for words in SOON)
    monkeypatch.chdir(tmp_path)
    for block in found:
        if block.kind == "python":
            run(block, tmp_path)
        elif "jobs/sweep.py" not in block.text:
            run_here(block.text, monkeypatch)
    made(tmp_path)


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_three_folders_of_images_become_a_set_with_an_accuracy(tmp_path):
    lay_out(tmp_path)
    for block in runnable(PAGE):
        run(block, tmp_path)
    assert made(tmp_path)["d3hr", "10"] > 1 / CLASSES, "no better than guessing"


def test_the_page_runs_all_but_what_needs_gpus():
    assert len(runnable(PAGE)) >= 7
    assert [block.why for block in blocks(PAGE) if block.why] == ["needs GPUs and the model hub"]
