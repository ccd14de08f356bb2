"""jobs/evaluate.py and jobs/sweep.py as commands on a real Ray; the report's page in a real browser."""

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import psutil
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from conftest import run_job
from ray import cloudpickle
from stripes import hard, stripes, write_set

from d3hr_ray.cli import evaluate_inputs
from d3hr_ray.cli.distill_config import build_config
from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.cli.evaluate_flags import EvaluateFlags
from d3hr_ray.cli.presets import PRESETS
from d3hr_ray.config import DataConfig, as_dict
from d3hr_ray.datasets.images import Images, nbytes
from d3hr_ray.evaluation.baselines import baseline_sets, full_set, read_full
from d3hr_ray.evaluation.comparison import list_real, list_train, open_comparison, with_sets
from d3hr_ray.evaluation.recipes import Recipe
from d3hr_ray.evaluation.schedule import launch, tune_trials
from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.evaluation.trials import make_trial, rows_of
from d3hr_ray.models.teachers import Target
from d3hr_ray.report.tables import write_sweep
from d3hr_ray.runtime.capacity import Workers
from d3hr_ray.runtime.objects import Shelf
from d3hr_ray.store import Store
from jobs import distill, evaluate, sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def evaluated(ray_session, tmp_path_factory):
    """Two sets of real digits, evaluated with all that the report shows."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_job(distill, monkeypatch, f"--preset digits --method random --ipc 1 2 --out {out}")
        run_job(evaluate, monkeypatch, f"--distilled {out} {EVALUATE}")
    return out


EVALUATE = (
    "--arch convnet-d3-w32 --protocol hard --teacher train --teacher-arch convnet-d3-w8 --repeats 2 --epochs 3 "
    "--ranking --workers 0 --baselines real-random pixel-kmeans"
)


@pytest.mark.slow
def test_every_training_run_is_a_row_of_the_contract(evaluated):
    rows = pq.read_table(evaluated / "evaluations" / "results.parquet").to_pylist()
    contract = "set method search timestep ipc arch protocol seed top1_last top1_best top5_last teacher teacher_top1"
    assert {*contract.split(), "top5_best", "set_hash", "seconds", "protocol_version"} <= rows[0].keys()
    kept = [r for r in rows if r["protocol"] != "teacher"]
    # 2 IPCs x 3 kinds of set x 2 repeats x 3 protocols, and 2 repeats of the full set under each
    assert len(kept) == 2 * 3 * 2 * 3 + 2 * 3
    assert {r["set"] for r in kept} == {"random-ipc1", "random-ipc2", "real-random", "pixel-kmeans", "real-full"}
    assert all(0 <= r["top1_last"] <= r["top1_best"] <= r["top5_best"] <= 1 for r in kept)
    assert all((r["teacher"] is None) == (r["protocol"] == "hard") for r in kept)
    assert {r["teacher_top1"] for r in kept if r["teacher"]} == {max(r["teacher_top1"] or 0 for r in kept)}
    assert kept[0]["protocol_version"].endswith("-glyphs2+epochs=3")
    hashes = {(r["set"], r["ipc"], r["set_seed"]): r["set_hash"] for r in kept if r["set"] == "real-random"}
    assert len(set(hashes.values())) == 4
    ranking = (evaluated / "report" / "ranking.csv").read_text()
    columns = "set fidelity inversion_guidance guidance settings ipc arch HLR IOR LRS"
    assert ranking.startswith(",".join(f'"{name}"' for name in columns.split()))
    cells = pacsv.read_csv(evaluated / "evaluations" / "summary.csv").to_pylist()
    assert sum(c["students"] for c in cells) == len(kept)
    assert {"top1_last", "top1_last_std", "top1_last_ci95"} <= cells[0].keys()


@pytest.mark.slow
def test_the_same_command_trains_nothing_again(evaluated, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in (evaluated / "evaluations" / "runs").iterdir()}
    run_job(evaluate, monkeypatch, f"--distilled {evaluated} {EVALUATE}")
    assert before == {p: p.stat().st_mtime_ns for p in (evaluated / "evaluations" / "runs").iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_shows_every_image_without_an_error(evaluated, width):
    from playwright.sync_api import sync_playwright

    page_file = evaluated / "report" / "index.html"
    assert "http" not in page_file.read_text().replace("http-equiv", "")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, said = browser.new_page(viewport={"width": width, "height": 900}), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(page_file.as_uri())
        images = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
        scroll = page.evaluate("document.documentElement.scrollWidth")
        browser.close()
    assert len(images) >= 6 and all(images)
    assert said == []
    assert scroll <= width


# Computed when all images were still loaded by the driver: students that were trained then are not trained again.
HASHES = {
    "herding": "92cba83ab90f08f4",
    "kmeans-real": "8cf857cfcc9a522b",
    "pixel-kmeans": "14633999d0158991",
    "real-random": "611b62766165633a",
    "real-full": "74bf8c2ecda6e660",
    "test": "c355a56c58c545f9",
}


def test_a_comparison_holds_no_image_and_names_its_sets_as_ever(ray_session, tmp_path):
    digits, names = tuple("0123456789"), ("real-random", "herding", "kmeans-real", "pixel-kmeans")
    theirs = replace(stripes(2, classes=10), classes=digits)
    path, data = write_set(tmp_path / "theirs", theirs), DataConfig("digits/test")
    comparison = open_comparison((path,), data, None, ["convnet-d3-w32"], None, Recipe())
    assert comparison.sets[0].set_hash == theirs.digest
    listing = list_real(DataConfig("digits/train"), digits, None)
    full = read_full(listing, 16, digits, "--full")
    comparison = with_sets(
        comparison, [*baseline_sets(comparison.sets, comparison.test, names, listing, full, 2), full_set(full)]
    )
    found = {each.name: each.set_hash for each in comparison.sets[1:] if each.set_seed == 1 or each.name == "real-full"}
    assert found | {"test": comparison.test.digest} == HASHES
    settings = [
        {
            each.about["settings"]
            for each in baseline_sets(comparison.sets[:1], comparison.test, names[:1], one, None, 1)
        }
        for one in (listing, replace(listing, entries=listing.entries.slice(10)))
    ]
    assert settings[0].isdisjoint(settings[1]), "random images of two sources share no mean"
    for each in comparison.sets:
        assert each.images.load().digest == each.set_hash
        assert len(each.images.load(glance=True)) <= 100
    # Ray itself keeps objects of less than 100 kB, as these coresets are, with their owner.
    assert len(cloudpickle.dumps(comparison)) < sum(map(nbytes, (comparison.test, *comparison.images().values()))) / 10


def test_what_is_compared_does_not_depend_on_which_set_is_named_first(tmp_path, evaluated):
    """Beside a set of ours, one that others made is tested on our held-out images, whichever comes first."""
    ours = str(evaluated)
    theirs = write_set(tmp_path / "theirs", replace(stripes(2, classes=10), classes=tuple("0123456789")))
    found = [open_comparison(p, None, None, ["convnet-d3"], None, Recipe()) for p in ((ours, theirs), (theirs, ours))]
    assert found[0].data == found[1].data and found[0].test.digest == found[1].test.digest
    assert {each.key for each in found[0].sets} == {each.key for each in found[1].sets}
    assert list_train(found[1], None).counts() == list_train(found[0], None).counts()


def test_the_precision_asked_for_reaches_students_and_no_teacher(ray_session, tmp_path, monkeypatch):
    theirs = write_set(tmp_path / "theirs", replace(stripes(2, classes=10), classes=tuple("0123456789")))
    flags = EvaluateFlags((theirs,), "digits/test", train_data="digits/train", teacher=("train",), precision="bfloat16")
    comparison, _, full = evaluate_inputs.open_all(flags)
    assert {t.protocol.precision for t in comparison.trials(("convnet-d3-w8",), ("dc",), 1, (), None)} == {"bfloat16"}
    asked = []
    monkeypatch.setattr(evaluate_inputs, "launch", lambda store, trials, *rest: asked.extend(trials))
    evaluate_inputs._train_teacher(flags, Store(str(tmp_path / "out")), comparison, full, Workers(0, 0.0))
    longer = replace(flags, teacher_epochs=120, full_epochs=40)
    evaluate_inputs._train_teacher(longer, Store(str(tmp_path / "out")), comparison, full, Workers(0, 0.0))
    assert [t.protocol.precision for t in asked] == ["float32"] * 2
    versions = [(90, "1-glyphs2"), (120, "1-glyphs2+epochs=120")]
    assert [(t.protocol.epochs, t.protocol.version) for t in asked] == versions
    assert asked[0].keep != asked[1].keep, "teachers of two lengths are two"


def test_a_set_is_one_object_until_others_need_its_room(ray_session):
    @dataclass(frozen=True)
    class Claiming(Images):
        """A few images that claim to be a hundred megabytes."""

        def __len__(self) -> int:
            return 100_000_000 // (16 * 16 * 3)

    images = {name: Claiming(**vars(stripes(2, seed))) for seed, name in enumerate("ab")}
    shelf, node = Shelf(images), ray_session.get_runtime_context().get_node_id()
    first = shelf.take("a", node)
    assert shelf.take("a", node) == first
    shelf.take("b", node)  # both do not fit half of 300 MB
    again = shelf.take("a", node)
    assert again != first and list(shelf.held) == ["a"]
    assert ray_session.get(again[0]).digest == images["a"].digest == ray_session.get(first[0]).digest


def test_workers_of_one_student_each_have_a_gpu_of_their_own():
    """NCCL refuses two ranks on one GPU, minutes later and in its own words."""
    with pytest.raises(ValueError, match=r"--gpus-per-worker 0.5 puts several on one.*give --gpus-per-worker 1"):
        Workers(2, 0.5, 2)
    assert Workers(2, 1.0, 2) and Workers(2, 0.0, 2) and Workers(2, 0.5, 1)


@pytest.mark.slow
def test_two_workers_train_one_student_and_survive_the_death_of_one(ray_session, tmp_path):
    found = DistilledSet("s", stripes(8), "hash", 0, {"method": "s", "ipc": 8})
    protocol = hard(batch_size=12)
    trials = [make_trial(found, "convnet-d3-w32", protocol, seed, (), None, ("stripes", "digest")) for seed in range(8)]
    store, workers = Store(str(tmp_path)), Workers(2, 0.0, 2)

    def kill_one() -> None:
        while not store.list("evaluations/runs"):
            time.sleep(0.2)
        trainers = [
            p for p in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(p.info["cmdline"] or [])
        ]
        os.kill(trainers[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    target = Target(found.images.classes, None, 16)
    launch(store, trials, {"hash": found.images}, stripes(30, 1), target, workers, {})
    killer.join(5)
    assert not killer.is_alive()
    rows = [store.read_json(t.record) for t in trials]
    assert np.mean([row["top1_last"] for row in rows]) > 0.95


@pytest.mark.slow
def test_a_sweep_shares_what_is_upstream_and_repeats_nothing(ray_session, here, tmp_path, monkeypatch, capsys):
    config = as_dict(PRESETS["digits"]())
    config["data"]["limit_per_class"] = 12
    (tmp_path / "small.json").write_text(json.dumps({"config": config}))
    command = f"--preset {tmp_path}/small.json --run {tmp_path}/run --ipc 1 2 --timesteps 100 200 --candidates 32"
    run_job(sweep, monkeypatch, f"{command} --seeds 0 1 --arch convnet-d3-w32 --epochs 40 --at-once 1 --name first")
    runs = tmp_path / "run" / "evaluations" / "runs"
    before = {p: p.stat().st_mtime_ns for p in runs.iterdir()}
    assert len(before) == 2 * 2 * 2
    trials = pq.read_table(tmp_path / "run" / "sweeps" / "first" / "trials.parquet").to_pylist()
    assert {(r["ipc"], r["timestep"], r["set_seed"]) for r in trials} == {
        (n, t, s) for n in (1, 2) for t in (100, 200) for s in (0, 1)
    }
    assert {(r["data"], r["state"]) for r in trials} == {("digits", "finished")}
    sets = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "sets").rglob("*.png")}
    run_job(sweep, monkeypatch, f"--run {tmp_path}/run --name first --resume")
    assert before == {p: p.stat().st_mtime_ns for p in runs.iterdir()}
    assert sets == {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "sets").rglob("*.png")}
    best = tmp_path / "run" / "sweeps" / "first" / "best.json"
    found = json.loads(best.read_text())["found"]
    preset = build_config(DistillFlags(preset=str(best)))
    assert preset.inversion.timesteps == (found["timestep"],)
    assert preset.search.candidates == 32
    assert "best over IPCs and students" in capsys.readouterr().out


@pytest.mark.slow
def test_what_asha_stops_is_in_the_table_of_trials_and_in_no_mean(ray_session, tmp_path):
    """A good set before a bad one, one at a time: the second is stopped at its first look, and stays so."""
    store, base, images, test = Store(str(tmp_path)), PRESETS["digits"](), stripes(8), stripes(30, 1)
    noise = replace(images, labels=(images.labels + 1) % 3)  # what is learnt from it is wrong
    about = {"method": "gaussian", "timestep": 600, "ipc": 8, "settings": "good", "config": json.dumps(as_dict(base))}
    sets = [
        DistilledSet("s", images, "good", 0, about),
        DistilledSet("s", noise, "bad", 1, about | {"settings": "bad"}),
    ]
    trials = [make_trial(found, "convnet-d3-w32", hard(), 0, (), None, ("stripes", "digest")) for found in sets]
    held, target = {found.set_hash: found.images for found in sets}, Target(images.classes, None, 16)
    for _ in range(2):  # the second time nothing is left to train
        stopped, failed = tune_trials(store, trials, held, test, target, {}, "asha", 0.0, 1, "first")
        said = write_sweep(store, "first", base, rows_of(store, trials), stopped)
        assert failed == ""
        assert "1 students finished, 1 stopped early" in said
    folder = tmp_path / "sweeps" / "first"
    table = pq.read_table(folder / "trials.parquet").to_pylist()
    last = table[-1]
    assert [(r["state"], r["settings"]) for r in table] == [("finished", "good"), ("stopped", "bad")]
    assert (last["set_seed"], last["arch"], last["key"]) == (1, "convnet-d3-w32", trials[1].key)
    assert (last["epoch"], last["top1_best"]) == (8, None)  # the first of 8 looks in 60 epochs
    assert last["top1_last"] < 0.3 < table[0]["top1_last"]
    assert '"stopped"' in (folder / "trials.csv").read_text()
    (cell,) = pacsv.read_csv(folder / "cells.csv").to_pylist()
    assert (cell["set"], cell["settings"], cell["students"]) == ("s", "good", 1)
    assert json.loads((folder / "best.json").read_text())["found"]["settings"] == "good"
