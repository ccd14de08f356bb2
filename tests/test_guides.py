"""Guides: clean latents go towards what they are pulled to, and nowhere else."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from conftest import run, snapshot
from scipy.optimize import linear_sum_assignment

from d3hr_ray.cli.variants import vary
from d3hr_ray.config import DataConfig, GuideConfig, ModelConfig, RunConfig, SearchConfig, as_dict, from_dict
from d3hr_ray.numerics import adams, ddim
from d3hr_ray.numerics.ancestral import ancestral
from d3hr_ray.numerics.guide_modes import towards
from d3hr_ray.numerics.guide_transport import plan, to_support
from d3hr_ray.numerics.guides import steer, steer_ancestral
from d3hr_ray.numerics.schedule import Schedule, linear_alphas
from d3hr_ray.sets import SetSpec

SCHEDULE = Schedule(linear_alphas(), tuple(range(0, 1000, 50)))
SOLVERS = {"ddim": ddim.sample, "adams": adams.sample}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def denoise(x: torch.Tensor, t: int) -> torch.Tensor:
    """A network that is neither right nor linear."""
    return torch.sin(x) + 0.001 * t


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_full_pull_ends_at_the_modes_and_none_changes_nothing(solver):
    noised, modes = drawn(6, 3, 2, 2), drawn(6, 3, 2, 2, seed=1)
    ended = SOLVERS[solver](steer(denoise, towards(modes, 1.0), SCHEDULE, 0), noised, SCHEDULE, 600)
    torch.testing.assert_close(ended, modes, atol=1e-4, rtol=0)
    free = SOLVERS[solver](denoise, noised, SCHEDULE, 600)
    for guide, until in ((lambda clean, noised, t: clean, 0), (towards(modes, 1.0), 650)):
        same = SOLVERS[solver](steer(denoise, guide, SCHEDULE, until), noised, SCHEDULE, 600)
        torch.testing.assert_close(same, free, atol=1e-3, rtol=1e-3)


def test_a_step_goes_its_share_of_the_way_and_only_as_long_as_asked():
    seen = []

    def guide(clean, noised, t):
        seen.append(t)
        return towards(modes, 0.25)(clean, noised, t)

    x, modes = drawn(4, 5), drawn(4, 5, seed=1)
    alpha = SCHEDULE.alpha(600)
    clean = [
        (x - (1 - alpha) ** 0.5 * eps) / alpha**0.5
        for eps in (denoise(x, 600), steer(denoise, guide, SCHEDULE, 300)(x, 600))
    ]
    torch.testing.assert_close(clean[1], clean[0] + 0.25 * (modes - clean[0]), atol=1e-5, rtol=1e-5)
    ddim.sample(steer(denoise, guide, SCHEDULE, 300), x, SCHEDULE, 600)
    assert seen == [600, *range(600, 299, -50)]


def test_ancestral_sampling_is_guided_and_keeps_its_variance():
    modes, place = drawn(3, 4, seed=1), drawn(3, 4, seed=2)
    steered = steer_ancestral(lambda x, t: (denoise(x, t), place), towards(modes, 1.0), SCHEDULE, 0)
    assert steered(drawn(3, 4), 500)[1] is place
    ended = ancestral(steered, drawn(3, 4), SCHEDULE, lambda t: drawn(3, 4, seed=t))
    torch.testing.assert_close(ended, modes, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_gives_each_point_its_mass_and_each_image_the_same(seed):
    mass = torch.rand(5, generator=torch.Generator().manual_seed(seed)) + 0.1
    found = plan(drawn(7, 12, seed=seed), drawn(5, 12, seed=seed + 9), mass)
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(1), torch.full((7,), 1 / 7), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.sum(0), mass / mass.sum(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_as_many_images_as_points_are_assigned_as_is_cheapest(seed):
    points = 10 * drawn(6, 12, seed=seed)
    images = points[torch.randperm(6, generator=torch.Generator().manual_seed(seed))] + drawn(6, 12, seed=seed + 9)
    _, cheapest = linear_sum_assignment(torch.cdist(images, points).square().numpy())
    assert plan(images, points, torch.ones(6)).argmax(1).tolist() == cheapest.tolist()


def test_points_get_images_by_their_masses_though_all_are_nearer_to_one():
    points = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    images = torch.tensor([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0], [3.0, 0.0]])
    labels = torch.zeros(4, dtype=torch.long)
    moved = to_support([points], [torch.tensor([3, 1])], labels, 1.0)(images, images, 600)
    assert (moved[:3, 0] < 1).all() and moved[3, 0] > 9


def test_a_class_is_guided_as_if_it_were_alone():
    points, masses = [drawn(3, 8), drawn(2, 8, seed=1)], [torch.ones(3), torch.tensor([1, 4])]
    clean, labels = drawn(5, 2, 2, 2, seed=2), torch.tensor([0, 1, 0, 1, 1])
    both = to_support(points, masses, labels, 0.5)(clean, clean, 600)
    own = clean[labels == 1]
    alone = to_support(points[1:], masses[1:], labels[labels == 1] - 1, 0.5)(own, own, 600)
    torch.testing.assert_close(both[labels == 1], alone)


BASE = RunConfig(DataConfig("digits"), ModelConfig("digits"))
MIXED = replace(
    BASE, search=replace(BASE.search, components="ipc"), inversion=replace(BASE.inversion, cluster_timestep=100)
)


def test_only_guided_sets_say_so():
    guided = replace(MIXED, guide=GuideConfig("modes"))
    assert SetSpec(guided).name == "d3hr-moments-k10-c100-modes0.1-t600-ipc10-seed0"
    assert "guide" not in as_dict(MIXED) and from_dict(as_dict(guided)) == guided
    assert SetSpec(guided).recipe({}) != SetSpec(MIXED).recipe({})
    assert not replace(guided, method="gaussian").guides


def test_only_methods_that_search_say_of_what_mixture():
    """A sweep's other methods have the run's settings of the search too, and look at none of them."""
    names = [SetSpec(replace(MIXED, method=method)).name for method in ("dit", "cao2", "d3hr+cao2")]
    assert [name.split("-m4")[0] for name in names] == ["dit-ipc10-seed0", "cao2", "d3hr+cao2-moments-k10-c100"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuideConfig("mode"), "--guide 'mode' is not one of: none, modes, transport, set"),
        (lambda: GuideConfig("modes", strength=0), "--guide-strength 0"),
        (lambda: GuideConfig("modes", until=-1), "--guide-until -1"),
        (lambda: replace(BASE, guide=GuideConfig("modes")), "give --components .* and --cluster-timestep"),
        (
            lambda: replace(
                BASE, guide=GuideConfig("modes"), fidelity="official", search=SearchConfig(method="random")
            ),
            "--fidelity official has no --guide",
        ),
    ],
)
def test_what_a_guide_lacks_is_named_before_anything_runs(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_idle_flags_are_refused(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        run(monkeypatch, f"--preset digits --guide-until 100 --out {tmp_path}")
    assert "--guide-until does nothing without --guide modes or transport or set" in capsys.readouterr().err


def test_a_guide_that_ends_before_the_set_begins_is_refused():
    """It would make the images of no guide, called by its name."""
    near = replace(MIXED, inversion=replace(MIXED.inversion, timesteps=(200, 600)))
    with pytest.raises(ValueError, match="--guide modes does nothing at --timesteps 200: it ends at --guide-until 300"):
        vary(near, "guide=modes")
    assert vary(near, "guide=modes guide-until=200").guides


def test_another_guide_leaves_what_the_runs_alone_has():
    run = replace(MIXED, guide=GuideConfig("features", block=2, images=9))
    assert vary(run, "guide=set").guide == GuideConfig("set")
    assert vary(run, "guide-strength=0.3").guide == replace(run.guide, strength=0.3)
    repelled = replace(run, guide=GuideConfig("set", repulsion=0.1))
    assert vary(repelled, "guide=features feature-block=1").guide == GuideConfig("features", block=1)


MIXTURE = "--timesteps 300 --cluster-timestep 20 --components ipc --ipc 3 --actors 1 1"
GUIDED = f"--preset digits --limit-per-class 6 {MIXTURE} --guide-until 40 --guide-strength 0.9"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["modes", "transport"])
def test_a_guided_run_comes_nearer_to_its_centres_and_resumes_to_the_same_bytes(
    ray_session, here, monkeypatch, tmp_path, kind
):
    out = tmp_path / "run"
    run(monkeypatch, f"{GUIDED} --guide {kind} --out {out}")
    whole = snapshot(out)
    (name,) = (p.name for p in (out / "distilled").iterdir())
    assert name == f"d3hr-moments-k3-c20-{kind}0.9-t300-ipc3-seed0"
    (mixture,) = (out / "mixtures").iterdir()
    assert mixture.name.endswith("-centres")
    assert len(pq.read_table(mixture)["centre"][0]) == len(pq.read_table(mixture)["mean"][0])
    (out / "distilled" / name / "train" / "3" / "1.png").unlink()
    run(monkeypatch, f"{GUIDED} --guide {kind} --out {out}")
    assert snapshot(out) == whole

    run(monkeypatch, f"--from-gaussians {out} {MIXTURE} --guide none --out {tmp_path / 'free'}")
    (free,) = (p for p in (tmp_path / "free" / "distilled").iterdir())
    assert not {p.read_bytes() for p in free.rglob("*.png")} & {
        p.read_bytes() for p in (out / "distilled").rglob("*.png")
    }
