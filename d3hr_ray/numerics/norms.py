"""The exact law of a random subset's mean and std errors, so that a candidate costs two numbers instead of n * D.

For n normal draws per dimension, sample mean and sample std are independent, and dimensions are too. Hence the squares
of both error norms are sums over D of w_d X_d, with X_d independent and of a known law:

    mean error: w_d = var_d / n, X_d = z^2, z normal                (chi-square with 1 degree of freedom)
    std error:  w_d = var_d,     X_d = (s - 1)^2, s^2 (n - 1) chi-square with n - 1 degrees of freedom

`Quantiles` draws such a sum itself; `given_sum` then draws the D terms of the one candidate that won, given their sum.
Sources: inversion of the characteristic function as a Fourier series (Abate and Whitt, 1992); a law conditioned on a
sum does not change under exponential tilting; the last two terms are drawn in polar coordinates, by rejection.
"""

from dataclasses import dataclass
from functools import cached_property
from math import pi

import numpy as np
from scipy.special import ndtri

POINTS = 1 << 14  # of the tabulated distribution function, over 40 standard deviations
MAX_TERMS = 1 << 12  # of its Fourier series; 30 are enough at D = 4096, 100 at D = 96
NEGLIGIBLE = 1e-15  # where the series ends
TAIL = 1e-12  # quantiles further out are clamped: rounding of the series is 1e-15
TRIALS = 32  # rejection trials drawn at once; about 1 in 100 is accepted at D = 4096


@dataclass(frozen=True)
class SquaredNormal:
    """X = z^2, z standard normal."""

    mean: float = 1.0
    variance: float = 2.0

    def log_cf(self, u: np.ndarray) -> np.ndarray:
        """Logarithm of E exp(i u X)."""
        return -0.5 * np.log1p(-2j * u)

    def lowest_tilt(self) -> float:
        """Tilts above this one (times a weight) are proper laws that rejection handles well."""
        return -0.4

    def tilted(self, tilt_D: np.ndarray, trials: int, draw: np.random.Generator) -> np.ndarray:
        """(trials, D) signed roots of X under the density tilted by exp(-tilt X)."""
        return draw.standard_normal((trials, len(tilt_D))) / np.sqrt(1 + 2 * tilt_D)

    def log_accept(self, root: np.ndarray, tilt: np.ndarray) -> np.ndarray:
        """Logarithm of the tilted density of a signed root over its maximum."""
        return -(0.5 + tilt) * root**2


