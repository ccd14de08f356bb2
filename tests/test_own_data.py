"""docs/own-data.md as written: from nothing to the accuracy of distilled images beside that of random real ones."""

import csv
import json

import pytest
from commands import blocks, lay_out, run, runnable
from conftest import ROOT

PAGE = ROOT / "docs" / "own-data.md"
CLASSES = 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_folders_of_images_become_a_set_with_an_accuracy(tmp_path):
    lay_out(tmp_path)
    for block in runnable(PAGE):
        if "jobs/sweep.py" not in block.text:
            run(block, tmp_path)
    assert len(list(tmp_path.glob("shapes/train/*/*.png"))) == 40 * CLASSES
    assert json.loads((tmp_path / "my-model" / "training.json").read_text())["settings"]["architecture"]
    with open(tmp_path / "runs" / "shapes" / "evaluations" / "summary.csv", newline="") as lines:
        top1 = {(row["method"], row["ipc"]): float(row["top1_last"]) for row in csv.DictReader(lines)}
    assert set(top1) == {(method, ipc) for method in ("d3hr", "real-random") for ipc in ("1", "10")}
    assert top1["d3hr", "10"] > 1 / CLASSES, "no better than guessing"


def test_the_page_runs_all_but_what_needs_gpus():
    assert len(runnable(PAGE)) >= 7
    assert [block.why for block in blocks(PAGE) if block.why] == ["needs GPUs and the model hub"]
