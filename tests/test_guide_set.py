"""Set guidance: a class's images come to its moments and away from each other, whatever batch or block they are in."""

from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from conftest import run, snapshot
from test_guides import BASE, SCHEDULE, SOLVERS, denoise, drawn

from d3hr_ray.cli.variants import vary
from d3hr_ray.config import GuideConfig, SearchConfig, as_dict, from_dict
from d3hr_ray.layout import LATENTS, gaussian_file
from d3hr_ray.models.closed_form import GaussianDenoiser
from d3hr_ray.numerics.guide_set import RIDGE, clean_std, log_det_gradient, matched, repelled, to_moments
from d3hr_ray.numerics.guides import steer
from d3hr_ray.numerics.moments import Moments
from d3hr_ray.numerics.schedule import Schedule
from d3hr_ray.sets import SetSpec, spec_of
from d3hr_ray.stages.fit import gaussian_table
from d3hr_ray.stages.guides import block_guide, require_moments
from d3hr_ray.stages.mixture import mixture_kind
from d3hr_ray.stages.sampling import Sampler
from d3hr_ray.stages.search import subset_table
from d3hr_ray.store import Store

LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 0])
MEAN, STD = drawn(2, 12, seed=8), drawn(2, 12, seed=9).abs() + 0.1


def energy(images: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(images)
    return -torch.logdet(unit @ unit.T + RIDGE * torch.eye(len(unit), dtype=images.dtype))


def cosine(images: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(images[0], images[1], dim=0))


@pytest.mark.parametrize("repulsion", [0.0, 0.05])
@pytest.mark.parametrize("solver", SOLVERS)
def test_at_full_strength_a_set_ends_with_the_moments_of_its_class(solver, repulsion):
    guide = to_moments(MEAN, STD, LABELS, 1.0, repulsion)
    ended = SOLVERS[solver](steer(denoise, guide, SCHEDULE, 0), drawn(7, 3, 2, 2), SCHEDULE, 600).flatten(1)
    for label in (0, 1):
        own = ended[label == LABELS]
        torch.testing.assert_close(own.mean(0), MEAN[label], atol=1e-5, rtol=0)
        if solver == "ddim":  # adams blends the clean latents of two steps, whose stds do not add up
            torch.testing.assert_close(own.std(0), STD[label], atol=1e-5, rtol=0)


def test_a_step_goes_its_share_of_the_way_in_both_moments():
    images = drawn(5, 12).double()
    moved = matched(images, MEAN[0], STD[0], 0.25)
    torch.testing.assert_close(moved.mean(0), images.mean(0) + 0.25 * (MEAN[0] - images.mean(0)))
    torch.testing.assert_close(moved.std(0), images.std(0) + 0.25 * (STD[0] - images.std(0)))


def test_one_image_goes_to_the_mean_and_what_is_constant_keeps_its_spread():
    torch.testing.assert_close(matched(drawn(1, 12), MEAN[0], STD[0], 1.0), MEAN[:1])
    moved = matched(torch.tensor([[2.0, 0.0], [2.0, 4.0]]), torch.zeros(2), torch.ones(2), 1.0)
    torch.testing.assert_close(moved, torch.tensor([[0.0, -(0.5**0.5)], [0.0, 0.5**0.5]]))


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (5, 12), (9, 4)])
def test_repulsion_goes_down_the_determinantal_energy(shape):
    images = drawn(*shape).double().requires_grad_()
    (slope,) = torch.autograd.grad(energy(images), images)
    torch.testing.assert_close(log_det_gradient(images.detach()), slope)
    if len(images) > 1:
        assert energy(repelled(images, 0.01)) < energy(images)


def test_images_that_are_nearly_equal_are_pushed_apart_and_equal_ones_are_a_saddle():
    equal = drawn(1, 12).double().expand(2, -1)
    torch.testing.assert_close(repelled(equal, 0.01), equal)
    near = equal + 1e-3 * drawn(2, 12, seed=3)
    assert cosine(repelled(near, 0.01)) < cosine(near)


def test_no_image_is_driven_further_than_ten_times_the_repulsion_of_its_length():
    for seed in range(20):
        images = drawn(1, 12, seed=seed).double() + 10 ** -(seed / 5) * drawn(6, 12, seed=seed + 50)
        ways = (repelled(images, 0.02) - images).norm(dim=1) / images.norm(dim=1)
        assert 0 < ways.max() < 0.2


def test_the_std_of_clean_latents_is_that_of_gaussian_data():
    mean, std, z = drawn(12), drawn(12, seed=1).abs() + 0.2, drawn(50, 12, seed=2)
    clean = mean + std * (z - z.mean(0)) / z.std(0)
    noised = GaussianDenoiser(Schedule(torch.tensor([1.0, 0.3]), (0, 1)), mean, std).transport(clean, 0, 1)
    torch.testing.assert_close(clean_std(noised.std(0), 0.3), std, rtol=1e-4, atol=0)
    assert clean_std(torch.tensor(0.8), 0.3) == 0  # less than the noise itself has


GUIDED = replace(
    BASE, inversion=replace(BASE.inversion, cluster_timestep=100), guide=GuideConfig("set", strength=1.0, until=0)
)
IPC = 5


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder with the moments of four classes at t = 100."""
    folder = Store(str(tmp_path_factory.mktemp("moments")))
    moments = {k: Moments.of(drawn(20, 128, seed=k)) for k in range(4)}
    folder.write_table(gaussian_file(100), gaussian_table(moments, 100, list("abcd"), 80))
    return folder


def sampled(store: Store, labels: range, batch: int, spread: str = "std") -> torch.Tensor:
    """Latents (N, D) of a block of some labels, sampled by the digits' network in batches of a size."""
    inversion = replace(GUIDED.inversion, batch_size=batch, steps=4, timesteps=(500,))
    made = replace(GUIDED, inversion=inversion, search=SearchConfig(ipc=(IPC,), spread=spread))
    classes = pa.table({"model_class": list(range(4))})
    sampler = Sampler(replace(made, model=replace(made.model, dtype="float32")), classes, "cpu")
    rows = subset_table([(k, drawn(IPC, 128, seed=50 + k), 0.0) for k in labels], 0)
    guide = block_guide(store, SetSpec(made), rows["label"].to_pylist(), sampler)
    return sampler.steered(rows, 500, guide, 0).flatten(1)


