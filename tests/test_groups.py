"""Group sampling: the score against a plain loop, its properties, and exact matching."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from d3hr_ray.numerics import groups

D = 96
MEAN = torch.linspace(-1, 2, D)
STD = torch.linspace(0.5, 1.5, D)


def plain_score(subset: np.ndarray, weight: float) -> float:
    """The definition, in float64, one dim at a time."""
    mean = std = skew = 0.0
    n = len(subset)
    for d in range(subset.shape[1]):
        x = subset[:, d].astype(np.float64)
        mean += (x.mean() - float(MEAN[d])) ** 2
        std += (x.std(ddof=1) - float(STD[d])) ** 2
        z = (x - x.mean()) / x.std(ddof=1)
        skew += (n / ((n - 1) * (n - 2)) * (z**3).sum()) ** 2
    return mean**0.5 + std**0.5 + weight * skew**0.5


def candidates(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, D, generator=torch.Generator().manual_seed(seed)) * STD + MEAN


def test_score_is_its_definition():
    subsets = candidates(5, 7)
    ours = groups.scores(subsets, MEAN, STD, 0.5)
    assert ours.tolist() == pytest.approx([plain_score(s.numpy(), 0.5) for s in subsets], rel=1e-4)


@pytest.mark.parametrize("axis", ["dims", "features"])
def test_dims_without_spread_have_no_skewness(axis):
    """A class of two images has such dims, as latents are stored in float16: 0 / 0 was every candidate's score."""
    draw = torch.Generator().manual_seed(0)
    mean, std = torch.full((64,), 0.3), torch.ones(64)
    std[[3, 50]] = 0.0
    subsets = torch.randn(200, 5, 64, generator=draw) * std + mean
    found = groups.scores(subsets, mean, std, 0.5, axis)
    assert bool((found > groups.scores(subsets, mean, std, 0.0)).all())
    if axis == "dims":  # as if these dims were not there
        kept = std > 0
        torch.testing.assert_close(found, groups.scores(subsets[..., kept], mean[kept], std[kept], 0.5))


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 12), st.integers(0, 1000))
def test_score_does_not_depend_on_the_order_within_a_subset(n, seed):
    subset = candidates(1, n, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for axis in ("dims", "features"):
        a, b = (groups.scores(s, MEAN, STD, 0.3, axis) for s in (subset, subset[:, order]))
        assert torch.allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_spread_radius_puts_latents_on_the_gaussians_own_shell(n):
    std, radius = (groups.match_moments(MEAN, STD, n, 16, 0, 4, spread) for spread in ("std", "radius"))
    mean_square = {"std": (n - 1) / n, "radius": 1.0}  # of a dim's distance from the mean, in variances; closed form
    for spread, subset in (("std", std), ("radius", radius)):
        z = ((subset - MEAN) / STD).double()
        assert z.mean(0).abs().max() < 1e-5
        assert (z.square().mean(0) - mean_square[spread]).abs().max() < 1e-4
    assert torch.allclose((radius - MEAN) / (std - MEAN), torch.tensor((n / (n - 1)) ** 0.5), rtol=1e-3)


@pytest.mark.parametrize("n", [2, 3, 10, 50])
def test_moments_matches_exactly_and_loses_its_skewness(n):
    subset = groups.match_moments(MEAN, STD, n, 256, seed=0, label=4)
    draw = candidates(1, n)[0]
    ours, random = (float(groups.scores(s[None], MEAN, STD, 0.0)) for s in (subset, draw))
    assert ours < 1e-5 * random
    if n > 2:
        skew, random_skew = (float(groups.skewness(s[None]).norm()) for s in (subset, draw))
        assert skew < random_skew / 8


def test_moments_with_one_image_is_the_mean():
    assert torch.equal(groups.match_moments(MEAN, STD, 1, 256, 0, 0), MEAN[None])


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_prefixes_of_an_exact_set_beat_random_draws(k):
    """Nested sets: mean over 10 labels, against the mean of as many draws of k."""
    sets = [groups.match_moments(MEAN, STD, 10, 64, 0, label)[:k] for label in range(10)]
    draws = candidates(10, k)
    ours, random = (np.mean([float(groups.scores(s[None], MEAN, STD, 0.0)) for s in x]) for x in (sets, draws))
    assert ours < random


def test_an_exact_sets_latents_stay_typical():
    """No latent is shrunk or made another's mirror image: norms alike, correlations near -1/(n - 1), in any place."""
    n, dims = 10, 4096
    z = groups.match_moments(torch.zeros(dims), torch.ones(dims), n, 64, 0, 0)
    norms = z.norm(dim=1) / dims**0.5
    assert float((norms - norms.mean()).abs().max()) < 0.05
    correlations = torch.corrcoef(z)[~torch.eye(n, dtype=torch.bool)]
    assert float((correlations + 1 / (n - 1)).abs().max()) < 5 / dims**0.5


def test_moments_keeps_the_marginals_near_those_of_a_standardised_sample():
    """Choosing columns without skewness must not distort their values (KS distance measured: 0.013; tails lighter)."""
    zero, one = torch.zeros(2000), torch.ones(2000)
    ours = groups.match_moments(zero, one, 20, 32, 0, 0)
    plain = torch.randn(20, 2000, generator=torch.Generator().manual_seed(0))
    plain = (plain - plain.mean(0)) / plain.std(0)
    assert stats.ks_2samp(ours.flatten().numpy(), plain.flatten().numpy()).statistic < 0.02


def test_official_candidates_are_the_same_for_every_class_and_any_count():
    few, many = (list(groups.official_candidates(MEAN, STD, 3, 2, m)) for m in (60, 120))
    assert torch.equal(torch.cat(few), torch.cat(many)[:60])
    assert len(torch.cat(many)) == 120
