"""Which features of real images sets are guided by."""

from collections.abc import Sequence

from d3hr_ray.config import RunConfig
from d3hr_ray.methods.inputs import read_grid
from d3hr_ray.models.card import ModelCard
from d3hr_ray.stages.block_features import guided_at
from d3hr_ray.stages.feature_kinds import BlockKind, block_kind


def seen_blocks(configs: Sequence[RunConfig], card: ModelCard) -> dict[BlockKind, list[int]]:
    """Which features guide the sets of some configs, and at which timesteps. Raises ValueError for a wrong block."""
    wanted: dict[BlockKind, set[int]] = {}
    for config in configs:
        if config.guides_features:
            wanted.setdefault(block_kind(config.guide, card.blocks), set()).update(guided_at(config, read_grid(config)))
    return {kind: sorted(timesteps) for kind, timesteps in wanted.items()}
