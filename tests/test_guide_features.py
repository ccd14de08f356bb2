"""Feature guidance: the network sees in made images what it sees in real ones of their class."""

import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import run, snapshot
from test_guides import BASE, drawn

from d3hr_ray.cli.sweep_flags import SweepFlags
from d3hr_ray.cli.sweep_plan import plan_sweep
from d3hr_ray.cli.variants import vary
from d3hr_ray.config import GuideConfig, RunConfig, RunError, SearchConfig, as_dict, from_dict
from d3hr_ray.methods.guiding import seen_blocks
from d3hr_ray.methods.inputs import check_fit, read_model
from d3hr_ray.methods.plan import plan
from d3hr_ray.methods.sweep import invert_all, synthesise_all
from d3hr_ray.models.autoencoder import to_images
from d3hr_ray.numerics.guide_features import descended
from d3hr_ray.numerics.seeds import normal
from d3hr_ray.sets import SetSpec, spec_of
from d3hr_ray.stages.block_features import (
    BlockFeatureJob,
    BlockFeatureShard,
    guided_at,
    require_block_features,
    write_block_means,
)
from d3hr_ray.stages.class_means import read_class_means
from d3hr_ray.stages.feature_kinds import BlockKind
from d3hr_ray.stages.guides import block_guide
from d3hr_ray.stages.sampling import Sampler
from d3hr_ray.stages.search import subset_table
from d3hr_ray.store import Store

ALPHA = 0.3
CLEAN, NOISED = 3 * drawn(5, 3, 2, 2).double(), drawn(5, 3, 2, 2, seed=1).double()
WEIGHTS = drawn(4, 12, seed=2).double()
ORTHONORMAL = torch.linalg.qr(WEIGHTS.T)[0].T
GOAL = drawn(5, 4, seed=3).double()


def linear(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1) @ ORTHONORMAL.T


def bent(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x.flatten(1) @ WEIGHTS.T / 3)


def noised_after(moved: torch.Tensor) -> torch.Tensor:
    """x_t of moved clean latents, with the noise that was in it before."""
    return NOISED + ALPHA**0.5 * (moved - CLEAN)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_linear_features_go_their_share_of_the_way_and_all_of_it_at_full_strength(strength):
    moved = descended(linear, CLEAN, NOISED, GOAL, ALPHA, strength)
    before = linear(NOISED)
    torch.testing.assert_close(linear(noised_after(moved)), before + strength * (GOAL - before))
    across = (moved - CLEAN).flatten(1) - linear(moved - CLEAN) @ ORTHONORMAL
    torch.testing.assert_close(across, torch.zeros_like(across))  # what the features do not see stays as it is


def test_a_step_goes_down_the_distance_as_finite_differences_have_it():
    moved = (descended(bent, CLEAN, NOISED, GOAL, ALPHA, 0.1) - CLEAN).flatten(1)
    numeric, h = torch.zeros_like(moved), 1e-6
    for dim in range(12):
        step = torch.zeros(12).double()
        step[dim] = h
        up, down = ((bent(NOISED + sign * step.reshape(3, 2, 2)) - GOAL).norm(dim=1) for sign in (1, -1))
        numeric[:, dim] = (up - down) / (2 * h)
    torch.testing.assert_close(torch.nn.functional.normalize(moved), -torch.nn.functional.normalize(numeric))


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_the_scale_of_features_and_latents_changes_nothing_and_no_image_goes_further_than_its_length(strength):
    moved = descended(bent, CLEAN, NOISED, GOAL, ALPHA, strength)
    loud = descended(lambda x: 1000 * bent(x), CLEAN, NOISED, 1000 * GOAL, ALPHA, strength)
    large = descended(lambda x: bent(x / 100), 100 * CLEAN, 100 * NOISED, GOAL, ALPHA, strength)
    torch.testing.assert_close(loud, moved)
    torch.testing.assert_close(large, 100 * moved)
    far = descended(linear, CLEAN / 1000, NOISED, GOAL, ALPHA, strength)
    ways = (far - CLEAN / 1000).flatten(1).norm(dim=1) / (CLEAN / 1000).flatten(1).norm(dim=1)
    torch.testing.assert_close(ways, torch.full_like(ways, strength))


