"""The guide of a block's images, of the run's mixtures, moments or mean features: no real image is looked at.

Moments near the images are Gaussians at the cluster timestep. Only guided sets look at them, so that they are fitted to
its stored latents when such a set is made.
"""

from collections.abc import Sequence
from math import sqrt

import torch

from d3hr_ray.layout import finished, gaussian_file
from d3hr_ray.numerics.groups import spread_scale
from d3hr_ray.numerics.guide_modes import towards
from d3hr_ray.numerics.guide_set import clean_std, to_moments
from d3hr_ray.numerics.guide_transport import to_support
from d3hr_ray.numerics.guides import Guide
from d3hr_ray.numerics.mixture import Mixture, share_out
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.block_features import guided_at
from d3hr_ray.stages.class_means import read_class_means
from d3hr_ray.stages.feature_kinds import block_kind
from d3hr_ray.stages.fit import read_gaussians, run_fit
from d3hr_ray.stages.mixture import mixture_kind, read_mixtures, stored_timesteps
from d3hr_ray.stages.sampling import Sampler
from d3hr_ray.store import Store


def block_guide(
    store: Store, spec: SetSpec, labels: Sequence[int], sampler: Sampler, source: Store | None = None
) -> Guide:
    """The guide of images whose labels (N,) are those of a block, in the order of its subsets/ file.

    Features are those of the run in `source`, if that is not `store`.
    """
    if spec.config.guides_features:
        return _features_guide(source or store, spec, labels, sampler)
    timestep, near = spec.timestep, spec.config.inversion.cluster_timestep
    assert timestep is not None and near is not None, "checked when the config was made"
    block, alpha = range(min(labels), max(labels) + 1), sampler.schedule.alpha(near)
    places = torch.tensor(labels) - block.start
    if spec.config.guides_sets:
        return _moments_guide(store, spec, near, alpha, block, places)
    mixtures = read_mixtures(store, mixture_kind(spec.config, timestep, spec.ipc), block)
    scale = 1 / sqrt(alpha)  # of noised latents near the images to clean ones
    strength = spec.config.guide.strength
    if spec.config.guide.kind == "modes":
        modes = torch.cat([_own_centres(mixtures[label], spec.ipc) for label in block]) * scale
        return towards(modes.reshape(-1, *sampler.denoiser.latent_shape), strength)
    points = [_centres(mixtures[label]) * scale for label in block]
    return to_support(points, [mixtures[label].count_C for label in block], places, strength)


def _moments_guide(store: Store, spec: SetSpec, near: int, alpha: float, block: range, places: torch.Tensor) -> Guide:
    """To the mean and std of clean latents, that --spread has a set match, as those at `near` tell them."""
    mean_KD, std_KD = (moment[block.start : block.stop] for moment in read_gaussians(store, near))
    wider = spread_scale(spec.ipc, spec.config.search.spread) if spec.ipc > 1 else 1.0
    guide = spec.config.guide
    return to_moments(mean_KD / sqrt(alpha), wider * clean_std(std_KD, alpha), places, guide.strength, guide.repulsion)


def _features_guide(source: Store, spec: SetSpec, labels: Sequence[int], sampler: Sampler) -> Guide:
    kind = block_kind(spec.config.guide, len(sampler.denoiser.transformer.transformer_blocks))
    block = range(min(labels), max(labels) + 1)
    places, timesteps = torch.tensor(labels) - block.start, guided_at(spec.config, sampler.schedule.grid)
    means = {t: read_class_means(source, kind.means(t), block)[places] for t in timesteps}
    return sampler.drawn_to(labels, kind.block, means, spec.config.guide.strength)


def _centres(mixture: Mixture) -> torch.Tensor:
    assert mixture.centre_CD is not None, "the kind of mixture that guides read"
    return mixture.centre_CD


def _own_centres(mixture: Mixture, ipc: int) -> torch.Tensor:
    """Of each of a class's images the centre of its component, (ipc, D), as match_mixture shares them out."""
    shares = torch.tensor(share_out(mixture.count_C, ipc))
    return _centres(mixture).repeat_interleave(shares, 0)


def require_moments(latents: Store, t: int) -> None:
    """Raise ValueError unless a run folder has the moments of its classes at t, or latents to take them of."""
    if not latents.exists(gaussian_file(t)) and t not in (there := stored_timesteps(latents)):
        raise ValueError(
            f"--guide set takes the moments of classes at --cluster-timestep {t}, and {latents.uri} has no latents "
            f"there (stored: {', '.join(map(str, there)) or 'none'}); run it with --cluster-timestep {t}"
        )


def run_moments(latents: Store, store: Store, t: int, classes: list[str]) -> None:
    """Give a folder the moments of every class at t, if it has none: those of the run in `latents`, or of its latents.

    That may be another folder. Raises ValueError if it has neither.
    """
    file = gaussian_file(t)
    if store.exists(file):
        return
    require_moments(latents, t)
    if latents.exists(file):
        store.write_bytes(file, latents.read_bytes(file))
        return
    accepted = sum(counts["accepted"] for counts in finished(latents).values())
    run_fit(store, (t,), classes, accepted, latents)
