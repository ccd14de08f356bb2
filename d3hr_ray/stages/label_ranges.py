"""Which files of latents/ can hold a class: their footers tell, and are read once for all that look for classes."""

from collections.abc import Mapping

from d3hr_ray.layout import LATENTS
from d3hr_ray.runtime.tasks import bounded
from d3hr_ray.store import Store

FOOTERS = 512  # that a task reads


def label_ranges(latents: Store) -> dict[str, tuple[int, int]]:
    """The least and the largest label in each file of latents/, in the order of their names."""
    files = latents.list(LATENTS)
    jobs = [(at, (latents, files[at : at + FOOTERS])) for at in range(0, len(files), FOOTERS)]
    found = dict(bounded(_ranges, jobs))
    return dict(zip(files, (labels for at, _ in jobs for labels in found[at]), strict=True))


def _ranges(latents: Store, files: list[str]) -> list[tuple[int, int]]:
    return latents.side_by_side(lambda file: latents.least_and_most(f"{LATENTS}/{file}", "label"), files)


def holding(ranges: Mapping[str, tuple[int, int]], labels: range) -> list[str]:
    """The files that may hold one of some labels."""
    return [file for file, (least, most) in ranges.items() if least < labels.stop and most >= labels.start]