def test_at_the_goal_nothing_moves():
    torch.testing.assert_close(descended(bent, CLEAN, NOISED, bent(NOISED), ALPHA, 1.0), CLEAN, rtol=0, atol=0)
    blind = descended(lambda x: 0 * bent(x), CLEAN, NOISED, GOAL, ALPHA, 1.0)
    torch.testing.assert_close(blind, CLEAN, rtol=0, atol=0)


IPC, BLOCK, STEPS = 3, 2, 10
GUIDED = replace(
    BASE,
    model=replace(BASE.model, dtype="float32"),
    inversion=replace(BASE.inversion, batch_size=64, steps=STEPS, timesteps=(500,)),
    search=SearchConfig(ipc=(IPC,)),
    guide=GuideConfig("features", strength=0.5, until=300, block=BLOCK),
)
KIND, TIMES = BlockKind(BLOCK, 500), (300, 400, 500)
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 4, 30).astype(np.int32)


@cache
def sampler(batch: int = 64) -> Sampler:
    config = replace(GUIDED, inversion=replace(GUIDED.inversion, batch_size=batch))
    return Sampler(config, pa.table({"model_class": [5, 6, 7, 8]}), "cpu")


def images_of(size: int) -> np.ndarray:
    """Images as the model takes them, of noise of large grain."""
    return IMAGES.repeat(size // 8, 1).repeat(size // 8, 2)


@pytest.fixture(scope="module")
def pixels():
    card, _ = read_model(GUIDED, planning=False)
    return images_of(card.image_size)


def summed(store: Store, pixels: np.ndarray, cuts: list[int]) -> Store:
    """A folder with nothing but the means of 30 images of 4 classes, in shards cut there."""
    actor = BlockFeatureShard(BlockFeatureJob(store, GUIDED, KIND, TIMES, (5, 6, 7, 8), "cpu"))
    accepted = pa.table({"label": LABELS, "key": range(30)})
    for shard, (start, end) in enumerate(zip([0, *cuts], [*cuts, 30], strict=True)):
        actor.write(shard, pixels[start:end], accepted.slice(start, end - start))
    for t in TIMES:
        write_block_means(store, KIND, store.list(KIND.parts(t)), t, "abcd")
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory, pixels):
    return summed(Store(str(tmp_path_factory.mktemp("means"))), pixels, [])


def test_means_over_shards_are_those_of_all_images(store, pixels, tmp_path):
    cut = summed(Store(str(tmp_path)), pixels, [7, 7, 20])  # one shard is empty
    made = sampler()
    with torch.inference_mode():
        clean = made.autoencoder.encode(to_images(torch.from_numpy(pixels)), None)
    for t in TIMES:
        alpha = made.schedule.alpha(t)
        noise = torch.stack([normal(made.denoiser.latent_shape, "block features", key, t) for key in range(30)])
        noised, classes = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise, torch.from_numpy(LABELS).long() + 5
        with torch.inference_mode():
            found = made.denoiser.features(noised, t, classes, BLOCK)
        for label in range(4):
            wanted = found[torch.from_numpy(LABELS) == label].mean(0)
            for folder in (store, cut):
                mean = read_class_means(folder, KIND.means(t), range(label, 4))[0]
                torch.testing.assert_close(mean, wanted, atol=1e-5, rtol=1e-4)


def test_a_class_without_an_image_is_named(tmp_path, pixels):
    store = Store(str(tmp_path))
    actor = BlockFeatureShard(BlockFeatureJob(store, GUIDED, KIND, TIMES, (5, 6, 7, 8), "cpu"))
    actor.write(0, pixels[:3], pa.table({"label": [0, 2, 3], "key": [0, 1, 2]}))
    with pytest.raises(RunError, match=r"class 'b' has no usable image among its first .*; raise --feature-images"):
        write_block_means(store, KIND, store.list(KIND.parts(300)), 300, "abcd")


def test_features_are_what_the_network_itself_computes():
    made, seen = sampler(), []
    layer = made.denoiser.transformer.transformer_blocks[BLOCK]
    hook = layer.register_forward_hook(lambda module, given, out: seen.append(out.mean(1)))
    x, classes = drawn(2, *made.denoiser.latent_shape), torch.tensor([5, 7])
    with torch.inference_mode():
        made.denoiser.eps(x, 300, classes)
        found = made.denoiser.features(x, 300, classes, BLOCK)
    hook.remove()
    torch.testing.assert_close(found, seen[0], rtol=0, atol=0)


