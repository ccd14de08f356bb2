"""One stream of blocks for sets of several settings: each block with its own settings and folder, networks once."""

from dataclasses import replace

import pyarrow as pa
import pytest

from d3hr_ray.config import DataConfig, ModelConfig, RunConfig
from d3hr_ray.methods import d3hr
from d3hr_ray.methods.d3hr import Run
from d3hr_ray.models.card import read_card
from d3hr_ray.runtime.actors import Actors
from d3hr_ray.sets import SetSpec, sets_of
from d3hr_ray.stages import blocks
from d3hr_ray.stages.blocks import BlockActor, BlockJob, Blocks
from d3hr_ray.stages.networks import OpenNetworks
from d3hr_ray.store import Store

CONFIG = RunConfig(DataConfig("digits"), ModelConfig("digits", "float32"))
CLASSES = pa.table({"name": list("0123456789")})


class Noting(BlockActor):
    """Opens networks, and writes which settings it made a block with."""

    def __init__(self, job: BlockJob, networks: OpenNetworks) -> None:
        self.job = job
        networks(job.config.model.name, job.config.model.dtype, job.config.fidelity != "official", job.device)

    def write(self, spec: SetSpec, block: int) -> int:
        self.job.store.write_json(f"{spec.name}-{block}", self.job.config.synthesis.guidance)
        return spec.ipc


def job(store: Store, guidance: float, **other) -> BlockJob:
    config = replace(CONFIG, synthesis=replace(CONFIG.synthesis, guidance=guidance), **other)
    return BlockJob(store, config, tuple(sets_of(config)), CLASSES, "cpu")


def test_jobs_of_one_actor_keep_their_settings_and_share_networks(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(blocks, "open_networks", lambda *what: opened.append(what))
    stores = [Store(str(tmp_path / name)) for name in "abc"]
    half = replace(CONFIG.model, dtype="bfloat16")
    actor = Blocks(Noting, [job(stores[0], 1.0), job(stores[1], 4.0), job(stores[2], 1.0, model=half)])
    assert len(opened) == 1, "the first job's are opened while the actor starts"
    for number in (1, 0, 1, 2):
        result = actor(pa.table({"job": [number], "set": [0], "block": [0]}))
        assert result.to_pylist() == [{"count": 10, "rejected": 0, "error": None}]
    name = f"{actor.jobs[0].specs[0].name}-0"
    assert [store.read_json(name) for store in stores] == [1.0, 4.0, 1.0]
    assert [what[1] for what in opened] == ["float32", "bfloat16"]


@pytest.mark.parametrize(("other", "streams"), [({}, [2]), ({"model": ModelConfig("digits", "bfloat16")}, [1, 1])])
def test_sets_whose_networks_round_differently_are_apart(tmp_path, monkeypatch, other, streams):
    made = []
    monkeypatch.setattr(d3hr, "find_latents", lambda run, specs: None)
    monkeypatch.setattr(d3hr, "publish", lambda run, specs: None)
    monkeypatch.setattr(d3hr, "run_synthesize", lambda jobs, actors: made.append(len(jobs)))
    card, parts = read_card("digits"), []
    for name, config in (("a", CONFIG), ("b", replace(CONFIG, seed=1, **other))):
        store = Store(str(tmp_path / name))
        parts.append((Run(store, config, card, CLASSES, {}, Actors((1, 1), 0), store, store), sets_of(config)))
    d3hr.make_together(parts)
    assert made == streams