def test_a_network_is_guided_to_stored_moments_whatever_the_batch_and_the_block(store):
    whole, alpha = sampled(store, range(1, 4), 64), 0.8951
    for place, label in enumerate(range(1, 4)):
        real = Moments.of(drawn(20, 128, seed=label))
        own = whole[place * IPC : (place + 1) * IPC].double()
        torch.testing.assert_close(own.mean(0), real.mean_D / alpha**0.5, atol=1e-3, rtol=1e-3)
        variance = (real.variance() - (1 - alpha)).clamp(min=0) / alpha
        torch.testing.assert_close(own.std(0), variance.sqrt(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(sampled(store, range(1, 4), 2), whole, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(sampled(store, range(2, 3), 64), whole[IPC : 2 * IPC], atol=1e-3, rtol=1e-3)
    wide = sampled(store, range(1, 4), 64, "radius")[:IPC].std(0) / whole[:IPC].std(0)
    assert float(wide.median()) == pytest.approx((IPC / (IPC - 1)) ** 0.5, rel=1e-3)


def test_names_and_recipes_tell_the_guide_and_where_its_moments_are(store):
    repelling = replace(GUIDED, guide=GuideConfig("set", repulsion=0.01))
    assert SetSpec(GUIDED).name == "d3hr-moments-set1c100-t600-ipc10-seed0"
    assert SetSpec(repelling).name == "d3hr-moments-set0.1c100r0.01-t600-ipc10-seed0"
    assert from_dict(as_dict(repelling)) == repelling
    assert spec_of(SetSpec(GUIDED).recipe({})["config"]) == SetSpec(GUIDED)
    assert "repulsion" not in as_dict(GUIDED)["guide"]  # so that guided sets of before keep their fingerprints
    assert not mixture_kind(replace(GUIDED, search=SearchConfig(components=3)), 600, 10).centres
    unguided = replace(GUIDED, guide=GuideConfig())
    assert SetSpec(unguided).recipe({})["config"]["inversion"]["cluster_timestep"] is None


def test_it_is_an_axis_of_sweeps():
    near = replace(BASE, inversion=replace(BASE.inversion, cluster_timestep=100))
    assert vary(near, "guide=set guide-strength=0.5 guide-repulsion=0.01").guide == GuideConfig("set", 0.5, 300, 0.01)
    with pytest.raises(ValueError, match="--guide-repulsion does nothing without --guide"):
        vary(near, "guide-repulsion=0.01")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuideConfig("set", repulsion=-1), "--guide-repulsion -1"),
        (lambda: GuideConfig("modes", repulsion=0.1), "--guide-repulsion 0.1 is of --guide set"),
        (lambda: replace(BASE, guide=GuideConfig("set")), "--guide set .* give --cluster-timestep"),
    ],
)
def test_what_set_guidance_lacks_is_named_before_anything_runs(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_run_without_latents_near_the_images_is_refused(tmp_path, store):
    require_moments(store, 100)
    other = Store(str(tmp_path))
    other.write_table(f"{LATENTS}/part-000000.parquet", pa.table({"label": [0], "z_300": [[0.0]], "z_600": [[0.0]]}))
    require_moments(other, 300)
    with pytest.raises(ValueError, match=r"--cluster-timestep 100.*\(stored: 300, 600\)"):
        require_moments(other, 100)


NEAR = "--timesteps 300 --cluster-timestep 20 --ipc 3 --actors 1 1"
SET = "--guide set --guide-until 40 --guide-strength 0.9 --guide-repulsion 0.01"


@pytest.mark.slow
def test_a_guided_run_resumes_to_the_same_bytes_and_can_be_made_from_gaussians(
    ray_session, here, monkeypatch, tmp_path
):
    out = tmp_path / "run"
    run(monkeypatch, f"--preset digits --limit-per-class 6 {NEAR} {SET} --out {out}")
    whole, name = snapshot(out), "d3hr-moments-set0.9c20r0.01-t300-ipc3-seed0"
    assert [p.name for p in (out / "distilled").iterdir()] == [name] and not (out / "mixtures").exists()
    (out / "distilled" / name / "train" / "3" / "1.png").unlink()
    run(monkeypatch, f"--preset digits --limit-per-class 6 {NEAR} {SET} --out {out}")
    assert snapshot(out) == whole

    images = {n for n in whole if n.startswith(f"distilled/{name}/train/")}
    run(monkeypatch, f"--from-gaussians {out} --guide none --ipc 3 --out {tmp_path / 'free'}")
    free = snapshot(tmp_path / "free")
    assert "gaussians/t0020.parquet" not in free
    assert len(images) == 30 and all(free[n.replace("-set0.9c20r0.01", "")] != whole[n] for n in images)
    (out / "gaussians" / "t0020.parquet").unlink()  # as in a run that was not guided
    run(monkeypatch, f"--from-gaussians {out} {NEAR} {SET} --out {tmp_path / 'again'}")
    again = snapshot(tmp_path / "again")
    assert all(again[n] == whole[n] for n in [*images, "gaussians/t0020.parquet"])
