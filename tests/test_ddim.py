"""DDIM in closed form, its order of convergence, its round trip, and its grid against diffusers'."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from d3hr_ray.models.closed_form import GaussianDenoiser
from d3hr_ray.numerics.ddim import ddim_step, invert, sample
from d3hr_ray.numerics.grids import leading_grid
from d3hr_ray.numerics.schedule import Schedule, linear_alphas

MEAN, STD = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.3, 1.0, 0.7])


def gaussian(steps: int) -> GaussianDenoiser:
    schedule = Schedule(linear_alphas(), leading_grid(1000, steps))
    return GaussianDenoiser(schedule, MEAN.double(), STD.double())


def data() -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return MEAN + STD * torch.randn(64, 3, generator=draw)


def slope(steps: list[int], errors: list[float]) -> float:
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def test_inversion_and_sampling_converge_at_first_order():
    steps = [25, 50, 100, 200]
    inversions, samplings = [], []
    for n in steps:
        denoise = gaussian(n)
        x0 = denoise.transport(data().double(), 0, 0)
        exact = denoise.transport(x0, 0, 600)
        inverted = invert(denoise, x0.float(), denoise.schedule, [600])[600]
        inversions.append(float((inverted - exact).abs().mean()))
        # Down to the grid's 0: a final alpha equal to its own makes the last step the identity.
        to_zero = Schedule(denoise.schedule.alphas_cumprod, denoise.schedule.grid, denoise.schedule.alpha(0))
        sampled = sample(denoise, exact.float(), to_zero, 600)
        samplings.append(float((sampled - x0).abs().mean()))
    assert slope(steps, inversions) == pytest.approx(-1, abs=0.1)
    assert slope(steps, samplings) == pytest.approx(-1, abs=0.1)


def test_inversion_keeps_each_z_score():
    """The exact map carries a z-score within p_0 to the same z-score within p_t (worst of 192 measured: 0.011)."""
    denoise = gaussian(1000)
    inverted = invert(denoise, data(), denoise.schedule, [600])[600]
    exact = denoise.transport(data(), 0, 600)
    a = denoise.schedule.alpha(600)
    assert float(((inverted - exact) / (a * STD**2 + 1 - a).sqrt()).abs().max()) < 0.02


def test_round_trip_error_shrinks_with_the_step():
    errors = []
    for n in (50, 500):
        denoise = gaussian(n)
        noised = invert(denoise, data(), denoise.schedule, [600])[600]
        errors.append(float((sample(denoise, noised, denoise.schedule, 600) - data()).abs().mean()))
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize("final", [1.0, 0.9999])
def test_a_grid_that_begins_above_0_is_walked_back_exactly(final):
    """Noise that depends on t alone has an exact inverse, if the step that lands on the image is inverted, too."""
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    grid = tuple(sorted(scheduler.timesteps.tolist()))
    assert grid[0] == 19
    schedule = Schedule(linear_alphas(), grid, final)
    noise = torch.randn(1000, 3, generator=torch.Generator().manual_seed(2))
    states = invert(lambda x, t: noise[t].expand_as(x), data(), schedule, [19, 599])
    for t, state in states.items():
        back = sample(lambda x, t: noise[t].expand_as(x), state, schedule, t)
        assert torch.allclose(back, data(), atol=1e-5)


def test_steps_agree_with_diffusers():
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(50)
    schedule = Schedule(linear_alphas(), leading_grid(1000, 50))
    assert sorted(scheduler.timesteps.tolist()) == list(schedule.grid)
    draw = torch.Generator().manual_seed(1)
    x, eps = torch.randn(2, 4, 8, generator=draw)
    for t in (980, 600, 20, 0):
        theirs = scheduler.step(eps, t, x).prev_sample
        alpha_to = schedule.final_alpha if t == 0 else schedule.alpha(t - 20)
        assert torch.allclose(ddim_step(x, eps, schedule.alpha(t), alpha_to), theirs, atol=1e-5)


def test_official_sampling_lands_on_step_1():
    """With floor 1 the last two steps end at training step 1; an exact denoiser shows where."""
    denoise = gaussian(50)
    seen = []

    def watch(x: torch.Tensor, t: int) -> torch.Tensor:
        seen.append(t)
        return denoise(x, t)

    out = sample(watch, data(), denoise.schedule, 40, floor=1)
    x = data()
    for t, to in ((40, 20), (20, 1), (0, 1)):
        x = ddim_step(x, denoise(x, t).float(), denoise.schedule.alpha(t), denoise.schedule.alpha(to))
    assert seen == [40, 20, 0]
    assert torch.equal(out, x)


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_a_step_there_and_back_is_the_identity(a, b, seed):
    x, eps = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(ddim_step(ddim_step(x, eps, a, b), eps, b, a), x, atol=1e-9)


@pytest.mark.parametrize(
    ("t", "words"), [(601, "neighbours are 600 and 620"), (1200, "outside the schedule"), (-20, "outside")]
)
def test_a_timestep_off_the_grid_names_the_fix(t, words):
    with pytest.raises(ValueError, match=words):
        Schedule(linear_alphas(), leading_grid(1000, 50)).position(t)


def test_inversion_stops_at_the_largest_timestep():
    calls = []
    schedule = Schedule(linear_alphas(), leading_grid(1000, 50))
    states = invert(lambda x, t: calls.append(t) or x, data(), schedule, [280, 100])
    assert calls == list(range(20, 281, 20))
    assert set(states) == {100, 280}
