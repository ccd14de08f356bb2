"""Refinement: latents are moved until classes have the mean features of their real images."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import run, snapshot

from d3hr_ray.cli.sweep_flags import SweepFlags
from d3hr_ray.cli.sweep_plan import plan_sweep
from d3hr_ray.config import DataConfig, ModelConfig, RefineConfig, RunConfig, RunError, as_dict, from_dict
from d3hr_ray.methods.sweep import invert_all, synthesise_all
from d3hr_ray.models.families import FAMILIES, siamese
from d3hr_ray.models.random_features import random_features
from d3hr_ray.numerics.feature_matching import match_features
from d3hr_ray.sets import SetSpec, whole_classes
from d3hr_ray.stages.class_means import clear_if_whole
from d3hr_ray.stages.feature_kinds import FeatureKind
from d3hr_ray.stages.features import (
    FeatureJob,
    FeatureShard,
    features_of,
    read_means,
    room_of_sums,
    write_means,
)
from d3hr_ray.store import Store

LABELS = torch.tensor([0, 0, 0, 1, 1])
CLOTHES = ("Bag", "Coat")
CONFIG = RunConfig(DataConfig("digits"), ModelConfig("digits"))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(number: int) -> torch.Tensor:
    """A map of full rank, one per network."""
    return torch.eye(6) + 0.1 * drawn(6, 6, seed=number)


def test_under_linear_features_the_means_are_reached_and_images_of_a_class_move_together():
    latents, real = drawn(5, 6), drawn(2, 6, seed=1)

    def network(number: int):
        return lambda images: images @ linear(number), real @ linear(number)

    moved = match_features(latents, LABELS, lambda x: x, network, [0, 1, 2] * 200, 5, 0.1, 5)
    for label in (0, 1):
        own = label == LABELS
        torch.testing.assert_close(moved[own].mean(0), real[label], atol=1e-4, rtol=0)
        apart = moved[own] - latents[own]
        torch.testing.assert_close(apart, apart[:1].expand_as(apart), atol=1e-5, rtol=0)


def test_a_class_is_refined_as_if_it_were_alone():
    latents, real = drawn(5, 3, 8, 8), drawn(2, 16, seed=1)
    features = random_features(0, 8, 16, CLOTHES, "cpu")

    def network(labels: slice):
        return lambda number: (features, real[labels])

    both = match_features(latents, LABELS, torch.tanh, network(slice(0, 2)), [0], 4, 0.05, 5)
    alone = match_features(latents[3:], LABELS[3:] - 1, torch.tanh, network(slice(1, 2)), [0], 4, 0.05, 5)
    torch.testing.assert_close(both[3:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_images_that_go_through_the_networks_in_slices_move_as_all_at_once(at_once):
    """A class may be of more images than a batch; the loss is of its mean over all."""
    latents, real, seen = drawn(5, 3, 8, 8), drawn(2, 16, seed=1), list[int]()
    features = random_features(0, 8, 16, CLOTHES, "cpu")

    def decode(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return torch.tanh(part)

    whole, sliced = (
        match_features(latents, LABELS, decode, lambda number: (features, real), [0], 4, 0.05, most)
        for most in (5, at_once)
    )
    torch.testing.assert_close(sliced, whole, atol=1e-5, rtol=1e-5)
    assert seen[:4] == [5] * 4 and max(seen[4:]) == at_once


def test_made_images_come_nearer_to_real_ones_under_a_network_that_was_not_used():
    pattern = torch.nn.functional.interpolate(2 * drawn(1, 3, 4, 4, seed=6), size=16, mode="bilinear")
    real = torch.tanh(pattern + 0.3 * drawn(200, 3, 16, 16, seed=5))
    latents, one = drawn(10, 3, 16, 16), torch.zeros(10, dtype=torch.long)

    def network(number: int):
        features = random_features(number, 16, 16, CLOTHES, "cpu")
        with torch.no_grad():
            return features, features(real).mean(0, keepdim=True)

    def distance(x: torch.Tensor) -> float:
        features, means = network(99)
        with torch.no_grad():
            return float((features(torch.tanh(x)).mean(0) - means[0]).norm())

    moved = match_features(latents, one, torch.tanh, network, range(60), 5, 0.1, 10)
    assert distance(moved) < 0.5 * distance(latents)


def test_features_depend_on_their_number_alone():
    images = drawn(4, 3, 8, 8).tanh()
    first, again, other = (random_features(k, 8, 16, CLOTHES, "cpu") for k in (3, 3, 4))
    assert torch.equal(first(images), again(images)) and not torch.allclose(first(images), other(images))
    torch.testing.assert_close(first(images)[1:2], first(images[1:2]))  # whatever else is in the batch


@pytest.mark.parametrize("family", FAMILIES)
def test_alike_is_what_a_single_image_would_get(family):
    images = drawn(5, 3, 28, 28)
    together = siamese(images, (family,), np.random.default_rng(7), alike=True)
    for image, seen in zip(images, together, strict=True):
        torch.testing.assert_close(seen, siamese(image[None], (family,), np.random.default_rng(7))[0])


def test_digits_are_not_mirrored(monkeypatch):
    from d3hr_ray.models import random_features as module

    seen = []
    monkeypatch.setattr(module, "siamese", lambda images, families, draw, alike: seen.append(families) or images)
    for names in (("0", "1"), CLOTHES):
        random_features(0, 8, 8, names, "cpu")(torch.zeros(1, 3, 8, 8))
    assert seen == [("color", "crop", "cutout", "scale", "rotate"), tuple(FAMILIES)]


def shards(tmp_path, cuts: list[int]) -> tuple[Store, FeatureKind, np.ndarray, np.ndarray]:
    """Sums of 30 images of 3 classes, in shards cut there."""
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 256, (30, 8, 8, 3), np.uint8), draw.integers(0, 3, 30)
    store, kind = Store(str(tmp_path / "-".join(map(str, cuts)))), FeatureKind(2, 8, 0)
    actor = FeatureShard(FeatureJob(store, kind, ("a", "b", "c"), "cpu"))
    for shard, (start, end) in enumerate(zip([0, *cuts], [*cuts, 30], strict=True)):
        actor.write(shard, pixels[start:end], pa.table({"label": labels[start:end]}))
    return store, kind, pixels, labels


def test_means_over_shards_are_those_of_all_images(tmp_path):
    for cuts in ([], [7, 7, 20]):  # one shard is empty
        store, kind, pixels, labels = shards(tmp_path, cuts)
        for number in range(2):
            write_means(store, kind, store.list(kind.parts), number, "abc")
            features = random_features(number, 8, 8, ("a", "b", "c"), "cpu")
            for label in range(3):
                own = pixels[labels == label]
                wanted = features_of(features, own, "cpu").mean(0)
                torch.testing.assert_close(read_means(store, kind, number, range(label, 3))[0], wanted)


def test_a_network_is_read_alone_and_left_sums_go(tmp_path):
    """At ImageNet's scale the sums of all networks are gigabytes; who made the last means may not have deleted them."""
    store, kind, _, _ = shards(tmp_path, [7])
    for part in store.list(kind.parts):
        groups = pq.ParquetFile(f"{store.uri}/{kind.parts}/{part}")
        assert [groups.read_row_group(k)["network"].unique().to_pylist() for k in range(2)] == [[0], [1]]
    for number in range(2):
        assert not clear_if_whole(store, kind.missing(store), kind.parts) and store.list(kind.parts)
        write_means(store, kind, store.list(kind.parts), number, "abc")
    assert clear_if_whole(store, kind.missing(store), kind.parts) and not store.list(kind.parts)


