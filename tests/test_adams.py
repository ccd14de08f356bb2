"""The second-order pair: order of convergence in closed form, exactness, round trip, evaluations, grid."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import PIPELINE
from test_ddim import data, gaussian, slope

from d3hr_ray.benchmarks.peers import DpmSolver
from d3hr_ray.cli.presets import PRESETS, as_official
from d3hr_ray.config import DataConfig, InversionConfig, ModelConfig, RunConfig
from d3hr_ray.models.autoencoder import to_images
from d3hr_ray.models.closed_form import GaussianDenoiser
from d3hr_ray.numerics import adams, ddim
from d3hr_ray.numerics.grids import even_grid, leading_grid, power_grid
from d3hr_ray.numerics.schedule import Schedule, linear_alphas
from d3hr_ray.stages.invert import InversionJob, InvertShard
from d3hr_ray.store import Store


def to_zero(denoise: GaussianDenoiser) -> Schedule:
    """Down to the grid's 0: a final alpha equal to its own makes the last step the identity."""
    return Schedule(denoise.schedule.alphas_cumprod, denoise.schedule.grid, denoise.schedule.alpha(0))


def errors(steps: int) -> tuple[float, float, float]:
    """Mean error of the inversion, of the sampling and of the round trip."""
    denoise, x0 = gaussian(steps), data().double()
    exact = denoise.transport(x0, 0, 600)
    inverted = adams.invert(denoise, x0.float(), denoise.schedule, [600])[600]
    sampled, back = (adams.sample(denoise, x.float(), to_zero(denoise), 600) for x in (exact, inverted))
    return tuple(float((a - b).abs().mean()) for a, b in ((inverted, exact), (sampled, x0), (back, x0)))


def test_both_directions_converge_at_second_order():
    steps = [25, 50, 100, 200]
    inversions, samplings, trips = zip(*(errors(n) for n in steps), strict=True)
    assert slope(steps, inversions) == pytest.approx(-2, abs=0.25)
    assert slope(steps, samplings) == pytest.approx(-2, abs=0.25)
    assert slope(steps, trips) < -1.75  # the symmetric corrector cancels more


def test_a_third_of_the_evaluations_beats_ddims_round_trip():
    calls = []

    def count(denoise):
        return lambda x, t: calls.append(t) or denoise(x, t)

    found = {}
    for name, walk, steps in (("ddim", ddim, 50), ("adams", adams, 15)):
        grid = leading_grid(1000, steps) if name == "ddim" else even_grid(1000, steps)
        denoise = GaussianDenoiser(Schedule(linear_alphas(), grid), *(torch.tensor(v) for v in (0.5, 0.7)))
        calls.clear()
        noised = walk.invert(count(denoise), data(), denoise.schedule, [600])[600]
        back = walk.sample(count(denoise), noised, denoise.schedule, 600)
        found[name] = (len(calls), float((back - data()).abs().mean()))
    assert found["adams"][0] <= found["ddim"][0] / 3
    assert found["adams"][1] < found["ddim"][1]


def test_a_constant_noise_is_walked_exactly():
    schedule = Schedule(linear_alphas(), leading_grid(1000, 10))
    eps, x = torch.tensor(0.3), torch.tensor(0.8)
    x0 = (x - math.sqrt(1 - schedule.alpha(0)) * eps) / math.sqrt(schedule.alpha(0))
    states = adams.invert(lambda x, t: eps, x, schedule, [100, 600])
    for t, ours in states.items():
        a = schedule.alpha(t)
        assert float(ours) == pytest.approx(float(math.sqrt(a) * x0 + math.sqrt(1 - a) * eps), abs=1e-6)
    assert float(adams.sample(lambda x, t: eps, states[600], schedule, 600)) == pytest.approx(float(x0), abs=1e-5)


@pytest.mark.parametrize("walk", [ddim, adams])
def test_every_stored_timestep_is_a_prefix_of_the_same_walk(walk):
    denoise = gaussian(20)
    states = walk.invert(denoise, data(), denoise.schedule, [0, 250, 600])
    assert torch.equal(states[0], data())
    assert torch.equal(states[250], walk.invert(denoise, data(), denoise.schedule, [250])[250])


def test_even_grid_holds_600_and_is_the_leading_grid_where_that_is_even():
    assert even_grid(1000, 50) == leading_grid(1000, 50)
    assert 600 in even_grid(1000, 15)
    assert 600 not in leading_grid(1000, 15)
    assert even_grid(1000, 15)[0] == 0 and even_grid(1000, 15)[-1] < 1000


def test_a_power_grid_ends_at_its_top_and_lies_denser_near_0():
    grid = power_grid(600, 10, 1.25)
    steps = np.diff(grid)
    assert (grid[0], grid[-1], len(grid)) == (0, 600, 10) and (np.diff(steps) > 0).all()
    assert power_grid(600, 31, 1) == even_grid(1000, 50)[:31]


@pytest.mark.filterwarnings("ignore:.*dpmsolver.*:FutureWarning", "ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize("karras", [False, True])
def test_diffusers_solver_ends_at_t_and_converges_to_the_same_map(karras):
    """The yardstick of `bench.py solver`, on the grids that it is measured on."""
    steps, found, calls = (10, 25, 50), [], []
    for n in steps:
        denoise, x0 = gaussian(n), data().double()
        counted = lambda x, t, denoise=denoise: calls.append(t) or denoise(x, t)  # noqa: E731
        calls.clear()
        noised = DpmSolver(karras).invert(counted, x0, denoise.schedule, [600])[600]
        assert len(calls) == denoise.schedule.position(600) + 1
        back = DpmSolver(karras).sample(denoise, noised, to_zero(denoise), 600)
        exact = denoise.transport(x0, 0, 600)
        found.append((float((noised - exact).abs().mean()), float((back - x0).abs().mean())))
    inversions, trips = zip(*found, strict=True)
    assert slope(steps, inversions) < -1 and slope(steps, trips) < -1  # of first order at least


def test_official_refuses_it_by_flag():
    official = as_official(PRESETS["imagenet1k"]())
    with pytest.raises(ValueError, match="leave out --solver adams"):
        RunConfig(**{**vars(official), "inversion": InversionConfig(solver="adams")})


@pytest.mark.parametrize("solver", ["ddim", "adams"])
def test_stages_walk_by_the_solver(solver, tmp_path, networks):
    """One shard through InvertShard against plain code."""
    inversion = InversionConfig(timesteps=(300,), steps=10, posterior="mode", solver=solver, batch_size=4)
    config = RunConfig(DataConfig("x"), ModelConfig(PIPELINE, "float32"), inversion)
    actor = InvertShard(InversionJob(Store(str(tmp_path)), config, (1, 207), "cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    ours = actor.invert(pixels, pa.table({"label": pa.array([0, 1], pa.int32()), "key": [1, 2]}), [])[300]
    with torch.inference_mode():
        latents = networks[0].encode(to_images(torch.from_numpy(pixels)), None)
        walk = {"ddim": ddim, "adams": adams}[solver]
        denoise = networks[1].guided(torch.tensor([1, 207]), 1.0)
        plain = walk.invert(denoise, latents, actor.schedule, [300])[300]
    assert np.allclose(ours, plain.flatten(1).numpy(), atol=1e-5)
