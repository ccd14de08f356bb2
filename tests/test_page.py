"""What people look at: the report's page, real images beside distilled ones, and a set's card, whose code runs."""

import contextlib
import io
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import encode

from d3hr_ray.cli.presets import PRESETS
from d3hr_ray.config import DataConfig, as_dict
from d3hr_ray.datasets.images import Images
from d3hr_ray.datasets.look import SHOWN
from d3hr_ray.evaluation.baselines import random_set
from d3hr_ray.evaluation.comparison import Comparison, list_real
from d3hr_ray.evaluation.ranking import summarise
from d3hr_ray.evaluation.recipes import Overrides, Recipe
from d3hr_ray.evaluation.sets import DistilledSet, find_sets, load_set
from d3hr_ray.evaluation.trials import rows_of, run_trial
from d3hr_ray.report.accuracy import meaning, write_card, write_cards
from d3hr_ray.report.page import report_evaluation, write_page
from d3hr_ray.report.sheets import CELLS, grid, keep_reals, real_shots, shown_sets
from d3hr_ray.sets import sets_of
from d3hr_ray.stages.card import Origin
from d3hr_ray.stages.publish import run_publish
from d3hr_ray.stages.reals import write_class
from d3hr_ray.store import Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DIGITS = tuple("0123456789")
SECRET = "/home/somebody/secret"


def real_digits(part: str):
    return list_real(DataConfig(f"digits/{part}", "digits"), DIGITS, None)


def make_run(root) -> Store:
    """A run folder as jobs/distill.py leaves it, made without Ray: sets of 1 and 10 real digits per class."""
    import pyarrow as pa

    preset = PRESETS["digits"]()
    search = replace(preset.search, ipc=(1, 10))
    data = replace(preset.data, uri=f"{SECRET}/kept-digits/train", format="digits")
    config = replace(preset, method="random", search=search, data=data)
    store, listing = Store(str(root)), real_digits("train")
    classes = listing.classes.table()
    store.write_table("classes.parquet", classes)
    inputs = {"images": len(listing)}
    for spec in sets_of(config):
        made = [
            write_class(store, spec, listing.source, of_label(listing, label), 16, SHOWN, label, name, name)[0]
            for label, name in enumerate(DIGITS)
        ]
        run_publish(store, spec, classes, inputs, pa.concat_tables(made), Origin("cc-by-4.0", "the UCI digits"))
    record = {"config": as_dict(config), "inputs": inputs, "seed": 0, "versions": {}, "sets": {}}
    store.write_json("run.json", record)
    return store


def of_label(listing, label):
    return listing.entries.take(np.flatnonzero(listing.entries["label"].to_numpy() == label))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("page") / "run")


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """The run with three short students of its larger set, and as many of random real images."""
    store = Store(str(shutil.copytree(run.uri, tmp_path_factory.mktemp("evaluated") / "run")))
    sets = [load_set(found, 16) for found in find_sets((f"{store.uri}/distilled/random-ipc10-seed0",))]
    listing = real_digits("train")
    for seed in range(3):
        images = random_set(listing, DIGITS, 16, 10, seed).load()
        about = {"method": "real-random", "ipc": 10}
        sets.append(DistilledSet("real-random", images, images.digest, seed, about))
    test = load_test()
    comparison = Comparison(tuple(sets), test, "digits/test", Recipe(glyphs=True, overrides=Overrides(epochs=25)))
    trials = comparison.trials(["convnet-d3-w32"], ["hard"], 3, (), None)
    held = {found.set_hash: found.images for found in sets}
    for trial in trials:
        run_trial(store, trial, held[trial.set_key].load(), test, None, None, "cpu")
    rows = rows_of(store, trials)
    keep_reals(store, sets_of(PRESETS["digits"]())[0].config, listing, 16)
    write_cards(store, sets)
    report_evaluation(store, test, rows, sets)
    return store, rows, sets


def load_test() -> Images:
    return random_set(real_digits("test"), DIGITS, 16, 40, 0).load()


def test_the_page_of_a_run_says_what_to_type_next_and_shows_its_sets(run, tmp_path):
    store = Store(str(shutil.copytree(run.uri, tmp_path / "run")))
    write_page(store)
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "<title>kept-digits, distilled by a random choice of real images: d3hr_ray report</title>" in page
    assert "python jobs/evaluate.py --distilled RUN" in page
    assert page.count("<img ") == 10 * (1 + 5)  # IPC 1 and five of IPC 10, a row per class
    keep_reals(store, sets_of(PRESETS["digits"]())[0].config, real_digits("train"), 16)
    assert {k: len(v) for k, v in real_shots(store).items()} == dict.fromkeys(range(10), 5)
    write_page(store)
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert page.count("<img ") == 10 * (5 + 1 + 5)
    assert page.index('alt="real, class 0"') < page.index('alt="IPC 1, class 0"') < page.index('alt="real, class 1"')
    assert "real images of the training data, not distilled ones" in page
    there = re.findall(r'href="([^"d][^"]*)"', page)
    assert there and all((tmp_path / "run" / "report" / name).exists() for name in there)


