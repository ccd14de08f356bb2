"""The solvers of one contract, by their names: `invert` walks up the grid, `sample` down."""

from collections.abc import Callable, Iterable, Mapping

import torch

from d3hr_ray.numerics import adams, ddim
from d3hr_ray.numerics.ddim import Denoise
from d3hr_ray.numerics.schedule import Schedule

Invert = Callable[[Denoise, torch.Tensor, Schedule, Iterable[int]], dict[int, torch.Tensor]]
Sample = Callable[[Denoise, torch.Tensor, Schedule, int], torch.Tensor]

INVERT: Mapping[str, Invert] = {"ddim": ddim.invert, "adams": adams.invert}
SAMPLE: Mapping[str, Sample] = {"ddim": ddim.sample, "adams": adams.sample}
