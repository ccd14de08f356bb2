"""What a config leaves open until the model and the machine are known: which t, which dtype, which batch."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from d3hr_ray.config import Dtype, RunConfig
from d3hr_ray.datasets.named import set_of
from d3hr_ray.filesystems import is_same_place

if TYPE_CHECKING:  # Ray takes seconds to import: --help and a wrong flag should not wait for it
    from d3hr_ray.runtime.actors import Actors


def on_grid(config: RunConfig, grid: tuple[int, ...]) -> RunConfig:
    """A default t that a model's grid does not have => its nearest point that leaves something to invert."""
    (t,) = config.inversion.timesteps
    near = min(grid[1:], key=lambda point: abs(point - t))
    return replace(config, inversion=replace(config.inversion, timesteps=(near,)))


def needs_float32(config: RunConfig) -> bool:
    """CaO2's second stage descends on prediction errors, and its authors computed all in float32."""
    return config.has_pool and (config.fidelity == "official" or config.cao2.iterations > 0)


def require_float32(config: RunConfig) -> RunConfig:
    """A config made of one that was settled for another method, in float32 if it must be."""
    return replace(config, model=replace(config.model, dtype="float32")) if needs_float32(config) else config


def resolve_auto(config: RunConfig, stored: dict[str, Any] | None, actors: "Actors | None") -> RunConfig:
    """Replace every `auto` by the choice that the run folder already made, else by what the device suits: a CPU, if no
    actors are known yet.

    The same data and model keep the spelling of their paths that the run folder knows them by.
    """
    gpu = actors is not None and actors.device == "cuda"
    dtype, size = config.model.dtype, config.inversion.batch_size
    if dtype == "auto":
        official = config.fidelity == "official"
        half: Dtype = "float16" if official else "bfloat16"
        exact = needs_float32(config)
        dtype = stored["model"]["dtype"] if stored else (half if gpu and not exact else "float32")
    if size == "auto":
        size = stored["inversion"]["batch_size"] if stored else (128 if gpu else 64)
    uri, name = config.data.uri, config.model.name
    if stored and is_same_place(stored["data"]["uri"], uri):
        uri = stored["data"]["uri"]
    if stored and set_of(name) is None and is_same_place(stored["model"]["name"], name):
        name = stored["model"]["name"]
    return replace(
        config,
        data=replace(config.data, uri=uri),
        model=replace(config.model, name=name, dtype=dtype),
        inversion=replace(config.inversion, batch_size=size),
    )
