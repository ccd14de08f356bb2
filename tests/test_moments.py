"""Mergeable moments against torch in float64, and the merge's algebra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d3hr_ray.numerics.moments import Moments, PowerSums


def draw(n: int, seed: int, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) * 3 + offset


def close(a: Moments, b: Moments) -> bool:
    return (
        a.count == b.count
        and torch.allclose(a.mean_D, b.mean_D, rtol=1e-12, atol=1e-12)
        and torch.allclose(a.m2_D, b.m2_D, rtol=1e-12, atol=1e-10)
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(0, 10**6), st.floats(-1e3, 1e3))
def test_merging_any_parts_in_any_order_equals_the_whole(sizes, seed, offset):
    whole = draw(sum(sizes), seed, offset)
    parts = [Moments.of(p) for p in whole.split(sizes)]
    forward, backward = parts[0], parts[-1]
    for part in parts[1:]:
        forward = forward.merge(part)
    for part in parts[-2::-1]:
        backward = part.merge(backward)
    assert close(forward, Moments.of(whole))
    assert close(backward, forward)


def test_merge_commutes_and_associates():
    a, b, c = (Moments.of(draw(n, n)) for n in (5, 7, 11))
    assert close(a.merge(b), b.merge(a))
    assert close(a.merge(b).merge(c), a.merge(b.merge(c)))


def test_variance_is_torchs_unbiased_one_even_far_from_zero():
    x = draw(1000, 3, offset=1e4)
    assert torch.allclose(Moments.of(x).variance(), x.double().var(0), rtol=1e-12)


def test_half_precision_input_is_summed_in_double():
    x = draw(2000, 4).half()
    assert torch.allclose(Moments.of(x).mean_D, x.double().mean(0), rtol=1e-13)


def test_variance_of_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        Moments.of(draw(1, 0)).variance()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(0, 10**6), st.floats(-50, 50))
def test_power_sums_equal_the_moments_of_each_label(sizes, seed, offset):
    x = draw(sum(sizes), seed, offset).half()
    labels = torch.randint(0, 5, (len(x),), generator=torch.Generator().manual_seed(seed)) * 3
    sums = PowerSums(6)
    for part, names in zip(x.split(sizes), labels.split(sizes), strict=True):
        sums.add(part, names)
    found = sums.moments()
    assert sorted(found) == sorted(set(labels.tolist()))
    for label, ours in found.items():
        plain = Moments.of(x[labels == label])
        assert ours.count == plain.count
        assert torch.allclose(ours.mean_D, plain.mean_D, rtol=1e-12, atol=1e-14)
        assert torch.allclose(ours.m2_D, plain.m2_D, rtol=1e-12, atol=1e-9)


def test_power_sums_of_equal_samples_have_no_variance():
    sums = PowerSums(6)
    sums.add(draw(1, 0, offset=7.3).half().expand(31, 6), torch.zeros(31))
    assert torch.equal(sums.moments()[0].variance(), torch.zeros(6, dtype=torch.float64))
