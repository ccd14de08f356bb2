"""CaO2's stages in this process, without Ray: pool, choice, optimised images; and what its flags refuse."""

import io
from dataclasses import replace
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import PIPELINE, WNIDS
from PIL import Image

from d3hr_ray.cli.distill_config import build_config
from d3hr_ray.cli.distill_flags import DistillFlags
from d3hr_ray.config import (
    D3HR_QUIRKS,
    CaO2Config,
    DataConfig,
    InversionConfig,
    ModelConfig,
    Quirk,
    RunConfig,
    SearchConfig,
)
from d3hr_ray.datasets.listing import model_listing
from d3hr_ray.layout import candidate_file, subset_file
from d3hr_ray.methods.plan import plan
from d3hr_ray.models.geometry import DIT_XL_CARD
from d3hr_ray.models.students import Normalised
from d3hr_ray.numerics.grids import leading_grid
from d3hr_ray.report.tables import chosen_text
from d3hr_ray.sets import SetSpec, sets_of
from d3hr_ray.stages import candidates, choose, judge
from d3hr_ray.stages.blocks import BlockJob
from d3hr_ray.stages.choose import chosen_table
from d3hr_ray.stages.search import Block, search_range, write_block, write_noise
from d3hr_ray.stages.synthesize import SynthesizeBlock
from d3hr_ray.store import Store

CLASSES = model_listing(DataConfig("", classes=WNIDS), 1000, None).classes.table()
CONFIG = RunConfig(
    DataConfig("", classes=WNIDS),
    ModelConfig(PIPELINE, "float32"),
    InversionConfig(steps=4, batch_size=4),
    SearchConfig(ipc=(2,)),
    cao2=CaO2Config(pool=3, iterations=2, levels=(1, 2)),
    method="cao2",
)


class EveryOther:
    """A judge that is sure of the class at even places, wrong at odd ones, and surer the later."""

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(len(images), 3)
        for place in range(len(images)):
            label, index = divmod(place, 6)
            own = 0.5 + 0.05 * index if index % 2 == 0 else 0.1 + 0.02 * index
            out[place] = (1 - own) * 0.5
            out[place, label] = own
            out[place, (label + 1) % 3] += 0.0 if index % 2 == 0 else 0.01
        return out


@pytest.fixture(autouse=True)
def judged(monkeypatch):
    monkeypatch.setattr(candidates, "load_judge", lambda *args: EveryOther())


def made(root, config: RunConfig) -> tuple[Store, dict[str, np.ndarray]]:
    """One block of the whole method."""
    store, (spec,) = Store(str(root)), sets_of(config)
    pool = spec.pool
    write_noise(store, pool, 0, range(3), 4 * 8 * 8)
    candidates.JudgeBlock(BlockJob(store, config, (pool,), CLASSES, "cpu")).write(pool, 0)
    choose.choose_block(store, store, spec, 0, range(3), None)
    SynthesizeBlock(BlockJob(store, config, (spec,), CLASSES, "cpu")).write(spec, 0)
    return store, pixels(store, spec)


def pixels(store: Store, spec: SetSpec) -> dict[str, np.ndarray]:
    names = store.list(f"distilled/{spec.name}", recursive=True)
    read = {n: Image.open(io.BytesIO(store.read_bytes(f"distilled/{spec.name}/{n}"))) for n in names}
    return {n: np.asarray(image, int) for n, image in read.items()}


@pytest.mark.parametrize(("order", "places"), [("easy", [4, 2]), ("hard", [0, 2])])
def test_the_pool_is_judged_and_the_best_stay(tmp_path, order, places):
    config = replace(CONFIG, cao2=replace(CONFIG.cao2, select=order, iterations=0))
    store, images = made(tmp_path, config)
    assert len(images) == 6
    (spec,) = sets_of(config)
    pool = store.read_table(candidate_file(spec.pool, 0)).to_pylist()
    kept = store.read_table(subset_file(spec, 0)).to_pylist()
    for label in range(3):
        own = [r for r in pool if r["label"] == label]
        assert [r["predicted"] == label for r in own] == [True, False] * 3
        assert [r["latent"] for r in kept if r["label"] == label] == [own[p]["latent"] for p in places]
    table = chosen_table(store, spec, ["a", "b", "c"])
    assert table["kept_correct"].to_pylist() == [2, 2, 2]
    assert chosen_text(table) == "pool: 9 of 18 candidates on class, 6 of the 6 kept"


