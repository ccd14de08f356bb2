"""The paper's search, best of many random subsets, without drawing the subsets that lose.

A candidate's mean and std errors are two numbers of a known law (norms.py). Its skewness must be drawn, n * D normal
numbers, but is abandoned as soon as it is certain that the candidate loses. Only the winner's latents are made.

N images per class, D latent dims; M candidates of a block.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from d3hr_ray.numerics.norms import Quantiles, SquaredNormal, SquaredStdError, Term, given_sum, quantiles
from d3hr_ray.numerics.seeds import fast_generator, generator

BLOCK = 10_000  # candidates whose errors come from one generator: fixed, so that no other cut changes a winner
SLAB = 128  # dims whose skewness is drawn before asking whether a candidate still can win
RACE = 16  # candidates that are drawn side by side: 80 to 800 kB at n = 10 to 100
SURE = 1e-12  # chance that an abandoned candidate would have won


@dataclass(frozen=True, eq=False)
class RandomSearch:
    """Random subsets of n latents of one class, N(mean_D, std_D^2) per dim, and their matching loss.

    Candidate `index` of a `block` is the same whatever else is searched; `groups.scores` gives the loss it won with.
    """

    mean_D: torch.Tensor
    std_D: torch.Tensor
    n: int
    seed: int
    label: int
    skew_weight: float

    def over(self, blocks: range, count: int) -> tuple[float, int, int]:
        """Best (score, block, index) over some blocks of the first `count` candidates."""
        score, where = np.inf, (-1, -1)
        for block in blocks:
            best, index = self.best(block, min(BLOCK, count - block * BLOCK), score)
            if best < score:
                score, where = best, (block, index)
        return score, *where

    def best(self, block: int, count: int, beat: float = np.inf) -> tuple[float, int]:
        """Best (score, index) among the first `count` candidates of a block; infinity if none is below `beat`."""
        score_M = np.sqrt(self._squares(block)[:, :count]).sum(0)
        order = np.argsort(score_M, kind="stable")
        if not self._skewed:
            return (float(score_M[order[0]]), int(order[0])) if score_M[order[0]] < beat else (np.inf, -1)
        best, winner = beat, -1
        for at in range(0, count, RACE):
            racers = order[at : at + RACE]
            if score_M[racers[0]] + self.skew_weight * self._least_skewness[0] ** 0.5 >= best:
                break  # and so for all after it
            score, index = self._race(block, racers, score_M[racers], best)
            if score < best:
                best, winner = score, index
        return (best, winner) if winner >= 0 else (np.inf, -1)

    def subset(self, block: int, index: int) -> torch.Tensor:
        """The n latents (n, D) of one candidate."""
        shift_D, spread_D = (self._roots(block, index, k) for k in (0, 1))
        z_ND = np.broadcast_to(shift_D / np.sqrt(self.n), (self.n, self._dims))
        if self.n > 1:
            draw = self._residuals(block, index)
            slabs = [draw.standard_normal((self.n, len(varied_S)), np.float32) for varied_S in self._varied]
            x_ND = np.concatenate(slabs, 1, dtype=float)
            z_ND = z_ND + (1 + spread_D) * (x_ND - x_ND.mean(0)) / x_ND.std(0, ddof=1)
        return (self.mean_D.double() + self.std_D.double() * torch.from_numpy(np.array(z_ND))).float()

    @property
    def _dims(self) -> int:
        return len(self.mean_D)

    @property
    def _skewed(self) -> bool:
        return self.n > 2 and self.skew_weight > 0

    @cached_property
    def _terms(self) -> list[tuple[Term, np.ndarray, Quantiles | None]]:
        """The mean error and the std error: law of a dim, weights, law of the sum of squares."""
        variance_D = self.std_D.double().numpy() ** 2
        terms: list[tuple[Term, np.ndarray]] = [(SquaredNormal(), variance_D / self.n)]
        if self.n > 1:
            terms.append((SquaredStdError(self.n), variance_D))
        return [(term, w_D, quantiles(term, w_D)) for term, w_D in terms]

    def _key(self, what: str, *where: int) -> tuple[int | str, ...]:
        return (what, self.seed, self.label, self.n, *where)

    def _squares(self, block: int) -> np.ndarray:
        """Squared errors (terms, BLOCK) of a block's candidates: mean, and std if n > 1."""
        return np.stack([self._draw_squares(k, block) for k in range(len(self._terms))])

    def _draw_squares(self, k: int, block: int) -> np.ndarray:
        _, weights_D, law = self._terms[k]
        if not weights_D.any():  # a class of equal images
            return np.zeros(BLOCK)
        if law is not None:
            return law(generator(*self._key("error", k, block)).standard_normal(BLOCK))
        return np.array([np.square(self._roots(block, i, k)) @ weights_D for i in range(BLOCK)])

    def _roots(self, block: int, index: int, k: int) -> np.ndarray:
        """One candidate's sqrt(n) * sample mean (k = 0) or sample std - 1 (k = 1) per dim, in units of the std."""
        if k == len(self._terms):
            return np.zeros(self._dims)
        term, weights_D, law = self._terms[k]
        draw = generator(*self._key("roots", k, block, index))
        if law is None:  # too few dims for a law of the sum: drawn plainly, and summed
            return term.tilted(np.zeros(self._dims), 1, draw)[0]
        return given_sum(term, weights_D, float(self._draw_squares(k, block)[index]), draw)

    def _residuals(self, block: int, index: int) -> np.random.Generator:
        """The generator of a candidate's residuals: (n, SLAB) normal numbers for each slab of dims."""
        return fast_generator(*self._key("residual", block, index))

    def _race(self, block: int, racers: np.ndarray, score_R: np.ndarray, beat: float) -> tuple[float, int]:
        """Best (score, index) with the skewness term among a few candidates; infinity if none is below `beat`.

        Slab by slab of dims, those that surely are no less than `beat` drop out.
        """
        draws = [self._residuals(block, int(index)) for index in racers]
        alive, square_R = np.arange(len(racers)), np.zeros(len(racers))
        for k, varied_S in enumerate(self._varied, 1):
            x_ANS = np.empty((len(alive), self.n, len(varied_S)), np.float32)
            for a, x_NS in zip(alive, x_ANS, strict=True):
                draws[a].standard_normal(out=x_NS, dtype=np.float32)
            square_R[alive] += _squared_skewness(x_ANS, varied_S)
            least_A = score_R[alive] + self.skew_weight * np.sqrt(square_R[alive] + self._least_skewness[k])
            alive = alive[least_A < beat]
            if not len(alive):
                return np.inf, -1
        score_A = score_R[alive] + self.skew_weight * np.sqrt(square_R[alive])
        return float(score_A.min()), int(racers[alive[score_A.argmin()]])

    @cached_property
    def _least_skewness(self) -> list[float]:
        """What the squared skewness of the dims after k slabs surely exceeds, for k = 0, 1, ...; the last is 0."""
        varied = [int(varied_S.sum()) for varied_S in self._varied]
        return [least_skewness(self.n, sum(varied[k:])) for k in range(len(varied) + 1)]

    @cached_property
    def _varied(self) -> list[np.ndarray]:
        """Of each slab of dims, those in which the class has a spread: others have no skewness."""
        return [slab_S.numpy() for slab_S in (self.std_D > 0).split(SLAB)]