@dataclass(frozen=True)
class SquaredStdError:
    """X = (s - 1)^2, s the sample std of n standard normal draws; its signed root is s - 1."""

    n: int

    @property
    def half(self) -> float:
        """Shape and rate of the gamma law of s^2."""
        return (self.n - 1) / 2

    @property
    def mean(self) -> float:
        """E X."""
        root, weight = self._nodes
        return float(weight @ root**2)

    @property
    def variance(self) -> float:
        """Of X."""
        root, weight = self._nodes
        return float(weight @ root**4) - self.mean**2

    @cached_property
    def _nodes(self) -> tuple[np.ndarray, np.ndarray]:
        """Gauss-Legendre nodes s - 1 and their probabilities, to 1e-14: the density is smooth on (0, 1 + 9 sigma)."""
        low, high = max(0.0, 1 - 9 / np.sqrt(2 * self.half)), 1 + 9 / np.sqrt(2 * self.half)
        node, weight = np.polynomial.legendre.leggauss(200)
        root = low + (high - low) * (node + 1) / 2 - 1
        log = self._log_density(1 + root)
        weight = weight * np.exp(log - log.max())  # else nothing is left of it from n = 1,490 on
        return root, weight / weight.sum()

    def log_cf(self, u: np.ndarray) -> np.ndarray:
        """Logarithm of E exp(i u X): quadrature on a grid of u, denser near 0, and a cubic spline between."""
        grid = u.max() * np.linspace(0, 1, 1000) ** 2
        from scipy.interpolate import CubicSpline  # takes a second to import

        root, weight = self._nodes
        values = np.exp(1j * grid[:, None] * root**2) @ weight
        log = np.log(np.abs(values)) + 1j * np.unwrap(np.angle(values))
        table: np.ndarray = CubicSpline(grid, log)(u)
        return table

    def lowest_tilt(self) -> float:
        """See SquaredNormal."""
        return -0.8 * self.half

    def tilted(self, tilt_D: np.ndarray, trials: int, draw: np.random.Generator) -> np.ndarray:
        """See SquaredNormal. By rejection: for a negative tilt c, log s <= s - 1 gives a gamma law as envelope."""
        shape = np.broadcast_to(self.half + np.minimum(tilt_D, 0), (trials, len(tilt_D)))
        tilt = np.broadcast_to(tilt_D, shape.shape)
        out = np.empty(shape.shape)
        todo = np.ones(shape.shape, bool)
        while todo.any():
            k, c = shape[todo], tilt[todo]
            s = np.sqrt(draw.standard_gamma(k) / k)
            log_accept = np.where(c >= 0, -c * (s - 1) ** 2, 2 * c * (s - 1 - np.log(s)))
            ok = -draw.standard_exponential(len(s)) < log_accept
            at = np.flatnonzero(todo)[ok]
            out.flat[at], todo.flat[at] = s[ok] - 1, False
        return out

    def log_accept(self, root: np.ndarray, tilt: np.ndarray) -> np.ndarray:
        """See SquaredNormal; minus infinity where s would be negative."""
        k, power, s = self.half, self.n - 2, 1 + root
        top = (tilt + np.sqrt(tilt**2 + 2 * (k + tilt) * power)) / (2 * (k + tilt))  # s of the highest density
        top = np.maximum(top, 0)
        log = self._log_density(np.maximum(s, 0)) - tilt * root**2 - self._log_density(top) + tilt * (top - 1) ** 2
        return np.where(s > 0, log, -np.inf)

    def _log_density(self, s: np.ndarray) -> np.ndarray:
        """Of s > 0, up to a constant."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.n > 2, (self.n - 2) * np.log(s), 0) - self.half * s**2


Term = SquaredNormal | SquaredStdError


@dataclass(frozen=True)
class Quantiles:
    """Law of sum_d w_d X_d as a map from standard normal numbers to quantiles, which is smooth and nearly straight."""

    normals: np.ndarray
    values: np.ndarray

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """Standard normal numbers => as many independent sums."""
        return np.interp(z, self.normals, self.values)


def quantiles(term: Term, weights_D: np.ndarray) -> Quantiles | None:
    """Tabulate the law of sum_d w_d X_d; None if it is too rough for the series (few dims, few that dominate, or none).

    Against a four times finer tabulation: within 1e-6 of a standard deviation from D = 96 on, 6e-6 at D = 24.
    """
    mean, sd = term.mean * weights_D.sum(), np.sqrt(term.variance * np.square(weights_D).sum())
    if sd == 0:  # a class of equal images: there is no law to tabulate
        return None
    low, period = mean - 16 * sd, 40 * sd
    cf = _characteristic(term, weights_D, 2 * pi / period)
    if cf is None:
        return None
    k = np.arange(1, len(cf) + 1)
    terms = 2 / period * cf * np.exp(-2j * pi * k / period * low) / (-2j * pi * k / period)
    series = np.zeros(POINTS // 2 + 1, complex)
    series[k] = terms.conj() * (POINTS / 2)
    x = low + period * np.arange(POINTS) / POINTS
    cdf = (x - low) / period + np.fft.irfft(series, POINTS) - terms.sum().real
    inside = np.flatnonzero((cdf > TAIL) & (cdf < 1 - TAIL) & (x > 0))
    return Quantiles(ndtri(np.maximum.accumulate(cdf[inside])), x[inside])


def _characteristic(term: Term, weights_D: np.ndarray, step: float) -> np.ndarray | None:
    """E exp(i t sum w X) at t = step, 2 step, ... until it is negligible; None if that takes too many."""
    size = 48
    while size <= MAX_TERMS:
        t = step * np.arange(1, size + 1)
        log = term.log_cf(t[:, None] * weights_D).sum(1)
        if log[-1].real < np.log(NEGLIGIBLE):
            return np.exp(log)
        size += size // 2
    return None


def given_sum(term: Term, weights_D: np.ndarray, total: float, draw: np.random.Generator) -> np.ndarray:
    """Signed roots (D,) of independent X_d given that sum_d w_d X_d = total, exactly.

    All terms but the two heaviest are drawn; the rest of the total is split between those two at a random angle, and
    the trial is accepted with their density's share of its maximum. The tilt only makes acceptance likelier.
    """
    excess = term.mean * weights_D.sum() - total
    tilt = excess / (term.variance * np.square(weights_D).sum())
    tilt_D = max(tilt, term.lowest_tilt() / weights_D.max()) * weights_D
    order = np.argsort(weights_D)
    others, last = order[:-2], order[-2:]
    while True:
        roots = term.tilted(tilt_D[others], TRIALS, draw)
        rest = total - np.square(roots) @ weights_D[others]
        angle = 2 * pi * draw.random(TRIALS)
        polar = np.sqrt(np.maximum(rest, 0))[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        pair = polar / np.sqrt(weights_D[last])
        log_accept = term.log_accept(pair, tilt_D[last]).sum(1)
        accepted = np.flatnonzero((rest > 0) & (-draw.standard_exponential(TRIALS) < log_accept))
        if len(accepted):
            result = np.empty(len(weights_D))
            result[others], result[last] = roots[accepted[0]], pair[accepted[0]]
            return result
