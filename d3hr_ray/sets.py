"""Distilled sets: what made each, and its name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from d3hr_ray.config import InversionConfig, RunConfig, from_dict

IMAGES_PER_BLOCK = 256  # of one subsets/ file: a few batches of synthesis, 4 MB at D = 4096


@dataclass(frozen=True)
class Variant:
    """One distilled set: what made it and how many images per class it has."""

    method: str
    search: str | None
    timestep: int | None
    ipc: int
    seed: int
    words: tuple[str, ...] = ()  # what else tells it apart, such as k5 for five components
    kind_words: tuple[str, ...] = ()  # the same, but alike at every IPC: kipc for a component per image
    per_image: int = 1  # candidates per image of the final set, in a pool
    clean: bool = False  # its subsets/ hold latents that are sampled already

    @property
    def name(self) -> str:
        """Folder name, such as d3hr-moments-t600-ipc10-seed0."""
        return f"{self.unseeded}-seed{self.seed}"

    @property
    def unseeded(self) -> str:
        """What sets of all seeds share: d3hr-moments-t600-ipc10."""
        words = [self.method, self.search, *self.words, None if self.timestep is None else f"t{self.timestep}"]
        return "-".join([*filter(None, words), f"ipc{self.ipc}"])

    @property
    def about(self) -> dict[str, str | int | None]:
        """What its names are made of, for its manifest: nobody has to read a name."""
        kind = "-".join(filter(None, [self.method, self.search, *self.kind_words]))
        own = {"method": self.method, "search": self.search, "timestep": self.timestep, "ipc": self.ipc}
        return {"name": self.unseeded, "kind": kind, **own, "seed": self.seed}

    def blocks(self, classes: int) -> list[range]:
        """Labels 0..K-1 in runs that make about IMAGES_PER_BLOCK images: the unit of search and synthesis."""
        size = max(1, IMAGES_PER_BLOCK // self.ipc)
        return [range(at, min(at + size, classes)) for at in range(0, classes, size)]


def made_with(plain: Mapping[str, Any]) -> RunConfig:
    """The config in a recipe or manifest. What its variant did not look at, or it lacks, has its default."""
    inversion = dict(plain["inversion"])
    inversion["timesteps"] = inversion.get("timesteps") or list(InversionConfig().timesteps)
    return from_dict({**plain, "inversion": inversion, "cao2": plain.get("cao2") or {}})
