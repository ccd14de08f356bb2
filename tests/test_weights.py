"""Weights: what each image of a set of several components counts, from the mixture to the loss; without Ray."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from stripes import SETTING, gradient, hard, stripes, write_set

import d3hr_ray as d3
from d3hr_ray.cli.evaluate_checks import find_out
from d3hr_ray.cli.evaluate_flags import EvaluateFlags
from d3hr_ray.config import (
    CaO2Config,
    DataConfig,
    InversionConfig,
    ModelConfig,
    RunConfig,
    RunError,
    SearchConfig,
    as_dict,
)
from d3hr_ray.evaluation.augment import mix
from d3hr_ray.evaluation.comparison import _without_weights, open_comparison
from d3hr_ray.evaluation.losses import hard_loss, soft_loss
from d3hr_ray.evaluation.protocols import Augment
from d3hr_ray.evaluation.recipes import Overrides, Recipe
from d3hr_ray.evaluation.sets import DistilledSet, load_set
from d3hr_ray.evaluation.training import Share, train_student
from d3hr_ray.evaluation.trials import make_trial
from d3hr_ray.layout import METADATA, candidate_file, subset_file
from d3hr_ray.numerics.mixture import components_of, match_mixture, share_out, weights_of
from d3hr_ray.report.accuracy import _card_arguments
from d3hr_ray.sets import SetSpec, sets_of
from d3hr_ray.stages import choose, mixture
from d3hr_ray.stages.candidates import CANDIDATE_SCHEMA
from d3hr_ray.stages.card import Origin
from d3hr_ray.stages.images import IMAGE_SCHEMA
from d3hr_ray.stages.publish import run_publish
from d3hr_ray.stages.weights import COMPONENT, image_weights
from d3hr_ray.store import Store

CLASSES, SHAPE, D = 3, (6, 2, 2), 24
CONFIG = RunConfig(
    DataConfig("digits"),
    ModelConfig("digits"),
    InversionConfig((600,), cluster_timestep=100),
    SearchConfig((4,), components=2),
)
POOLED = replace(CONFIG, method="d3hr+cao2", cao2=CaO2Config(pool=3, iterations=0, rematch=False))
STUDENT = "convnet-d3-w8"


# From the mixture to the set


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(1, 60))
def test_weights_have_mean_1_and_give_each_component_its_share(counts, n):
    count_C = torch.tensor(sorted(counts, reverse=True))
    component_N = components_of(count_C, n)
    weight_N = weights_of(count_C, component_N)
    assert weight_N.dtype == torch.float32 and len(weight_N) == n
    assert float(weight_N.double().mean()) == pytest.approx(1, abs=1e-6)
    held = component_N.unique()  # fewer images than components: the largest have one each
    assert all(len(weight_N[component_N == c].unique()) == 1 for c in held)
    mass = torch.stack([weight_N[component_N == c].sum() for c in held])
    torch.testing.assert_close(mass / n, count_C[held] / count_C[held].sum())


def test_one_component_counts_alike_and_a_component_per_image_by_its_size():
    assert weights_of(torch.tensor([7]), components_of(torch.tensor([7]), 3)).tolist() == [1, 1, 1]
    sizes = torch.tensor([6, 3, 3])
    assert weights_of(sizes, components_of(sizes, 3)).tolist() == [1.5, 0.75, 0.75]


def with_mixtures(root, config: RunConfig) -> tuple[Store, SetSpec, dict[int, mixture.Mixture]]:
    """A run folder whose classes have two clusters each, of 3 and 9, 4 and 8, 5 and 7 images."""
    store, (spec,) = Store(str(root)), sets_of(config)
    labels = torch.arange(CLASSES).repeat_interleave(12)
    draw = torch.Generator().manual_seed(0)
    far = torch.arange(12).repeat(CLASSES) < 3 + labels
    z = (torch.randn(len(labels), D, generator=draw) + 20.0 * far[:, None]).half()
    table = pa.table({"image_id": [str(i) for i in range(len(labels))], "label": pa.array(labels.tolist(), pa.int32())})
    for t in (100, 600):
        table = table.append_column(f"z_{t}", pa.FixedSizeListArray.from_arrays(pa.array(z.numpy().reshape(-1)), D))
    store.write_table("latents/part-000000.parquet", table)
    kind = mixture.mixture_kind(config, 600, spec.images_per_class)
    for part in (range(2), range(2, CLASSES)):
        mixture.write_mixtures(store, store, kind, part, SHAPE, store.list("latents"))
    return store, spec, mixture.read_mixtures(store, kind, range(CLASSES))


def publish(store: Store, spec: SetSpec, weights: pa.Array | None) -> str:
    """A set of noise with these weights. Returns its path."""
    rows = []
    for label in range(CLASSES):
        for index in range(spec.ipc):
            draw = np.random.default_rng((label, index))
            data, name = encode(draw.integers(0, 256, (16, 16, 3), np.uint8)), f"train/{label}/{index}.png"
            store.write_bytes(f"distilled/{spec.name}/{name}", data)
            rows.append(
                {"file_name": name, "label": label, "class_name": str(label), "index": index, "seed": 0, "score": 0.0}
                | {"sha256": hashlib.sha256(data).hexdigest()}
            )
    named = pa.table({"label": range(CLASSES), "name": ["0", "1", "2"]})
    run_publish(store, spec, named, {}, pa.Table.from_pylist(rows, IMAGE_SCHEMA), Origin(), weights)
    return f"{store.uri}/distilled/{spec.name}"


def test_a_sets_weights_come_from_its_mixture_and_back_with_its_images(tmp_path):
    store, spec, mixtures = with_mixtures(tmp_path, CONFIG)
    found = {label: m.count_C.tolist() for label, m in mixtures.items()}
    assert found == {0: [9, 3], 1: [8, 4], 2: [7, 5]} and share_out(mixtures[0].count_C, 4) == [3, 1]
    weights = image_weights(store, store, spec, CLASSES)
    path = publish(store, spec, weights)
    assert weights.to_pylist() == pytest.approx([1] * 4 + [8 / 9] * 3 + [4 / 3] + [7 / 6] * 2 + [5 / 6] * 2)
    table = pq.read_table(f"{path}/{METADATA}")
    assert table.schema.names == [*IMAGE_SCHEMA.names, "weight"] and table.schema.field("weight").type == pa.float32()
    loaded = d3.load_set(path)
    assert loaded.weights.tolist() == weights.to_pylist()
    images = load_set(Store(path), 16).images.load()
    assert images.weights.tolist() == weights.to_pylist()
    assert images.take(np.array([7, 0])).weights.tolist() == [weights[7].as_py(), weights[0].as_py()]


def test_weights_follow_the_latents_of_their_component(tmp_path):
    """The images are shared out in the order of weights: a latent near a component's mean has that component's."""
    _, spec, mixtures = with_mixtures(tmp_path, CONFIG)
    for label, m in mixtures.items():
        drawn = match_mixture(m, spec.ipc, 8, 0, label)
        nearest = torch.cdist(drawn, m.mean_CD).argmin(1)
        assert nearest.tolist() == components_of(m.count_C, spec.ipc).tolist()


def test_sets_of_one_component_keep_their_bytes(tmp_path):
    ones = [
        CONFIG,
        replace(CONFIG, search=SearchConfig((1,), components="ipc")),
        replace(CONFIG, search=SearchConfig((4,), rank=2)),
        replace(CONFIG, search=SearchConfig((4,))),
        replace(CONFIG, method="gaussian"),
        replace(CONFIG, method="cao2"),
    ]
    assert [sets_of(config)[0].has_weights for config in ones] == [True, *[False] * 5]
    for config in ones[1:]:
        assert image_weights(Store(str(tmp_path)), Store(str(tmp_path)), sets_of(config)[0], CLASSES) is None
    store, spec, _ = with_mixtures(tmp_path / "run", CONFIG)
    path = publish(store, spec, None)
    plain = pq.read_table(f"{path}/{METADATA}")
    assert plain.schema.names == IMAGE_SCHEMA.names
    before = store.read_json(f"distilled/{spec.name}/manifest.json")
    publish(store, spec, image_weights(store, store, spec, CLASSES))
    assert store.read_json(f"distilled/{spec.name}/manifest.json") == before  # its hash too
    assert pq.read_table(f"{path}/{METADATA}").select(IMAGE_SCHEMA.names) == plain
    assert d3.load_set(publish(store, spec, None)).weights is None


def chosen(root) -> tuple[Store, SetSpec, dict[int, mixture.Mixture]]:
    """A set of 4 images per class, chosen from 12 by a judge who likes the last ones best."""
    store, spec, mixtures = with_mixtures(root, POOLED)
    size = spec.pool.ipc
    for block, labels in enumerate(spec.pool.blocks(CLASSES)):
        rows = [
            {"label": label, "index": i, "seed": 0, "predicted": label, "confidence": 0.5, "own": 0.01 * i}
            | {"latent": [float(i)] * D}
            for label in labels
            for i in range(size)
        ]
        store.write_table(candidate_file(spec.pool, block), pa.Table.from_pylist(rows, CANDIDATE_SCHEMA))
    for block, labels in enumerate(spec.blocks(CLASSES)):
        choose.choose_block(store, store, spec, block, labels, None)
    return store, spec, mixtures


def test_what_is_chosen_from_a_pool_stands_for_the_components_it_came_from(tmp_path):
    store, spec, mixtures = chosen(tmp_path)
    rows = store.read_table(subset_file(spec, 0)).to_pylist()
    for label, m in mixtures.items():
        of_pool = components_of(m.count_C, 12)
        assert [r[COMPONENT] for r in rows if r["label"] == label] == [int(of_pool[i]) for i in (11, 10, 9, 8)]
    weights = np.array(image_weights(store, store, spec, CLASSES).to_pylist()).reshape(CLASSES, 4)
    assert weights.mean(1) == pytest.approx(1)
    # Of class 0 three come from the component of 3 images, one from that of 9; of class 2 all from that of 5.
    np.testing.assert_allclose(weights[0], np.array([1 / 3, 1 / 3, 1 / 3, 3]), rtol=1e-6)
    np.testing.assert_allclose(weights[2], np.ones(4), rtol=1e-6)


def test_a_choice_of_an_older_version_has_no_weights(tmp_path):
    store, spec, _ = chosen(tmp_path)
    store.write_table(subset_file(spec, 0), store.read_table(subset_file(spec, 0)).drop([COMPONENT]))
    assert image_weights(store, store, spec, CLASSES) is None


# In the loss


def repeated(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(times, 0)


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_integer_weights_are_repetitions_in_value_and_gradient(labels):
    draw = torch.Generator().manual_seed(0)
    x, taught = torch.randn(5, 4, generator=draw), torch.randn(5, 3, generator=draw)
    targets, times = torch.softmax(taught, 1), torch.tensor([1, 3, 2, 5, 1])

    def cost(images, told, weights):
        net = torch.nn.Linear(4, 3)
        torch.nn.init.constant_(net.weight, 0.1)
        torch.nn.init.zeros_(net.bias)
        logits = net(images)
        loss = hard_loss(logits, told, weights) if labels == "hard" else soft_loss(logits, told, 4.0, weights)
        loss.backward()
        return loss.detach(), net.weight.grad

    told = targets if labels == "hard" else taught
    weighted = cost(x, told, times / times.float().mean())
    torch.testing.assert_close(weighted, cost(repeated(x, times), repeated(told, times), None))
    torch.testing.assert_close(cost(x, told, torch.full((5,), 2.0)), cost(x, told, None))


def one_batch(**changes):
    """SGD on the whole set at once."""
    plain = hard(optimizer="sgd", lr=0.05, warmup=0.0, batch_size=1000, rate="cosine", **changes)
    return replace(plain, steps=None, epochs=4)


def test_a_student_on_integer_weights_is_one_on_repeated_images():
    test, few, times = stripes(5, 1), stripes(4), np.array([1, 3, 2, 2] * 3)
    weights = (times / times.mean()).astype(np.float32)
    weighted = train_student(STUDENT, one_batch(weighted=True), replace(few, weights=weights), test, None, 0).weights
    many = train_student(STUDENT, one_batch(), few.take(np.arange(12).repeat(times)), test, None, 0).weights
    plain = train_student(STUDENT, one_batch(), few, test, None, 0).weights
    for name, value in weighted.items():
        torch.testing.assert_close(value, many[name], atol=2e-5, rtol=1e-3)
    assert max(float((plain[name] - value).abs().max()) for name, value in many.items()) > 1e-3


def test_weights_do_nothing_where_they_are_not_asked_for_or_equal():
    test, few = stripes(5, 1), stripes(4)
    heavy = replace(few, weights=np.linspace(0.5, 1.5, 12, dtype=np.float32))
    plain, ignored = (train_student(STUDENT, one_batch(), images, test, None, 0).weights for images in (few, heavy))
    assert all(torch.equal(plain[name], value) for name, value in ignored.items())
    alike = train_student(STUDENT, one_batch(weighted=True), few, test, None, 0).weights
    for name, value in alike.items():
        torch.testing.assert_close(value, plain[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_weights_are_mixed_in_the_share_of_the_labels(kind):
    weights = torch.tensor([0.25, 0.5, 1.0, 2.25])
    for seed in range(20):
        told = torch.cat([torch.eye(4), weights[:, None]], 1)
        _, mixed = mix(torch.rand(4, 3, 8, 8), told, Augment(mix=kind), np.random.default_rng(seed))
        torch.testing.assert_close(mixed[:, -1], mixed[:, :-1] @ weights)


def test_workers_that_share_a_student_weigh_its_images_as_one_does():
    train = replace(stripes(7), weights=np.random.default_rng(0).uniform(0.1, 3, 21).astype(np.float32))
    whole, first, second = (
        gradient(STUDENT, train, share, weighted=True) for share in (Share(), Share(0, 2), Share(1, 2))
    )
    torch.testing.assert_close((first + second) / 2, whole, atol=1e-6, rtol=1e-4)


# Asked for, and refused


def test_weights_make_another_version_and_another_key_and_leave_the_old_ones():
    plain, weighted = Recipe().make("hard", SETTING), Recipe(weighted=True).make("hard", SETTING)
    assert (plain.version, weighted.version, weighted.weighted) == ("2", "2+weights", True)
    assert Recipe(overrides=Overrides(lr=0.1), weighted=True).make("hard", SETTING).version == "2+lr=0.1,weights"
    assert "weighted" not in as_dict(plain) and as_dict(weighted) == as_dict(plain) | {
        "weighted": True,
        "version": "2+weights",
    }
    made = DistilledSet("mine", stripes(2), "abc", 0, {"method": "d3hr", "ipc": 2})
    sets = made, replace(made, weighting="1234"), replace(made, weighting="5678")
    keys = [[make_trial(s, STUDENT, p, 0, (), None, ("data", "test")).key for s in sets] for p in (plain, weighted)]
    assert len(set(keys[0])) == 1 and len({*keys[0], *keys[1]}) == 4
    assert len({s.key for s in sets}) == 3 and sets[0].key == "abc"


def test_the_card_says_how_its_students_were_weighted():
    cell = {"protocol_version": "2-glyphs2+epochs=3,weights", "teacher": None, "arch": "a", "protocol": "hard"}
    assert _card_arguments([cell]) == 'arch="a", protocol="hard", glyphs=True, epochs=3, weights=True'
    assert _card_arguments([cell | {"protocol_version": "2+lr=0.1,weights"}]) == ""


def test_weights_that_no_set_has_are_refused_and_sets_without_are_counted(tmp_path, monkeypatch):
    store, spec, _ = with_mixtures(tmp_path / "run", CONFIG)
    with_some = publish(store, spec, image_weights(store, store, spec, CLASSES))
    without = write_set(tmp_path / "theirs", replace(stripes(4), classes=("0", "1", "2")))
    asked = EvaluateFlags(distilled=(without,), data=f"{without}/train", out=str(tmp_path / "out"), weights=True)
    with pytest.raises(ValueError, match=r"--weights: no set has any \(theirs\); sets of jobs/distill.py --components"):
        find_out(asked)
    assert find_out(replace(asked, distilled=(without, with_some), baselines=("none",))).name == "out"
    assert find_out(replace(asked, weights=False, baselines=("none",))).name == "out"
    with pytest.raises(ValueError, match="--weights: no set has any"):
        open_comparison((without,), DataConfig(f"{without}/train"), None, [STUDENT], None, Recipe(weighted=True))
    both = [load_set(Store(path), 16) for path in (with_some, without)]
    assert _without_weights(both) == ["--weights: 1 of 2 sets have none, such as theirs"]
    assert _without_weights(both[:1]) == []
    theirs = d3.load_set(without)
    with pytest.raises(ValueError, match="weights=True, and train has none"):
        d3.train_student(theirs, theirs, weights=True)
    own = d3.load_set(with_some)
    reached = [d3.train_student(own, own, STUDENT, "hard", True, 1, weights=asked) for asked in (False, True)]
    assert all(0 <= top1 <= 1 for top1 in reached)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf"), None])
def test_a_weight_that_is_no_weight_is_named(tmp_path, wrong):
    store, spec, _ = with_mixtures(tmp_path, CONFIG)
    path = publish(store, spec, pa.array([1.0] * 11 + [wrong], pa.float32()))
    with pytest.raises(RunError, match=r"metadata.parquet: weight .* of train/2/3.png is no number above 0"):
        load_set(Store(path), 16)
