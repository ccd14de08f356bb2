"""CaO2: ancestral sampling, latent optimisation and selection against plain definitions; its stages without Ray."""

import numpy as np
import pytest
import torch
from conftest import PIPELINE
from diffusers import DDPMScheduler

from d3hr_ray.models.closed_form import GaussianDenoiser
from d3hr_ray.models.loading import load_schedule
from d3hr_ray.numerics.ancestral import ancestral
from d3hr_ray.numerics.grids import ancestral_grid
from d3hr_ray.numerics.latent_optimisation import noise_loss, optimise_latents
from d3hr_ray.numerics.schedule import Schedule, linear_alphas
from d3hr_ray.numerics.selection import learnability, rematch, select

SCHEDULE = Schedule(linear_alphas(), ancestral_grid(1000, 50))


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_ancestral_grid_is_the_authors_respacing():
    grid = ancestral_grid(1000, 50)
    assert grid[:4] == (0, 20, 41, 61) and grid[11] == 224 and grid[-1] == 999 and len(grid) == 50


@pytest.mark.parametrize("learnt", [False, True])
def test_ancestral_steps_are_those_of_diffusers(learnt):
    """DDPMScheduler on the same grid, fed the same predictions and the same noise."""
    kind = "learned_range" if learnt else "fixed_small"
    reference = DDPMScheduler(1000, 1e-4, 2e-2, "linear", variance_type=kind, clip_sample=False)
    reference.set_timesteps(timesteps=list(SCHEDULE.grid[::-1]))
    place = normals(2, 3, seed=5).clamp(-1, 1) if learnt else None

    def predict(x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.tanh(x) * (t / 1000), place

    draws = {t: normals(2, 3, seed=t) for t in SCHEDULE.grid}
    theirs = normals(2, 3, seed=1)
    for t in SCHEDULE.grid[::-1]:
        eps, v = predict(theirs, t)
        out = eps if v is None else torch.cat([eps, v], 1)
        mean_and_noise = _reference_step(reference, out, t, theirs, draws[t])
        theirs = mean_and_noise
    ours = ancestral(predict, normals(2, 3, seed=1), SCHEDULE, draws.__getitem__)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def _reference_step(scheduler, out: torch.Tensor, t: int, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    import diffusers.schedulers.scheduling_ddpm as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise)
        return scheduler.step(out, t, x).prev_sample


def test_ancestral_samples_of_exact_gaussian_data_have_its_moments():
    """250 steps of the exact denoiser from N(0, 1) give N(m, s^2): 4,000 samples, three deviations allowed."""
    schedule = Schedule(linear_alphas(), ancestral_grid(1000, 250))
    mean, std = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.5])
    exact = GaussianDenoiser(schedule, mean, std)
    draw = torch.Generator().manual_seed(0)
    x = ancestral(
        lambda x, t: (exact(x, t), None),
        torch.randn(4000, 2, generator=draw),
        schedule,
        lambda t: torch.randn(4000, 2, generator=draw),
    )
    assert (x.mean(0) - mean).abs().max() < 3 * 1.5 / 4000**0.5
    assert ((x.std(0) / std) - 1).abs().max() < 0.05


def stage2_problem(networks, images: int = 3):
    denoiser = networks[1]
    latents, noise = (normals(images, *denoiser.latent_shape, seed=s) for s in (1, 2))
    schedule = load_schedule(PIPELINE, 50)
    told = torch.tensor([[20, 61, 224][:images], [41, 20, 102][:images]])
    alphas = schedule.alphas_cumprod[told].float()
    classes = torch.tensor([1, 207, 1000][:images])
    return denoiser, latents, noise, alphas, told, classes


def test_stage_2s_loss_and_gradient_are_an_independent_loops(networks):
    """The definition in ten lines of float64 numpy but for the network, and a gradient by autograd of the sum."""
    denoiser, latents, noise, alphas, told, classes = stage2_problem(networks)
    x = latents.clone().requires_grad_()
    a = alphas[0].view(-1, 1, 1, 1)
    noised = a.sqrt() * x + (1 - a).sqrt() * noise
    predicted = denoiser.eps(noised, told[0], classes)
    ours = noise_loss(predicted, noise, 10.0)
    (gradient,) = torch.autograd.grad(ours.sum(), x)
    for i in range(len(latents)):
        y = latents[i : i + 1].clone().requires_grad_()
        alpha = float(alphas[0, i])
        single = denoiser.transformer(
            alpha**0.5 * y + (1 - alpha) ** 0.5 * noise[i : i + 1],
            timestep=told[0, i : i + 1],
            class_labels=classes[i : i + 1],
        ).sample[:, :4]
        error = (single.detach().numpy().astype(np.float64) - noise[i].numpy()).ravel()
        assert float(ours[i].detach()) == pytest.approx(np.mean(error**2) + 10 * np.max(np.abs(error)), rel=1e-5)
        difference = single - noise[i : i + 1]
        (difference.square().mean() + 10 * difference.abs().max()).backward()
        assert torch.allclose(gradient[i], y.grad[0], rtol=1e-4, atol=1e-5)