def _squared_skewness(x_ANS: np.ndarray, varied_S: np.ndarray) -> np.ndarray:
    """Sum over dims that vary of the squared sample skewness, (A,), from power sums over numbers that fit the cache."""
    n = x_ANS.shape[1]
    square_ANS = x_ANS * x_ANS
    mean_AS, second_AS = x_ANS.sum(1) / n, square_ANS.sum(1)
    square_ANS *= x_ANS
    third_AS = square_ANS.sum(1) - mean_AS * (3 * second_AS - 2 * n * mean_AS * mean_AS)
    variance_AS = (second_AS - n * mean_AS * mean_AS) / (n - 1)
    skew_AS = third_AS / (variance_AS * np.sqrt(variance_AS))
    skew_AS = skew_AS if varied_S.all() else skew_AS[:, varied_S]
    sums: np.ndarray = np.square(skew_AS, dtype=np.float64).sum(1) * (n / ((n - 1) * (n - 2))) ** 2
    return sums


def least_skewness(n: int, dims: int) -> float:
    """A number that the sum over dims of squared sample skewness of n normal draws exceeds but for chance SURE.

    Chernoff: P(sum < r) <= exp(theta r) M(theta)^dims, with M(theta) <= 1 - theta m1 + theta^2 m2 / 2 for X >= 0.
    m1 and m2, the second and fourth moments of the sample skewness, are known exactly (Fisher, 1930).
    """
    if dims == 0:
        return 0.0
    m1 = 6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3))
    m2 = m1**2 * (3 + 36 * (n - 7) * (n**2 + 2 * n - 5) / ((n - 2) * (n + 5) * (n + 7) * (n + 9)))
    theta = np.geomspace(1e-4, 10, 400) / m1
    bound = (np.log(SURE) - dims * np.log(1 - theta * m1 + theta**2 * m2 / 2)) / theta
    return max(0.0, float(bound.max()))
