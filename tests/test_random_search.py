"""Random search by the law of its scores: against closed forms, Monte Carlo, and the plain loop of the paper."""

import numpy as np
import pytest
import torch
from scipy import stats

from d3hr_ray.numerics import groups
from d3hr_ray.numerics.norms import SquaredNormal, SquaredStdError, given_sum, quantiles
from d3hr_ray.numerics.random_search import BLOCK, RandomSearch, least_skewness

D = 96
MEAN = torch.linspace(-1, 2, D)
STD = torch.linspace(0.5, 1.5, D)
WEIGHTS = STD.double().numpy() ** 2


def search(n: int, weight: float, seed: int = 0, label: int = 0, std: torch.Tensor = STD) -> RandomSearch:
    return RandomSearch(torch.linspace(-1, 2, len(std)), std, n, seed, label, weight)


def plain_best(n: int, count: int, weight: float, seed: int) -> float:
    """The paper's search: draw every subset, score it, keep the best."""
    draw = torch.Generator().manual_seed(seed)
    subsets = torch.randn(count, n, D, generator=draw) * STD + MEAN
    return float(groups.scores(subsets, MEAN, STD, weight).min())


@pytest.mark.parametrize("dims", [48, 96, 4096])
def test_law_of_equal_weights_is_chi_square(dims):
    law = quantiles(SquaredNormal(), np.full(dims, 0.7))
    assert np.abs(stats.chi2(dims).cdf(law.values / 0.7) - stats.norm.cdf(law.normals)).max() < 1e-9


@pytest.mark.parametrize("n", [2, 3, 10, 50])
def test_law_of_the_std_error_is_monte_carlos(n):
    draw = np.random.default_rng(n)
    s = np.sqrt(draw.chisquare(n - 1, (5_000, D)) / (n - 1))
    ours = quantiles(SquaredStdError(n), WEIGHTS)(draw.standard_normal(5_000))
    assert stats.ks_2samp(np.square(s - 1) @ WEIGHTS, ours).pvalue > 0.01


@pytest.mark.parametrize("term", [SquaredNormal(), SquaredStdError(2), SquaredStdError(10)])
@pytest.mark.parametrize("sigmas", [-2.5, 2.0])
def test_terms_given_their_sum_are_those_of_plain_draws_with_that_sum(term, sigmas):
    """Against plain draws whose sum happens to lie within 0.1 standard deviations of the same total."""
    weights = np.linspace(0.5, 1.5, 12) ** 2
    draw = np.random.default_rng(1)
    mean, sd = term.mean * weights.sum(), np.sqrt(term.variance * np.square(weights).sum())
    total = mean + sigmas * sd if mean + sigmas * sd > 0 else 0.3 * mean
    plain = term.tilted(np.zeros(12), 150_000, draw)
    plain = plain[np.abs(np.square(plain) @ weights - total) < 0.1 * sd]
    ours = np.stack([given_sum(term, weights, total, draw) for _ in range(400)])
    assert np.square(ours) @ weights == pytest.approx(np.full(len(ours), total))
    for dim in (0, 6, 11):  # a light, a middle and one of the two that are drawn last
        assert stats.ks_2samp(ours[:, dim], plain[:, dim]).pvalue > 1e-3


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_winner_has_the_score_it_won_with(n, weight):
    ours = search(n, weight, seed=1, label=2)
    score, index = ours.best(3, 120)
    assert float(groups.scores(ours.subset(3, index)[None], MEAN, STD, weight)) == pytest.approx(score, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "count", "weight"), [(5, 300, 0.0), (5, 300, 0.5), (20, 60, 0.5), (1, 300, 0.0)])
def test_winning_scores_are_distributed_like_the_plain_loops(n, count, weight):
    blocks = search(n, weight)
    ours = [blocks.best(k, count)[0] for k in range(200)]
    plain = [plain_best(n, count, weight, seed=k) for k in range(200)]
    assert stats.ks_2samp(ours, plain).pvalue > 0.01


