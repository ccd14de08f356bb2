"""Mixtures in the noise domain: D3HR as a special case, exact matching, low rank, sharing out, bounded reading."""

import logging

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d3hr_ray.config import InversionConfig, RunError, SearchConfig
from d3hr_ray.numerics import groups
from d3hr_ray.numerics.mixture import LEAST_SHARE, fit_mixture, match_mixture, pooled, share_out
from d3hr_ray.stages import label_ranges
from d3hr_ray.stages import mixture as stage
from d3hr_ray.store import Store

SHAPE = (6, 2, 2)
D = 24


def latents(n: int, seed: int = 0, rank: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(n, D, generator=draw) * torch.linspace(0.5, 1.5, D) + torch.linspace(-1, 1, D)
    return z + torch.randn(n, rank, generator=draw) @ (2 * torch.randn(rank, D, generator=draw)) if rank else z


def test_one_component_without_directions_is_d3hr():
    z = latents(200)
    ours = match_mixture(fit_mixture(z, z, 1, 0, 0), 10, 32, seed=3, label=2)
    assert torch.allclose(ours, groups.match_moments(z.mean(0), z.std(0), 10, 32, 3, 2), atol=1e-5)


def test_separate_clusters_are_found_with_their_sizes_and_means():
    centres = torch.tensor([[-9.0] * D, [0.0] * D, [9.0] * D])
    labels = torch.tensor([0] * 10 + [1] * 30 + [2] * 20)
    z = latents(60) + centres[labels]
    found = fit_mixture(z, z, 3, 0, 0)
    assert found.count_C.tolist() == [30, 20, 10]
    for c, label in enumerate((1, 2, 0)):
        assert torch.allclose(found.mean_CD[c], z[labels == label].mean(0), atol=1e-5)


def test_images_are_clustered_at_one_timestep_and_fitted_at_another():
    labels = torch.arange(40) % 2
    near, far = latents(40) + 9.0 * labels[:, None], latents(40, seed=1)
    found = fit_mixture(near, far, 2, 0, 0)
    means = torch.stack([far[labels == i].mean(0) for i in range(2)])
    assert min(float((found.mean_CD - m).abs().max()) for m in (means, means.flip(0))) < 1e-5


def test_pooled_latents_are_the_means_of_their_cells():
    z = torch.arange(2 * 2 * 4 * 4.0).reshape(2, 2, 4, 4)
    assert torch.equal(pooled(z.flatten(1), (2, 4, 4), 1), z.flatten(1))
    assert torch.equal(pooled(z.flatten(1), (2, 4, 4), 4), z.mean((2, 3)))
    quarters = z.reshape(2, 2, 2, 2, 2, 2).mean((3, 5)).flatten(1)
    assert torch.equal(pooled(z.flatten(1), (2, 4, 4), 2), quarters)


def test_pooling_clusters_by_content_and_not_by_place(tmp_path):
    """Two contents, each shown at one of four places: far apart as latents, equal once they are averaged."""
    draw, rows = torch.Generator().manual_seed(0), torch.arange(80)
    content, place = rows % 2, (rows // 2) % 4
    z = 0.1 * torch.randn(80, *SHAPE, generator=draw)
    z[rows, content, place // 2, place % 2] += 8.0
    z = z.flatten(1).half()
    store = store_with(tmp_path, [0] * 80, 2, {100: z, 600: z})
    means, off = torch.stack([z[content == c].float().mean(0) for c in (0, 1)]), {}
    for pool in (1, 2):
        kind = stage.MixtureKind(600, 100, 2, 0, 0, pool)
        stage.write_mixtures(store, store, kind, range(1), SHAPE, store.list("latents"))
        found = stage.read_mixtures(store, kind, range(1))[0].mean_CD
        off[pool] = min(float((found - wanted).abs().max()) for wanted in (means, means.flip(0)))
    assert off[2] < 0.01 < 1 < off[1]


def test_low_rank_and_the_diagonal_add_up_to_the_variance():
    z = latents(400, rank=3)
    found = fit_mixture(z, z, 1, 3, 0)
    total = found.variance_CD[0] + found.factors_RD.square().sum(0)
    assert torch.allclose(total, z.var(0), rtol=LEAST_SHARE)  # equal, but where the floor lifts the diagonal
    assert float((total / z.var(0) - 1).abs().median()) < 1e-5
    assert (found.variance_CD[0] >= LEAST_SHARE * z.var(0) * 0.999).all()


def test_low_rank_draws_have_the_correlations_that_a_diagonal_fit_throws_away():
    z = latents(500, rank=3)
    truth = torch.cov(z.T)
    errors = [
        float((torch.cov(match_mixture(fit_mixture(z, z, 1, rank, 0), 300, 2, 0, 0).T) - truth).norm() / truth.norm())
        for rank in (0, 1, 3)
    ]
    assert errors[0] > errors[1] > 2 * errors[2]  # measured: 0.89, 0.57, 0.08


def test_low_rank_matching_is_exact_where_it_is_white():
    """Solving for e from the latents gives columns of mean 0; the mean is exact in the latents too."""
    z = latents(300, rank=2)
    found = fit_mixture(z, z, 1, 2, 0)
    drawn = match_mixture(found, 12, 16, 0, 0)
    assert torch.allclose(drawn.mean(0), found.mean_CD[0], atol=1e-5)


def test_a_component_with_one_image_gives_its_mean_and_others_their_moments():
    z = latents(90) + 9.0 * (torch.arange(90) % 3 == 0)[:, None]
    found = fit_mixture(z, z, 2, 0, 0)
    drawn = match_mixture(found, 3, 16, 0, 0)
    assert share_out(found.count_C, 3) == [2, 1]
    assert torch.equal(drawn[2], found.mean_CD[1])
    assert torch.allclose(drawn[:2].mean(0), found.mean_CD[0], atol=1e-5)
    assert torch.allclose(drawn[:2].std(0), found.variance_CD[0].sqrt(), rtol=1e-4)


def test_a_medoid_is_the_image_nearest_to_its_clusters_centre():
    near, far = latents(30), latents(30, seed=1)
    found = fit_mixture(near, far, 1, 0, 0)
    nearest = (near - near.mean(0)).norm(dim=1).argmin()
    assert torch.equal(match_mixture(found, 1, 4, 0, 0, medoids=True)[0], far[nearest])


def test_a_single_image_is_refused():
    z = latents(1)
    with pytest.raises(ValueError, match="1 image has no variance"):
        fit_mixture(z, z, 1, 0, 0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(1, 60))
def test_shares_add_up_follow_weights_and_never_shrink(counts, n):
    counts = sorted(counts, reverse=True)
    shares, more = (share_out(torch.tensor(counts), k) for k in (n, n + 1))
    assert sum(shares) == n
    assert shares == sorted(shares, reverse=True)
    if n >= len(counts):
        assert min(shares) >= 1
        assert all(b >= a for a, b in zip(shares, more, strict=True))


def store_with(tmp_path, labels: list[int], files: int, z: dict[int, torch.Tensor] | None = None) -> Store:
    store = Store(str(tmp_path))
    z = z or {t: latents(len(labels), seed=t).half() for t in (100, 600)}
    table = pa.table({"image_id": [str(i) for i in range(len(labels))], "label": pa.array(labels, pa.int32())})
    for t, values in z.items():
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.numpy().reshape(-1)), D)
        table = table.append_column(f"z_{t}", column)
    size = -(-len(labels) // files)
    for i in range(files):
        store.write_table(f"latents/part-{i:06d}.parquet", table.slice(i * size, size))
    return store


def test_classes_are_read_in_order_from_shuffled_files(tmp_path):
    labels = [i % 3 for i in range(60)]
    store = store_with(tmp_path, labels, 4)
    at, by, images = stage.read_classes(store, range(1, 3), (600, 100), 100, store.list("latents"))
    assert set(at) == {1, 2} and images == {1: 20, 2: 20}
    for label in (1, 2):
        rows = torch.tensor(labels) == label
        assert torch.equal(at[label], latents(60, seed=600).half()[rows].float())
        assert torch.equal(by[label], latents(60, seed=100).half()[rows].float())


def test_files_without_a_class_are_passed_over(tmp_path):
    """As those of an image folder are, which lists its classes one after the other."""
    store = store_with(tmp_path, [0] * 20 + [1] * 20, 4)
    at, _, _ = stage.read_classes(store, range(1, 2), (600, 600), 100, store.list("latents"))
    assert torch.equal(at[1], latents(40, seed=600).half()[20:].float())


def test_a_class_too_large_for_memory_is_thinned_evenly(tmp_path):
    store = store_with(tmp_path, [0] * 100, 5)
    at, _, images = stage.read_classes(store, range(1), (600, 600), 30, store.list("latents"))
    assert torch.equal(at[0], latents(100, seed=600).half()[::4].float())
    assert len(at[0]) == stage.thin(100, 30) and images == {0: 100}


@pytest.fixture
def inline(monkeypatch):
    """Run tasks one by one in this process instead of on Ray."""
    for module in (stage, label_ranges):
        run = lambda function, jobs, title="": [(k, function(*args)) for k, args in jobs]  # noqa: E731
        monkeypatch.setattr(module, "bounded", run)


def test_thinned_classes_are_said_once_and_recorded(tmp_path, monkeypatch, caplog, inline):
    store, kinds = store_with(tmp_path, [0] * 101 + [1] * 20, 5), [stage.MixtureKind(600, 100, 2, 0, s) for s in (0, 1)]
    counts = {"label": [0, 1], "count": [101, 20], "mean": [[0.0] * D] * 2}
    store.write_table(stage.gaussian_file(600), pa.table(counts))
    monkeypatch.setattr(stage, "CLASS_BYTES", 30 * D * 4)
    with caplog.at_level(logging.WARNING, "d3hr_ray"):
        stage.run_mixtures(store, store, kinds, SHAPE)
        stage.run_mixtures(store, store, kinds, SHAPE)
    (said,) = [r.getMessage() for r in caplog.records]
    assert "class 0: 26 of 101" in said and "class 1" not in said
    rows = store.read_table(kinds[1].folder).to_pylist()
    assert {r["images"] for r in rows if r["label"] == 0} == {101}
    assert {label: sum(r["count"] for r in rows if r["label"] == label) for label in (0, 1)} == {0: 26, 1: 20}


@pytest.mark.parametrize(("order", "each"), [("sorted", 1), ("shuffled", 8)])
def test_a_task_is_given_the_files_of_its_classes(tmp_path, monkeypatch, caplog, inline, order, each):
    labels = [i // 10 if order == "sorted" else i % 8 for i in range(80)]
    store, kind = store_with(tmp_path, labels, 8), stage.MixtureKind(600, 100, 2, 0, 0)
    found = label_ranges.label_ranges(store)
    assert list(found.values()) == ([(k, k) for k in range(8)] if order == "sorted" else [(0, 7)] * 8)
    counts = {"label": range(8), "count": [10] * 8, "mean": [[0.0] * D] * 8}
    store.write_table(stage.gaussian_file(600), pa.table(counts))
    monkeypatch.setattr(stage, "CLASS_BYTES", 10 * D * 4)  # a class for each task
    given, write = [], stage.write_mixtures
    monkeypatch.setattr(stage, "write_mixtures", lambda *args: (given.append(len(args[-1])), write(*args)))
    with caplog.at_level(logging.WARNING, "d3hr_ray"):
        stage.run_mixtures(store, store, [kind], SHAPE)
    assert given == [each] * 8
    assert [" mix classes" in r.getMessage() for r in caplog.records] == [True] * (order == "shuffled")


def test_whole_classes_need_no_word(tmp_path, caplog, inline):
    store, kind = store_with(tmp_path, [0] * 20, 1), stage.MixtureKind(600, 100, 2, 0, 0)
    store.write_table(stage.gaussian_file(600), pa.table({"label": [0], "count": [20], "mean": [[0.0] * D]}))
    stage.run_mixtures(store, store, [kind], SHAPE)
    assert not caplog.records
    assert {r["images"] for r in store.read_table(kind.folder).to_pylist()} == {20}


def test_files_from_before_thinning_was_recorded_are_read_beside_new_ones(tmp_path):
    store, kind = store_with(tmp_path, [i % 2 for i in range(40)], 1), stage.MixtureKind(600, 100, 2, 0, 0)
    for labels in (range(0, 1), range(1, 2)):
        stage.write_mixtures(store, store, kind, labels, SHAPE, store.list("latents"))
    new = stage.read_mixtures(store, kind, range(2))
    old = stage.part_file(kind, range(0, 1))
    store.write_table(old, store.read_table(old).drop_columns(["images"]))
    again = stage.read_mixtures(store, kind, range(2))
    assert all(torch.equal(again[label].mean_CD, new[label].mean_CD) for label in (0, 1))


def test_a_class_with_too_few_images_is_named(tmp_path):
    store = store_with(tmp_path, [0] * 9 + [1], 1)
    kind = stage.MixtureKind(600, 100, 5, 0, 0)
    with pytest.raises(RunError, match="class 1: 1 image has no variance"):
        stage.write_mixtures(store, store, kind, range(2), SHAPE, store.list("latents"))


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_few_or_equal_images_make_fewer_components():
    three = latents(3)
    for z in (three, three.repeat(4, 1)):
        made = fit_mixture(z, z, 10, 0, 0)
        assert len(made.count_C) == 3 and int(made.count_C.sum()) == len(z)
        assert torch.isfinite(made.mean_CD).all() and torch.isfinite(made.variance_CD).all()
        drawn = match_mixture(made, 10, 16, 0, 0)
        assert drawn.shape == (10, D) and torch.isfinite(drawn).all()


def test_mixtures_survive_storing(tmp_path):
    store = store_with(tmp_path, [i % 4 for i in range(80)], 3)
    kind = stage.MixtureKind(600, 100, 3, 2, 7)
    for labels in (range(0, 3), range(3, 4)):
        stage.write_mixtures(store, store, kind, labels, SHAPE, store.list("latents"))
    at, by, _ = stage.read_classes(store, range(4), (600, 100), 1000, store.list("latents"))
    read = stage.read_mixtures(store, kind, range(2, 4))
    for label in (2, 3):
        key = stage.digest(f"mixture of {label}, 7".encode())
        fitted = fit_mixture(by[label], at[label], 3, 2, key)
        for part in ("count_C", "mean_CD", "medoid_CD", "variance_CD", "factors_RD"):
            assert torch.equal(getattr(read[label], part), getattr(fitted, part))


def test_label_blocks_cover_every_class_once_and_stay_small():
    blocks = list(stage.label_blocks([1300] * 1000, 4096))
    assert [label for b in blocks for label in b] == list(range(1000))
    assert max(len(b) for b in blocks) * 1300 * 4096 * 4 <= stage.CLASS_BYTES


def test_stored_timesteps_hold_the_one_to_cluster_at():
    assert InversionConfig((600, 280), cluster_timestep=100).stored == (100, 280, 600)
    assert InversionConfig((600,)).stored == (600,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"components": 0}, "--components 0"),
        ({"rank": -1}, "--rank -1"),
        ({"cluster_pool": 0, "components": 2}, "--cluster-pool 0"),
        ({"cluster_pool": 2}, "--cluster-pool needs --components"),
        ({"components": 2, "method": "random"}, "need --search moments"),
    ],
)
def test_wrong_mixtures_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**wrong)