def test_too_few_right_candidates_fill_up_and_are_named(tmp_path):
    config = replace(CONFIG, search=SearchConfig(ipc=(2,)), cao2=replace(CONFIG.cao2, pool=1, iterations=0))
    store, _ = made(tmp_path, config)
    text = chosen_text(chosen_table(store, sets_of(config)[0], ["a", "b", "c"]))
    assert "class a: the classifier takes 1 of the 2 kept for another class" in text


def test_stage_2_moves_images_and_repeats_to_the_same_bytes(tmp_path):
    still = replace(CONFIG, cao2=replace(CONFIG.cao2, iterations=0))
    moved = replace(CONFIG, cao2=replace(CONFIG.cao2, iterations=5, lr=0.05))
    one, two, again = (made(tmp_path / n, c)[1] for n, c in (("a", still), ("b", moved), ("c", moved)))
    assert one.keys() == two.keys()
    assert any((one[n] != two[n]).any() for n in one)
    assert all((two[n] == again[n]).all() for n in two)


def test_an_actor_makes_sets_of_several_seeds_as_each_alone(tmp_path):
    """A sweep's sets share actors, which were given the config of the first."""
    config = replace(CONFIG, cao2=replace(CONFIG.cao2, iterations=5, lr=0.05), seed=1)
    store, alone = made(tmp_path, config)
    (spec,) = sets_of(config)
    store.delete(f"distilled/{spec.name}")
    other = replace(config, seed=0)
    SynthesizeBlock(BlockJob(store, other, (*sets_of(other), spec), CLASSES, "cpu")).write(spec, 0)
    for name, image in alone.items():
        again = Image.open(io.BytesIO(store.read_bytes(f"distilled/{spec.name}/{name}")))
        assert (np.asarray(again, int) == image).all()


def test_other_batches_change_rounding_only(tmp_path):
    small = replace(CONFIG, inversion=replace(CONFIG.inversion, batch_size=1))
    one, two = (made(tmp_path / n, c)[1] for n, c in (("a", CONFIG), ("b", small)))
    assert max(np.abs(one[n] - two[n]).max() for n in one) <= 1


def test_official_is_another_set(tmp_path):
    sets = [made(tmp_path / c.fidelity, c)[1] for c in (CONFIG, replace(CONFIG, fidelity="official"))]
    assert any((sets[0][n] != sets[1][n]).any() for n in sets[0])


def test_of_an_unjudged_pool_the_first_stay(tmp_path):
    config = replace(CONFIG, cao2=replace(CONFIG.cao2, select="none", iterations=0))
    store, _ = made(tmp_path, config)
    (spec,) = sets_of(config)
    pool = store.read_table(candidate_file(spec.pool, 0)).to_pylist()
    kept = store.read_table(subset_file(spec, 0)).to_pylist()
    for label in range(3):
        own = [r["latent"] for r in pool if r["label"] == label]
        assert len(own) == 6 and [r["latent"] for r in kept if r["label"] == label] == own[:2]
    text = chosen_text(chosen_table(store, spec, ["a", "b", "c"]))
    assert text == "pool: the first 6 of 18 candidates, not judged (--select none)"


class Grey(torch.nn.Module):
    """Three classes by brightness and contrast, which are others once images are normalised."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, spread = x.mean((1, 2, 3)), x.std((1, 2, 3))
        return torch.stack([mean, 40 * spread * mean.sin(), -3 * mean.abs() + spread], 1)


def distilled(root, config: RunConfig) -> dict[str, np.ndarray]:
    """One block of D3HR: Gaussians of alike spread => subsets => images."""
    store, (spec,) = Store(str(root)), sets_of(config)
    block = Block(spec, 0, range(3))
    gaussians = torch.linspace(-0.5, 0.5, 3)[:, None].repeat(1, 256), torch.linspace(0.8, 1.2, 256).repeat(3, 1)
    winners = {label: search_range(block, label, range(1), gaussians) for label in block.labels}
    write_block(store, block, gaussians, winners)
    SynthesizeBlock(BlockJob(store, config, (spec,), CLASSES, "cpu")).write(spec, 0)
    return pixels(store, spec)


D3HR = replace(
    CONFIG,
    method="d3hr",
    inversion=InversionConfig((500,), steps=4, batch_size=4),
    search=SearchConfig((3,), "random", 200, skew_weight=5.0),
)


@pytest.mark.parametrize(
    ("make", "fixed", "quirks"),
    [
        (distilled, D3HR, D3HR_QUIRKS),
        (lambda *args: made(*args)[1], CONFIG, tuple(q for q in get_args(Quirk) if q not in D3HR_QUIRKS)),
    ],
    ids=["d3hr", "cao2"],
)
def test_every_quirk_can_be_mended_alone_and_all_of_them_are_fixed(tmp_path, monkeypatch, make, fixed, quirks):
    """CaO2's by the real loading of a classifier, which is wrong often enough to fill up."""
    monkeypatch.setattr(candidates, "load_judge", judge.load_judge)
    monkeypatch.setattr(judge, "load_teacher", lambda *args: Normalised(Grey()))
    official = replace(fixed, fidelity="official", cao2=replace(fixed.cao2, classifier="resnet18"))
    fixed = replace(official, fidelity="fixed")
    sets = {q: make(tmp_path / q, replace(official, mended=(q,))) for q in quirks}
    whole, none = make(tmp_path / "official", official), make(tmp_path / "fixed", fixed)
    all_mended = make(tmp_path / "all", replace(official, mended=get_args(Quirk)))
    assert all((all_mended[name] == none[name]).all() for name in none)
    for quirk in quirks:
        assert any((sets[quirk][name] != whole[name]).any() for name in whole), quirk