@pytest.mark.slow
def test_a_winners_latents_are_distributed_like_the_plain_loops():
    """Values of the best of 100, 200 times: the subset, not only its score, is the paper's."""
    blocks, ours, plain = search(4, 0.5), [], []
    for k in range(200):
        ours.append(blocks.subset(k, blocks.best(k, 100)[1]))
        subsets = torch.randn(100, 4, D, generator=torch.Generator().manual_seed(k)) * STD + MEAN
        plain.append(subsets[groups.scores(subsets, MEAN, STD, 0.5).argmin()])
    for dim in (0, 95):
        assert stats.ks_2samp(*(torch.stack(x)[:, :, dim].flatten().numpy() for x in (ours, plain))).pvalue > 1e-3


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_more_candidates_never_score_worse_and_cutting_changes_nothing(weight):
    ours = search(4, weight, label=7)
    found = [ours.over(range(-(-m // BLOCK)), m)[0] for m in (1, 100, BLOCK, BLOCK + 5)]
    assert found == sorted(found, reverse=True)
    parts = min(ours.over(range(b, b + 1), BLOCK + 5) for b in (0, 1))
    assert parts == ours.over(range(2), BLOCK + 5)


def test_abandoned_candidates_would_have_lost():
    """Every candidate of a small block scored in full gives the same winner."""
    ours = search(6, 0.5, label=3)
    subsets = torch.stack([ours.subset(0, i) for i in range(150)])
    assert int(groups.scores(subsets, MEAN, STD, 0.5).argmin()) == ours.best(0, 150)[1]


@pytest.mark.parametrize("n", [3, 10])
def test_the_bound_on_skewness_holds(n):
    draw = torch.Generator().manual_seed(n)
    sums = groups.skewness(torch.randn(20_000, n, 24, generator=draw)).square().sum(1)
    assert 0 < least_skewness(n, 240) < 240 * float(sums.mean()) / 24
    assert least_skewness(n, 24) < float(sums.min())


@pytest.mark.slow
def test_few_dims_are_drawn_plainly():
    std = torch.tensor([1.0, 0.5, 2.0])
    assert quantiles(SquaredNormal(), std.double().numpy() ** 2) is None
    ours = search(5, 0.5, std=std)
    score, index = ours.best(0, 50)
    mean = torch.linspace(-1, 2, 3)
    assert float(groups.scores(ours.subset(0, index)[None], mean, std, 0.5)) == pytest.approx(score, rel=1e-4)


def test_a_class_of_equal_images_has_its_mean_for_every_draw():
    """Its law has no width, and none was to be tabulated."""
    for weight in (0.0, 0.1):
        found = search(3, weight, std=torch.zeros(200))
        score, winner = found.best(0, 100, float("inf"))
        assert score == 0
        subset = found.subset(0, winner)[None]
        assert float(groups.scores(subset, found.mean_D, found.std_D, weight)) == pytest.approx(0, abs=1e-5)
        assert torch.equal(found.subset(0, winner), found.mean_D.float().expand(3, -1))


def test_dims_without_spread_have_no_say_in_the_search():
    """Two images of float16 latents agree in some of their dims, and a copy of an image in all."""
    std = torch.where(torch.arange(D) % 7 == 0, 0.0, STD)
    ours = search(5, 0.5, seed=1, std=std)
    score, index = ours.best(3, 120)
    assert float(groups.scores(ours.subset(3, index)[None], MEAN, std, 0.5)) == pytest.approx(score, rel=1e-4)
    all_scores = [float(groups.scores(ours.subset(3, i)[None], MEAN, std, 0.5)) for i in range(120)]
    assert int(np.argmin(all_scores)) == index


@pytest.mark.parametrize("n", [1400, 3000])
def test_the_law_of_many_images_is_known(n):
    """sqrt(2 (n - 1)) times a sample's std is a chi: the mean of (s - 1)^2 tends to 1 / (2 (n - 1))."""
    assert SquaredStdError(n).mean == pytest.approx(1 / (2 * (n - 1)), rel=1e-3)


def test_classes_and_seeds_draw_different_subsets():
    draws = [search(3, 0.0, seed, label).subset(0, 0) for seed in (0, 1) for label in (0, 1)]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 4
