"""The flags of jobs/sweep.py => configs: every list is an axis, and the sweep is their product."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from d3hr_ray.cli.overlay import CANDIDATES
from d3hr_ray.cli.resolve import require_float32
from d3hr_ray.cli.sweep_flags import SweepFlags
from d3hr_ray.cli.variants import PLAIN, vary
from d3hr_ray.config import SEARCHING, RunConfig, SearchConfig

CANDIDATES_OF_A_SWEEP = CANDIDATES | {"random": 1000}  # a million take half an hour for each set of IPC 10


def expand(flags: SweepFlags, base: RunConfig) -> dict[float, list[RunConfig]]:
    """The config of every set, all timesteps and IPCs at once, by the guidance of its inversion: the run's own first.

    Raises ValueError for settings that do not go together.
    """
    own = base.inversion.guidance
    guidances = sorted(flags.inversion_guidance or (own,), key=lambda guidance: guidance != own)
    return {guidance: list(_configs(flags, base, guidance)) for guidance in guidances}


def timesteps(flags: SweepFlags, base: RunConfig) -> tuple[int, ...]:
    """Those that are asked for, or the run's."""
    return flags.timesteps or base.inversion.timesteps


def _configs(flags: SweepFlags, base: RunConfig, inversion_guidance: float) -> Iterator[RunConfig]:
    inversion = replace(base.inversion, guidance=inversion_guidance, timesteps=timesteps(flags, base))
    base = replace(base, inversion=inversion, search=replace(base.search, ipc=flags.ipc))
    texts = flags.variants or (PLAIN,)
    for text in [f"{text} method={method}" for text, method in product(texts, flags.method)] or texts:
        varied = require_float32(vary(base, text))
        guidances = (inversion_guidance,) if flags.matched else flags.guidance or (varied.synthesis.guidance,)
        searches = _searches(flags, varied.search) if varied.method in SEARCHING else [varied.search]
        for guidance, seed, search in product(guidances, flags.seeds, searches):
            synthesis = replace(varied.synthesis, guidance=guidance)
            yield replace(varied, seed=seed, search=search, synthesis=synthesis)


def _searches(flags: SweepFlags, base: SearchConfig) -> list[SearchConfig]:
    """Search methods x candidates x components x ranks."""
    found = []
    for method in flags.search or (base.method,):
        own = base.candidates if method == base.method else CANDIDATES_OF_A_SWEEP[method]
        axes = (flags.candidates or (own,), flags.components or (base.components,), flags.rank or (base.rank,))
        for count, components, rank in product(*axes):
            found.append(replace(base, method=method, candidates=count, components=components, rank=rank))
    return found