def test_accuracy_comes_first_and_is_said_in_a_sentence(evaluated):
    store, rows, _ = evaluated
    page = store.read_bytes("report/index.html").decode()
    order = [page.index(part) for part in ("Accuracy on digits", "<h2>Images", "<h2>Files", "<h2>How it was made")]
    assert order == sorted(order)
    (cell,) = summarise([r for r in rows if r["method"] == "real-random"], ["ipc"])
    ten = next(line for line in meaning(rows) if "10 images per class" in line)
    assert f"real images {100 * cell['top1_last']:.1f} ± " in ten and "points" in ten and ten in page


@pytest.mark.slow
def test_a_run_over_private_images_shows_none_in_its_report_or_in_an_evaluations(evaluated, tmp_path):
    store, rows, sets = evaluated
    private = Store(str(shutil.copytree(store.uri, tmp_path / "run")))
    private.write_json("run.json", private.read_json("run.json") | {"real_images": False})
    assert private.exists("report/real.parquet")
    report_evaluation(private, load_test(), rows, sets)
    assert not private.exists("report/real.parquet") and not private.exists("report/real.png")
    assert private.read_json("report/sheets/names.json") != {}  # the sets themselves
    assert "real-random" not in private.read_json("report/sheets/names.json").values()
    assert 'alt="real' not in private.read_bytes("report/index.html").decode()
    elsewhere = Store(str(tmp_path / "elsewhere"))
    elsewhere.write_bytes("report/real.png", b"of an earlier evaluation")
    report_evaluation(elsewhere, load_test(), rows, [load_set(s, 16) for s in find_sets((private.uri,))])
    assert not elsewhere.exists("report/real.png")


@pytest.mark.parametrize("sizes", [(1,), (5,), (1, 5), (1, 2, 5), (5, 5, 5, 5)])
def test_the_pictures_of_a_class_fit_a_phone(sizes):
    columns = [(f"{n}", {0: [np.zeros((8, 8, 3), np.uint8)] * n}) for n in sizes]
    html = "".join(grid(columns, ["zero"]))
    assert html.count("<img ") <= CELLS and all(f'alt="{n}, class zero"' in html for n in sizes)
    assert html.count('class zero"') == sum(int(n) for n in re.findall(r"repeat\((\d+)", html))


def test_of_many_sets_one_of_each_size_is_shown():
    assert shown_sets({"b-ipc10": 10, "a-ipc10": 10, "a-ipc1": 1}) == ["a-ipc1", "a-ipc10"]
    assert shown_sets({f"s{n}": n for n in (1, 2, 5, 10, 50)}) == ["s1", "s5", "s50"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits_the_screen(evaluated, width):
    from playwright.sync_api import sync_playwright

    page_file = f"file://{evaluated[0].uri}/report/index.html"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, said = browser.new_page(viewport={"width": width, "height": 900}), []
        page.on("console", lambda message: said.append(message.text))
        page.goto(page_file)
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert said == []


def test_the_card_says_whose_the_images_are_and_nothing_of_this_machine(evaluated):
    store, rows, _ = evaluated
    own = store.at("distilled/random-ipc10-seed0")
    own.write_bytes("preview.png", encode(np.zeros((4, 4, 3), np.uint8)))
    write_card(own, rows)
    card = own.read_bytes("README.md").decode()
    assert card.startswith("---\npretty_name: random-ipc10-seed0\nlicense: cc-by-4.0\ntask_categories:\n")
    assert "| source data | the UCI digits |" in card and "| licence | cc-by-4.0 |" in card
    assert "100 images of 16 x 16 pixels, 10 per class of 10 classes" in card and "](preview.png)" in card
    assert SECRET not in card and store.uri not in card
    own.write_json("manifest.json", own.read_json("manifest.json") | {"origin": {"license": "ask: the clinic"}})
    write_card(own, [])
    card = own.read_bytes("README.md").decode()
    assert 'license: other\nlicense_name: "ask: the clinic"\n' in card and "| source data | kept-digits |" in card
    assert "Not measured yet." in card


def test_the_cards_code_reaches_the_accuracy_that_the_card_reports(evaluated, tmp_path, monkeypatch):
    store, rows, _ = evaluated
    own = shutil.copytree(f"{store.uri}/distilled/random-ipc10-seed0", tmp_path / "set")
    write_card(Store(str(own)), rows)
    test = load_test()
    for i, (pixels, label) in enumerate(zip(test.pixels, test.labels, strict=True)):
        (tmp_path / "digits" / DIGITS[label]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "digits" / DIGITS[label] / f"{i}.png").write_bytes(encode(pixels))
    card = (own / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(code.splitlines()) <= 10
    mean, half = map(float, re.search(r"\| 3 \| ([\d.]+) ± ([\d.]+) \|", card).groups())
    monkeypatch.chdir(own)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code.replace("TEST_IMAGES", os.fspath(tmp_path / "digits")), {})
    top1 = float(re.search(r"top-1 on 400 real images: ([\d.]+)%", said.getvalue())[1])
    assert mean - half - 0.05 <= top1 <= mean + half + 0.05  # the card's numbers are rounded