def test_official_classes_share_their_candidates_until_seeds_are_mended():
    """With equal spreads the same one wins for all."""
    gaussians = torch.linspace(-0.5, 0.5, 3)[:, None].repeat(1, 64), torch.ones(3, 64)

    def winners(**changes) -> set[int]:
        config = replace(D3HR, fidelity="official", **changes)
        block = Block(sets_of(config)[0], 0, range(3))
        return {search_range(block, label, range(1), gaussians)[2] for label in range(3)}

    assert len(winners()) == len(winners(seed=1)) == len(winners(mended=("skewness",))) == 1
    assert len(winners(mended=("seeds",))) == 3
    assert winners() == winners(seed=1) and winners(mended=("seeds",)) != winners(mended=("seeds",), seed=1)


@pytest.mark.parametrize("mended", [(), ("start",), ("seeds",), ("skewness",), ("seeds", "skewness")])
def test_a_winner_is_stored_with_the_score_it_won_by(tmp_path, mended):
    store, config = Store(str(tmp_path)), replace(D3HR, fidelity="official", mended=mended)
    block = Block(sets_of(config)[0], 0, range(2))
    gaussians = torch.zeros(2, 64), torch.linspace(0.8, 1.2, 64).repeat(2, 1)
    winners = {label: search_range(block, label, range(1), gaussians) for label in block.labels}
    write_block(store, block, gaussians, winners)
    for row in store.read_table(subset_file(block.spec, 0)).to_pylist():
        assert row["score"] == pytest.approx(winners[row["label"]][0], rel=1e-4)


def test_names_tell_every_setting_apart():
    def name(method: str, **changes) -> str:
        config = replace(CONFIG, method=method, cao2=replace(CaO2Config(), **changes), inversion=InversionConfig())
        return sets_of(config)[0].name

    assert name("cao2") == "cao2-m4-easy-null100-ipc2-seed0"
    assert name("cao2", select="none", pool=1, iterations=0, sampler="ddim") == "cao2-ddim-m1-ipc2-seed0"
    assert name("d3hr+cao2") == "d3hr+cao2-moments-m4-easy-rematch-null100-t600-ipc2-seed0"
    assert name("d3hr+cao2", rematch=False, iterations=0) == "d3hr+cao2-moments-m4-easy-t600-ipc2-seed0"
    assert name("d3hr") == "d3hr-moments-t600-ipc2-seed0"
    mixed = replace(CONFIG, method="d3hr", search=SearchConfig((2,), components="ipc", single="medoid", rank=4))
    mixed = replace(mixed, inversion=InversionConfig(cluster_timestep=100))
    assert sets_of(mixed)[0].name == "d3hr-moments-k2-c100-medoid-r4-t600-ipc2-seed0"
    pooled = replace(mixed, search=replace(mixed.search, components=2, cluster_pool=2))
    assert sets_of(pooled)[0].name == "d3hr-moments-k2-c100-p2-medoid-r4-t600-ipc2-seed0"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"pool": 3}, "--pool does nothing with --method d3hr"),
        ({"method": "cao2", "components": 2}, "--components does nothing with --method cao2"),
        ({"method": "cao2", "rematch": "no"}, "--rematch does nothing with --method cao2"),
        ({"method": "d3hr+cao2", "sampler": "ddim"}, "--sampler does nothing"),
        ({"method": "cao2", "optimise": 0, "linf": 1.0}, "--optimise 0 leaves stage 2 out"),
        ({"method": "cao2", "pool": 0}, "--pool 0 must be at least 1"),
        ({"method": "cao2", "levels": (5, 2)}, "--levels 5 2: give LOW HIGH"),
        ({"method": "cao2", "levels": (1, 50)}, "--levels 50 is not on the grid of 50"),
        ({"method": "d3hr+cao2", "fidelity": "official"}, "has no --method d3hr.cao2"),
    ],
)
def test_flags_that_would_do_nothing_or_harm_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        build_config(DistillFlags(**flags))