def test_a_class_without_an_image_is_named(tmp_path):
    store, kind, _, _ = shards(tmp_path, [])
    with pytest.raises(RunError, match="class 'd' has no usable image; mend those in rejected/"):
        write_means(store, kind, store.list(kind.parts), 0, "abcd")


def test_whole_classes_fill_a_batch_or_are_one():
    assert [list(part) for part in whole_classes(range(2, 7), 10, 25)] == [[2, 3], [4, 5], [6]]
    assert [list(part) for part in whole_classes(range(2), 50, 25)] == [[0], [1]]


def test_only_sets_that_are_refined_say_so_and_pools_do_not_look_at_it():
    refined = replace(CONFIG, refine=RefineConfig("match", networks=3, steps=2))
    assert SetSpec(refined).name == "d3hr-moments-match3x2-t600-ipc10-seed0"
    assert [len(part) for part in SetSpec(refined).blocks(10)] == [6, 4] and len(SetSpec(CONFIG).blocks(10)) == 1
    assert "match3x2" in SetSpec(refined).about["kind"]
    assert "refine" not in as_dict(CONFIG) and from_dict(as_dict(refined)) == refined
    pools = [SetSpec(replace(c, method="d3hr+cao2"), is_pool=True) for c in (CONFIG, refined)]
    assert pools[0].recipe({}) == pools[1].recipe({}) and pools[0].name == pools[1].name
    assert not replace(refined, method="dit").refines


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"objective": "mtach"}, "--refine"),
        ({"networks": 0}, "--refine-networks 0"),
        ({"steps": 0}, "--refine-steps 0"),
        ({"lr": 0.0}, "--refine-lr 0"),
        ({"images": -1}, "--refine-images -1"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        RefineConfig(**wrong)


REFINED = "--preset digits --limit-per-class 6 --timesteps 100 --ipc 2 --actors 1 1"
MATCH = "--refine match --refine-networks 2 --refine-steps 2 --refine-width 8 --refine-images 4"


@pytest.mark.slow
def test_a_refined_run_resumes_to_the_same_bytes_and_gives_its_features(ray_session, here, monkeypatch, tmp_path):
    out, name = tmp_path / "run", "d3hr-moments-match2x2-t100-ipc2-seed0"
    run(monkeypatch, f"{REFINED} {MATCH} --out {out}")
    whole = snapshot(out)
    folder = "features/n2-w8-i4"
    counts = [pq.read_table(out / folder / f"network-{k:06d}.parquet")["count"].to_pylist() for k in range(2)]
    assert counts == [[4] * 10] * 2 and not (out / folder / "parts").exists()

    for lost in (f"{folder}/network-000001.parquet", f"distilled/{name}/train/3/1.png"):
        (out / lost).unlink()
    run(monkeypatch, f"{REFINED} {MATCH} --out {out}")
    assert snapshot(out) == whole

    run(monkeypatch, f"--from-gaussians {out} {MATCH} --ipc 2 --out {tmp_path / 'again'}")
    images = {n for n in whole if n.startswith(f"distilled/{name}/train/")}
    again = snapshot(tmp_path / "again")
    assert len(images) == 20 and all(again[n] == whole[n] for n in images)

    run(monkeypatch, f"--from-gaussians {out} --ipc 2 --refine none --out {tmp_path / 'plain'}")
    plain = snapshot(tmp_path / "plain")
    assert all(plain[n.replace("-match2x2", "")] != whole[n] for n in images)


def test_gaussians_without_features_are_refused(digits, monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run(monkeypatch, f"--from-gaussians {digits} --refine match --timesteps 100 --out {tmp_path / 'x'}")
    assert "needs features of real images" in capsys.readouterr().err


def test_a_sweep_makes_the_features_that_its_settings_need_once(digits, here, tmp_path):
    store = Store(str(shutil.copytree(digits, tmp_path / "run")))
    match = "refine=match refine-networks=2 refine-steps=1 refine-width=8 refine-images=4"
    plan = plan_sweep(SweepFlags(run=store.uri, variants=("run", match, f"{match} refine-lr=0.1"), ipc=(1,)), store)
    places = invert_all(plan)
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "features").rglob("*.parquet")}
    invert_all(plan)
    sets = synthesise_all(plan, places)
    assert len(made) == 2 and all(p.stat().st_mtime_ns == at for p, at in made.items())
    images = {Store(uri).read_bytes("train/3/0.png") for uri in sets}
    assert len(sets) == len(plan.timesteps) * 3 == len(images)


def test_the_room_of_sums_grows_with_the_classes_of_a_shard():
    def shards(labels):
        return [pa.table({"label": labels[at : at + 10]}) for at in range(0, len(labels), 10)]

    ordered = [k // 10 for k in range(100)]
    assert room_of_sums(shards(ordered)) == 1
    assert room_of_sums(shards([k % 10 for k in range(100)])) == 10
