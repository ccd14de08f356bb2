"""The guide of a block's images, made of the run's stored mixtures: no real image is looked at."""

from collections.abc import Sequence
from math import sqrt

import torch

from d3hr_ray.numerics.guide_modes import towards
from d3hr_ray.numerics.guide_transport import to_support
from d3hr_ray.numerics.guides import Guide
from d3hr_ray.numerics.mixture import Mixture, share_out
from d3hr_ray.sets import SetSpec
from d3hr_ray.stages.mixture import mixture_kind, read_mixtures
from d3hr_ray.stages.sampling import Sampler
from d3hr_ray.store import Store


def block_guide(store: Store, spec: SetSpec, labels: Sequence[int], sampler: Sampler) -> Guide:
    """The guide of images whose labels (N,) are those of a block, in the order of its subsets/ file."""
    timestep, near = spec.timestep, spec.config.inversion.cluster_timestep
    assert timestep is not None and near is not None, "checked when the config was made"
    first, last = min(labels), max(labels) + 1
    mixtures = read_mixtures(store, mixture_kind(spec.config, timestep, spec.ipc), range(first, last))
    scale = 1 / sqrt(sampler.schedule.alpha(near))  # of noised latents near the images to clean ones
    strength = spec.config.guide.strength
    if spec.config.guide.kind == "modes":
        modes = torch.cat([_own_centres(mixtures[label], spec.ipc) for label in range(first, last)]) * scale
        return towards(modes.reshape(-1, *sampler.denoiser.latent_shape), strength)
    points = [_centres(mixtures[label]) * scale for label in range(first, last)]
    masses = [mixtures[label].count_C for label in range(first, last)]
    return to_support(points, masses, torch.tensor(labels) - first, strength)


def _centres(mixture: Mixture) -> torch.Tensor:
    assert mixture.centre_CD is not None, "the kind of mixture that guides read"
    return mixture.centre_CD


def _own_centres(mixture: Mixture, ipc: int) -> torch.Tensor:
    """Of each of a class's images the centre of its component, (ipc, D), as match_mixture shares them out."""
    shares = torch.tensor(share_out(mixture.count_C, ipc))
    return _centres(mixture).repeat_interleave(shares, 0)
