"""Which mean features of real images a run keeps, and in which files: --status asks, without torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from d3hr_ray.config import GuideConfig, RefineConfig
from d3hr_ray.layout import FEATURES
from d3hr_ray.store import Store


@dataclass(frozen=True)
class FeatureKind:
    """Which features of a run's images: under how many networks, of what width, of how many images per class."""

    networks: int
    width: int
    images: int

    @property
    def folder(self) -> str:
        """Its folder within the run's."""
        return f"{FEATURES}/n{self.networks}-w{self.width}-i{self.images or 'all'}"

    @property
    def parts(self) -> str:
        """Folder of the sums of shards, until they are added."""
        return f"{self.folder}/parts"

    def means(self, network: int) -> str:
        """File of a network's means."""
        return f"{self.folder}/network-{network:06d}.parquet"

    def missing(self, store: Store) -> list[int]:
        """The networks whose means are not there."""
        return _missing(store, self, range(self.networks))


def feature_kind(refine: RefineConfig) -> FeatureKind:
    """The features that a config's refinement needs."""
    return FeatureKind(refine.networks, refine.width, refine.images)


@dataclass(frozen=True)
class BlockKind:
    """Which features of a run's images: of which block of the DiT, of how many images per class (0: of all)."""

    block: int
    images: int

    @property
    def folder(self) -> str:
        """Its folder within the run's."""
        return f"{FEATURES}/dit-b{self.block}-i{self.images or 'all'}"

    def means(self, t: int) -> str:
        """File of the means at a timestep."""
        return f"{self.folder}/t{t:04d}.parquet"

    def parts(self, t: int | None = None) -> str:
        """Folder of the sums of shards at a timestep, or of all, until they are added."""
        return f"{self.folder}/parts" + ("" if t is None else f"/t{t:04d}")

    def missing(self, store: Store, timesteps: Sequence[int]) -> list[int]:
        """The timesteps whose means are not there."""
        return _missing(store, self, timesteps)


def block_kind(guide: GuideConfig, blocks: int) -> BlockKind:
    """The features that a guide needs of a DiT of so many blocks. Raises ValueError if it has no such block."""
    return BlockKind(guide.block_of(blocks), guide.images)


def _missing(store: Store, kind: FeatureKind | BlockKind, keys: Sequence[int]) -> list[int]:
    """Those of some networks, or timesteps, whose means are not there; one listing."""
    there = {f"{kind.folder}/{name}" for name in store.list(kind.folder)}
    return [key for key in keys if kind.means(key) not in there]
