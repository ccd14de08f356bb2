"""Which images of a pool stay: CaO2's first stage (arXiv 2506.22637), by its scores or by LGD's learnability.

P candidates of one class.
"""

from dataclasses import dataclass

import torch

from d3hr_ray.numerics.groups import Spread, spread_scale

REFERENCE_SHARE = 0.5  # of the reference's loss, that learnability takes off: LGD's


@dataclass(frozen=True)
class Choice:
    """Places in the pool, best first, and how many of these images the classifier got right."""

    places: tuple[int, ...]
    correct: int


def learnability(learner_loss_P: torch.Tensor, own_P: torch.Tensor) -> torch.Tensor:
    """What a network has still to learn from each candidate, (P,): its cross-entropy less half the reference's.

    `own_P` is the reference's probability of the class. Large for what is hard for the network as it is and easy for
    one that is well trained: the selection of learnability-guided diffusion (LGD, CVPR 2026). A mislabelled image can
    be large, too, as both losses are: `select` puts those behind.
    """
    return learner_loss_P + REFERENCE_SHARE * own_P.log()


def select(right_P: torch.Tensor, score_P: torch.Tensor, fill_P: torch.Tensor, n: int) -> Choice:
    """The n candidates to keep of a pool.

    Those that the classifier gets right (`right_P`) come first, those of the largest score before others. If too few
    are right, wrong ones fill up by `fill_P`, largest first: the authors take the most confident wrong ones, their own
    class's probability is the better choice. Ties keep the pool's order. Raises ValueError if the pool is smaller than
    n.
    """
    if len(right_P) < n:
        raise ValueError(f"a pool of {len(right_P)} images cannot give {n}; use a larger --pool")
    by_score, by_fill = (torch.argsort(x, descending=True, stable=True) for x in (score_P, fill_P))
    places = torch.cat([by_score[right_P[by_score]], by_fill[~right_P[by_fill]]])[:n]
    return Choice(tuple(places.tolist()), int(right_P[places].sum()))


def rematch(
    latents_ND: torch.Tensor, mean_D: torch.Tensor, std_D: torch.Tensor, spread: Spread = "std"
) -> torch.Tensor:
    """Chosen latents (n, D) => moved and scaled per dim to the class's mean and `spread`: what choosing undid.

    A single latent is left as it is: its class mean would be the same whatever was chosen.
    """
    if len(latents_ND) == 1:
        return latents_ND
    x_ND = latents_ND.double()
    own_D = x_ND.std(0)
    z_ND = (x_ND - x_ND.mean(0)) / torch.where(own_D > 0, own_D, torch.ones_like(own_D))
    return (mean_D + spread_scale(len(x_ND), spread) * std_D * z_ND).float()
