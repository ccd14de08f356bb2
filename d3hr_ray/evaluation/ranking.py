"""DD-Ranking's scores (arXiv 2505.13300): what a set gains over random images and loses to real ones, in [0, 1].

Accuracies enter as fractions. The published package enters percentages into the exponentials, which then saturate
(at b8b09664); its numbers do not compare with these.
"""

from collections.abc import Mapping
from math import e, exp

WEIGHT = 0.5  # of the label term against the hard-label term, and of augmented against plain; the package's default


def robust(score: float) -> float:
    """alpha in [-1, 1] => (e^alpha - e^-1) / (e - e^-1) in [0, 1]. Raises ValueError for a percentage."""
    if not -1 <= score <= 1:
        raise ValueError(f"{score:g} is no difference of fractions: divide accuracies by 100")
    return (exp(score) - 1 / e) / (e - 1 / e)


def label_robust_score(accuracy: Mapping[str, float]) -> dict[str, float]:
    """Accuracies full-hard, set-hard, set-soft, random-soft => HLR, IOR and LRS.

    HLR is what hard labels lose to the full set, IOR what the set gains over random images under the same soft labels.
    """
    hlr = accuracy["full-hard"] - accuracy["set-hard"]
    ior = accuracy["set-soft"] - accuracy["random-soft"]
    return {"HLR": hlr, "IOR": ior, "LRS": robust(WEIGHT * ior - (1 - WEIGHT) * hlr)}


def augmentation_robust_score(accuracy: Mapping[str, float]) -> dict[str, float]:
    """Accuracies set-soft, random-soft, set-noaug, random-noaug => the two gains over random images, and ARS."""
    with_aug = accuracy["set-soft"] - accuracy["random-soft"]
    without = accuracy["set-noaug"] - accuracy["random-noaug"]
    return {"IOR-aug": with_aug, "IOR-noaug": without, "ARS": robust(WEIGHT * with_aug + (1 - WEIGHT) * without)}