def test_a_batch_of_stage_2_equals_batch_1(networks):
    denoiser, latents, noise, alphas, told, classes = stage2_problem(networks)

    def run(rows: slice) -> torch.Tensor:
        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return denoiser.eps(x, t, classes[rows])

        return optimise_latents(predict, latents[rows], noise[rows], alphas[:, rows], told[:, rows], 6e-4, 10.0)

    together = run(slice(0, 3))
    alone = torch.cat([run(slice(i, i + 1)) for i in range(3)])
    assert (together - alone).abs().max() < 1e-5
    assert (together - latents).abs().max() == pytest.approx(2 * 6e-4, rel=0.1)  # Adam's first steps are of size lr


def test_stage_2_lowers_its_loss():
    """Against a linear 'network' whose prediction is right at one latent only."""
    target, noise = normals(2, 4, seed=3), normals(2, 4, seed=4)
    alphas, told = torch.full((200, 2), 0.9), torch.zeros(200, 2, dtype=torch.long)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return noise + x - (0.9**0.5 * target + 0.1**0.5 * noise)

    moved = optimise_latents(predict, torch.zeros(2, 4), noise, alphas, told, 0.05, 0.0)
    assert (moved - target).norm() < 0.01 * target.norm()


RIGHT = torch.tensor([True, False, True, False, True])
OWN = torch.tensor([0.6, 0.2, 0.9, 0.3, 0.7])
MAX = torch.tensor([0.6, 0.8, 0.9, 0.5, 0.7])


@pytest.mark.parametrize(
    ("n", "score", "fill", "places", "correct"),
    [
        (2, OWN, OWN, (2, 4), 2),
        (2, -OWN, OWN, (0, 4), 2),  # hard
        (4, OWN, OWN, (2, 4, 0, 3), 3),  # the wrong one that looks most like its class
        (4, OWN, MAX, (2, 4, 0, 1), 3),  # the authors': the most confident wrong one
        (5, -OWN, MAX, (0, 4, 2, 1, 3), 3),
    ],
)
def test_selection_on_a_case_made_by_hand(n, score, fill, places, correct):
    choice = select(RIGHT, score, fill, n)
    assert (choice.places, choice.correct) == (places, correct)


def test_a_pool_without_a_right_image_still_fills_up():
    assert select(torch.zeros(3, dtype=torch.bool), -OWN[:3], OWN[:3], 2).places == (2, 0)
    with pytest.raises(ValueError, match="larger --pool"):
        select(RIGHT, OWN, OWN, 6)


def test_learnability_is_the_learners_loss_less_half_the_references():
    """Probabilities of the class: the learner's p and the reference's q, -log(p / sqrt(q)); largest first."""
    learner, reference = torch.tensor([0.5, 0.2, 0.05, 0.02]), torch.tensor([1.0, 0.01, 0.81, 0.0])
    score = learnability(-learner.log(), reference)
    assert torch.allclose(score[:3], -torch.tensor([0.5, 0.2 / 0.1, 0.05 / 0.9]).log())
    assert select(torch.ones(4, dtype=torch.bool), score, reference, 4).places == (2, 0, 1, 3)


def test_what_the_reference_gets_wrong_is_kept_only_to_fill_up():
    """Learnable as it looks: a mislabelled image has a large loss under both. Then it goes by the reference alone."""
    right, own = torch.tensor([False, True, False, True]), torch.tensor([0.1, 0.9, 0.3, 0.9])
    score = learnability(torch.tensor([9.0, 0.1, 8.0, 0.1]), own)
    assert score.argmax() == 0
    places = [select(right, score, own, n).places for n in range(1, 5)]
    assert places == [(1,), (1, 3), (1, 3, 2), (1, 3, 2, 0)]  # 1 and 3 are level: the pool's order


def test_rematched_latents_have_the_class_moments():
    mean, std = torch.linspace(-1, 1, 7), torch.linspace(0.5, 2, 7)
    chosen = normals(5, 7) * 3 + 1
    moved = rematch(chosen, mean, std)
    assert torch.allclose(moved.mean(0), mean, atol=1e-5) and torch.allclose(moved.std(0), std, rtol=1e-5)
    assert torch.equal(rematch(chosen[:1], mean, std), chosen[:1])


def test_guidance_of_three_channels_leaves_the_fourth_to_the_class(networks):
    denoiser, x, classes = networks[1], normals(2, *networks[1].latent_shape), torch.tensor([1, 207])
    with torch.inference_mode():
        all_of_them = denoiser.guided(classes, 4.0)(x, 500)
        three = denoiser.guided(classes, 4.0, 3)(x, 500)
        given = denoiser.guided(classes, 1.0)(x, 500)
    assert torch.equal(three[:, :3], all_of_them[:, :3])
    assert torch.allclose(three[:, 3], given[:, 3], atol=1e-6)
    assert not torch.allclose(three[:, 3], all_of_them[:, 3], atol=1e-6)
