"""Scores of a distilled set that need no training, and how well they rank sets by accuracy.

Features and confidence are a classifier's, on real images of the same classes; moments are those in the run folder.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from d3hr_ray.evaluation.sets import DistilledSet
from d3hr_ray.layout import gaussian_file
from d3hr_ray.models.autoencoder import to_images, to_pixels
from d3hr_ray.numerics import adams, ddim, distances
from d3hr_ray.sets import SetSpec, spec_of
from d3hr_ray.stages.fit import read_gaussians, to_tensors
from d3hr_ray.stages.judge import Judge
from d3hr_ray.stages.networks import open_model
from d3hr_ray.store import Store

COLUMNS = (
    "mean_error", "std_error", "frechet", "kernel", "coverage", "confidence", "on_class", "diversity", "round_trip",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What a classifier sees in images: (N, F) features, (N, K) probabilities, (N,) labels."""

    features_NF: torch.Tensor
    probabilities_NK: torch.Tensor
    labels_N: torch.Tensor


def measure(judge: Judge, pixels: np.ndarray, labels: np.ndarray) -> Measured:
    """Pixels (N, H, W, 3) uint8 => what the classifier sees. Features are the inputs of its last linear layer."""
    last = [m for m in judge.net.modules() if isinstance(m, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    try:
        parts = [judge.probabilities(to_images(p)) for p in torch.from_numpy(pixels).split(256)]
    finally:
        hook.remove()
    return Measured(torch.cat(seen), torch.cat(parts), torch.from_numpy(labels))


def feature_scores(real: Measured, made: Measured) -> dict[str, float]:
    """Frechet and kernel distance over all classes; coverage and diversity per class, averaged; confidence."""
    classes = made.labels_N.unique().tolist()
    pairs = [(real.features_NF[real.labels_N == c], made.features_NF[made.labels_N == c]) for c in classes]
    own = made.probabilities_NK.gather(1, made.labels_N[:, None])[:, 0]
    return {
        "frechet": distances.frechet(real.features_NF, made.features_NF),
        "kernel": distances.kernel_distance(real.features_NF, made.features_NF),
        "coverage": float(np.mean([distances.coverage(r, m) for r, m in pairs])),
        "confidence": float(own.mean()),
        "on_class": float((made.probabilities_NK.argmax(1) == made.labels_N).double().mean()),
        "diversity": float(np.mean([distances.diversity(m) for _, m in pairs])),
    }


def moment_scores(run: Store, spec: SetSpec) -> dict[str, float]:
    """Norms of the errors of the subset's mean and std against the class Gaussian, averaged.

    NaN without a Gaussian, and for subsets of clean latents: a Gaussian is of noised ones.
    """
    nothing = {"mean_error": float("nan"), "std_error": float("nan")}
    folder, timestep = f"subsets/{spec.name}", spec.timestep
    if timestep is None or spec.is_clean or not run.exists(gaussian_file(timestep)) or not run.list(folder):
        return nothing
    table = run.read_table(folder, columns=["label", "latent"])
    labels, latents = to_tensors(table, "latent")
    mean_KD, std_KD = read_gaussians(run, timestep)
    errors = defaultdict(list)
    for label in labels.unique().tolist():
        own_ND = latents[labels == label]
        errors["mean_error"].append(float((own_ND.mean(0) - mean_KD[label]).norm()))
        if len(own_ND) > 1:
            errors["std_error"].append(float((own_ND.std(0) - std_KD[label]).norm()))
    return nothing | {key: float(np.mean(values)) for key, values in errors.items()}


def round_trip(spec: SetSpec, pixels: np.ndarray, model_classes: Sequence[int], device: str) -> float:
    """PSNR in dB of the set's own images after VAE, inversion, sampling and decoding, as the set was made."""
    config = spec.config
    schedule, autoencoder, denoiser = open_model(config, device)
    t = schedule.grid[-1] if spec.timestep is None else spec.timestep
    walk = adams if config.inversion.solver == "adams" else ddim
    squares = []
    with torch.inference_mode():
        for at in range(0, len(pixels), 64):
            part = torch.from_numpy(pixels[at : at + 64])
            ids = torch.tensor(list(model_classes[at : at + 64]), device=device)
            latents = autoencoder.encode(to_images(part).to(device), None)
            noised = walk.invert(denoiser.guided(ids, config.inversion.guidance), latents, schedule, (t,))[t]
            back = walk.sample(denoiser.guided(ids, config.synthesis.guidance), noised, schedule, t)
            made = to_pixels(autoencoder.decode(back)).cpu()
            squares.append((made.double() - part.double()).square().flatten(1).mean(1))
    return float(10 * torch.log10(255**2 / torch.cat(squares).mean()))


def score_set(
    found: DistilledSet, run: Store, manifest: dict[str, Any], judge: Judge, real: Measured, device: str
) -> dict[str, float]:
    """All scores of one of our sets."""
    images = found.images.load()
    made = measure(judge, images.pixels, images.labels)
    table = run.read_table("classes.parquet").sort_by("label")
    ids = [table["model_class"][int(label)].as_py() for label in images.labels]
    spec = spec_of(manifest["config"])
    return {
        **moment_scores(run, spec),
        **feature_scores(real, made),
        "round_trip": round_trip(spec, images.pixels, ids, device),
    }


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho over a number of sets, and its two-sided p-value."""

    sets: int
    rho: float
    p: float


def rank_correlations(rows: Sequence[dict[str, Any]], accuracy: dict[str, float]) -> dict[str, Correlation]:
    """Spearman's correlation of each score with accuracy, over the sets that have both.

    Scores that fewer than 3 sets have, or that do not vary, have none.
    """
    found = {}
    for key in COLUMNS:
        pairs = [(row[key], accuracy[row["set_hash"]]) for row in rows if row["set_hash"] in accuracy]
        pairs = [(score, top1) for score, top1 in pairs if np.isfinite(score)]
        if len(pairs) >= 3 and len({score for score, _ in pairs}) > 1 and len({top1 for _, top1 in pairs}) > 1:
            result = stats.spearmanr(*zip(*pairs, strict=True))
            found[key] = Correlation(len(pairs), float(result.statistic), float(result.pvalue))
    return found