def guided(store: Store, labels: range, batch: int, strength: float = 0.5) -> torch.Tensor:
    """Clean latents of a block of some labels: the folder holds means of features, and no image or latents."""
    config = replace(GUIDED, guide=replace(GUIDED.guide, strength=strength))
    rows = subset_table([(k, drawn(IPC, 128, seed=50 + k), 0.0) for k in labels], 0)
    made = sampler(batch)
    guide = block_guide(store, SetSpec(config), rows["label"].to_pylist(), made)
    return made.steered(rows, 500, guide, config.guide.until)


def test_a_set_is_guided_by_stored_means_alone_whatever_the_batch_and_the_block(store):
    whole = guided(store, range(1, 4), 64)
    torch.testing.assert_close(guided(store, range(1, 4), 2), whole, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(guided(store, range(2, 3), 64), whole[IPC : 2 * IPC], atol=1e-3, rtol=1e-3)
    assert (whole - guided(store, range(1, 4), 64, 1e-6)).abs().max() > 1e-2


def test_under_the_network_each_image_comes_nearer_to_its_goal_with_every_step(store):
    made, t, classes = sampler(), 300, torch.tensor([5, 6, 7, 8])
    goals = read_class_means(store, KIND.means(t), range(4))
    alpha = made.schedule.alpha(t)
    clean, noise = drawn(4, *made.denoiser.latent_shape), drawn(4, *made.denoiser.latent_shape, seed=9)
    guide, distances = made.drawn_to(range(4), BLOCK, {t: goals}, 0.5), []
    with torch.inference_mode():
        for _ in range(8):
            noised = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
            distances.append((made.denoiser.features(noised, t, classes, BLOCK) - goals).norm(dim=1))
            clean = guide(clean, noised, t)
    way = torch.stack(distances)
    assert (way.diff(dim=0) < 0).all() and (way[-1] < 0.5 * way[0]).all()


def test_names_and_recipes_tell_the_guide_and_its_block():
    assert SetSpec(GUIDED).name == "d3hr-moments-features0.5b2-t500-ipc3-seed0"
    assert SetSpec(replace(BASE, guide=GuideConfig("features"))).name == "d3hr-moments-features0.1-t600-ipc10-seed0"
    assert from_dict(as_dict(GUIDED)) == GUIDED == spec_of(SetSpec(GUIDED).recipe({})["config"]).config
    older = as_dict(replace(BASE, inversion=replace(BASE.inversion, cluster_timestep=100), guide=GuideConfig("set")))
    assert not {"block", "images"} & older["guide"].keys()  # so that guided sets of before keep their fingerprints


def test_the_middle_block_is_the_default_and_a_block_that_is_not_there_is_refused():
    assert [GuideConfig().block_of(blocks) for blocks in (1, 4, 28)] == [0, 1, 13]
    far = replace(BASE, guide=GuideConfig("features", block=4))
    with pytest.raises(ValueError, match="--feature-block 4: the model has 4 blocks, 0 to 3"):
        check_fit(far, *read_model(far, planning=False))
    with pytest.raises(ValueError, match="--feature-block 9: the model has 4 blocks"):
        seen_blocks([BASE, vary(BASE, "guide=features feature-block=9")], read_model(BASE, planning=False)[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuideConfig("features", block=-1), "--feature-block -1 must not be negative"),
        (lambda: GuideConfig("features", images=-1), "--feature-images -1 must not be negative"),
        (lambda: GuideConfig("modes", block=2), "--feature-block is of --guide features; with modes leave it out"),
        (lambda: GuideConfig("set", images=3), "--feature-images is of --guide features; with set leave it out"),
        (lambda: GuideConfig("features", repulsion=0.1), "--guide-repulsion 0.1 is of --guide set; with features"),
        (
            lambda: replace(
                BASE, guide=GuideConfig("features"), fidelity="official", search=SearchConfig(method="random")
            ),
            "--fidelity official has no --guide",
        ),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_it_is_an_axis_of_sweeps_and_idle_without_its_guide():
    varied = vary(BASE, "guide=features feature-block=1 guide-strength=0.5 feature-images=0")
    assert varied.guide == GuideConfig("features", 0.5, 300, block=1, images=0)
    assert vary(varied, "guide=none").guide.kind == "none"
    with pytest.raises(ValueError, match="--feature-block does nothing without --guide"):
        vary(BASE, "feature-block=1")


def test_a_run_without_the_features_is_refused_with_what_makes_them(store, tmp_path):
    require_block_features(store, KIND, TIMES, 300)
    with pytest.raises(ValueError, match=r"block 2 .*--guide-until 200 on.* none at t=200 .*--variants 'guide="):
        require_block_features(store, KIND, (200, *TIMES), 200)
    with pytest.raises(ValueError, match="has none at t=300 in features/dit-b2-i500"):
        require_block_features(Store(str(tmp_path)), KIND, TIMES, 300)


def test_a_plan_counts_the_passes():
    card, grid = read_model(GUIDED, planning=False)
    assert guided_at(GUIDED, grid) == TIMES

    def text(config: RunConfig) -> dict[str, str]:
        return {line.split()[0]: line for line in plan(config, card, grid, 1000, 10, 0, 1.0).splitlines()}

    guided, free = text(GUIDED), text(replace(GUIDED, guide=GuideConfig()))
    assert "features" not in free and "in block 2 of 4, at 3 timesteps" in guided["features"]
    assert guided["synthesize"] != free["synthesize"] and guided["invert"] == free["invert"]


RUN = "--preset digits --limit-per-class 6 --timesteps 300 --ipc 2 --actors 1 1"
GUIDE = "--guide features --guide-until 260 --guide-strength 0.5 --feature-images 4"


@pytest.mark.slow
def test_a_guided_run_resumes_to_the_same_bytes_and_gives_its_features(
    ray_session, here, monkeypatch, capsys, tmp_path
):
    out, name, folder = tmp_path / "run", "d3hr-moments-features0.5-t300-ipc2-seed0", "features/dit-b1-i4"
    run(monkeypatch, f"{RUN} {GUIDE} --out {out}")
    whole = snapshot(out)
    assert [p.name for p in sorted((out / folder).iterdir())] == ["t0260.parquet", "t0280.parquet", "t0300.parquet"]
    assert pq.read_table(out / folder / "t0280.parquet")["count"].to_pylist() == [4] * 10

    for lost in (f"{folder}/t0280.parquet", f"distilled/{name}/train/3/1.png"):
        (out / lost).unlink()
    run(monkeypatch, f"{RUN} {GUIDE} --out {out}")
    assert snapshot(out) == whole

    run(monkeypatch, f"--from-gaussians {out} {GUIDE} --ipc 2 --out {tmp_path / 'again'}")
    images = {n for n in whole if n.startswith(f"distilled/{name}/train/")}
    again = snapshot(tmp_path / "again")
    assert len(images) == 20 and all(again[n] == whole[n] for n in images)
    run(monkeypatch, f"--from-gaussians {out} --ipc 2 --guide none --out {tmp_path / 'free'}")
    free = snapshot(tmp_path / "free")
    assert all(free[n.replace("-features0.5", "")] != whole[n] for n in images)

    with pytest.raises(SystemExit):
        run(monkeypatch, f"--from-gaussians {out} {GUIDE} --feature-block 3 --ipc 2 --out {tmp_path / 'other'}")
    assert "needs mean features of real images in block 3" in capsys.readouterr().err


def test_a_sweep_makes_the_features_that_its_settings_need_once(digits, here, tmp_path):
    store = Store(str(shutil.copytree(digits, tmp_path / "run")))
    guide = "guide=features guide-until=100 feature-images=4"
    plan = plan_sweep(SweepFlags(run=store.uri, variants=("run", guide, f"{guide} feature-block=0"), ipc=(1,)), store)
    places = invert_all(plan)
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "features").rglob("*.parquet")}
    invert_all(plan)
    sets = synthesise_all(plan, places)
    assert len(made) == 2 * 6 and all(p.stat().st_mtime_ns == at for p, at in made.items())
    later = {Store(uri).read_bytes("train/3/0.png") for uri, spec in sets.items() if spec.timestep == 200}
    assert len(sets) == 6 and len(later) == 3