@pytest.mark.parametrize(
    ("preset", "pool", "select", "condition", "iterations", "levels"),
    [
        ("imagenet1k", 4, "easy", "null", 100, (1, 11)),
        ("imagewoof", 4, "easy", "null", 100, (1, 11)),
        ("imagenette", 2, "easy", "class", 0, (1, 11)),
        ("imagenet100", 2, "hard", "null", 100, (1, 5)),
    ],
)
def test_official_cao2_is_each_of_the_authors_scripts(preset, pool, select, condition, iterations, levels):
    """docs/design.md's table; no data is asked for."""
    config = build_config(DistillFlags(preset=preset, method="cao2", fidelity="official"))
    cao2 = config.cao2
    assert (cao2.pool, cao2.select, cao2.condition) == (pool, select, condition)
    assert (cao2.iterations, cao2.levels) == (iterations, levels)
    assert (config.synthesis.guidance, config.synthesis.image_size) == (2.7, None)
    assert cao2.classifier == "resnet18.tv_in1k"


def test_the_plan_counts_the_pool_and_the_second_stage():
    """CaO2's scripts: ImageNet-1K at IPC 10 takes 40 x 50 x 2 + 10 x 100 x 3 = 7,000 forwards per class."""
    config = build_config(DistillFlags(preset="imagenet1k", method="cao2", ipc=(10,)))
    text = plan(config, DIT_XL_CARD, leading_grid(1000, 50), 0, 1000, 0, 300.0)
    rows = {line.split()[0]: line.split()[1:3] for line in text.splitlines()}
    assert rows["pool"] == ["40,000", "100"] and rows["synthesize"] == ["10,000", "300"]
    assert "invert" not in rows


def test_a_model_without_a_classifier_asks_for_one():
    with pytest.raises(ValueError, match="--classifier is needed"):
        judge.judge_name(CONFIG)


def test_the_models_own_classes_need_no_dataset():
    listing = model_listing(DataConfig("", classes=("goldfish", "n02099601")), 1000, None)
    assert listing.classes.table().to_pylist()[0] == {
        "label": 0,
        "name": "goldfish",
        "wnid": "n01443537",
        "model_class": 1,
    }
    assert len(listing) == 0 and listing.digest
    assert len(model_listing(DataConfig(""), 10, [str(i) for i in range(10)]).classes) == 10


def test_a_judge_answers_at_any_size():
    class Sides(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x.mean((1, 2, 3)), torch.full((len(x),), float(x.shape[-1]))], 1)

    out = judge.Judge(Sides(), 8, "cpu").probabilities(torch.zeros(3, 3, 32, 32))
    assert torch.allclose(out, torch.tensor([0.0, 8.0]).softmax(0).expand(3, 2))


@pytest.mark.parametrize(("fidelity", "seen"), [("fixed", 1.0), ("official", 1.5)])
def test_the_authors_classifier_sees_what_the_decoder_puts_out(monkeypatch, fidelity, seen):
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x.mean((1, 2, 3)), torch.zeros(len(x))], 1)

    monkeypatch.setattr(judge, "load_classifier", lambda *_: judge.Judge(Mean(), 8, "cpu"))
    config = replace(CONFIG, fidelity=fidelity, cao2=replace(CONFIG.cao2, classifier="resnet18"))
    loaded = judge.load_judge(config, CLASSES, "cpu")
    out = loaded.probabilities(torch.full((1, 3, 8, 8), 1.5))
    assert torch.allclose(out, torch.tensor([[seen, 0.0]]).softmax(1))


def test_pools_are_read_by_class_whatever_their_blocks(tmp_path):
    """A pool of 300 per class has a class per block, its set 85: the choice finds each class in its own file."""
    config = replace(CONFIG, search=SearchConfig(ipc=(3,)), cao2=replace(CONFIG.cao2, pool=100))
    (spec,) = sets_of(config)
    pool, store = spec.pool, Store(str(tmp_path))
    assert [len(b) for b in pool.blocks(3)] == [1, 1, 1]
    for label in range(3):
        rows = {"label": [label] * 300, "index": list(range(300)), "latent": [[float(label)]] * 300}
        store.write_table(subset_file(pool, label), pa.table(rows))
        found = choose._class_rows(store, pool, subset_file, label)
        assert set(found["label"].to_pylist()) == {label} and found["index"].to_pylist() == list(range(300))
