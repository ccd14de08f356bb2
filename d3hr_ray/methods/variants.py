"""The sets that a config asks for, and names that tell them apart."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from d3hr_ray.config import RunConfig
from d3hr_ray.sets import Variant, made_with


def variants(config: RunConfig) -> list[Variant]:
    """One set per timestep and IPC; methods without a Gaussian have no timestep."""
    searches = config.method in ("d3hr", "d3hr+cao2")
    clean = config.method == "cao2" or (config.method == "d3hr+cao2" and not config.cao2.rematch)
    chosen = cao2_words(config) if config.has_pool else ()
    return [
        Variant(
            config.method,
            config.search.method if searches else None,
            t,
            n,
            config.seed,
            (*mixture_words(config, n), *chosen),
            kind_words=(*mixture_words(config, None), *chosen),
            clean=clean,
        )
        for t in (config.inversion.timesteps if config.fits else (None,))
        for n in config.search.ipc
    ]


def pool_variant(config: RunConfig, variant: Variant) -> Variant:
    """The pool that a variant is chosen from. Variants that differ in what is done with it share it."""
    size = config.cao2.pool
    sampler = (config.cao2.sampler,) if config.method == "cao2" else ()
    words = (*mixture_words(config, variant.ipc), *sampler, f"m{size}")
    return replace(variant, method="pool", ipc=size * variant.ipc, words=words, per_image=size, clean=False)


def variant_of(manifest: Mapping[str, Any]) -> Variant:
    """The variant that a manifest is of."""
    (variant,) = variants(made_with(manifest["config"]))
    return variant


def about_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """`Variant.about` of a manifest's set: as it says, or in one of before by its config."""
    return dict(manifest.get("set") or variant_of(manifest).about)


def mixture_words(config: RunConfig, ipc: int | None) -> tuple[str, ...]:
    """What a set's name says of its mixture: k10-c100-r4 for 10 components, clustered at t = 100, of rank 4.

    `ipc` None is for all of them: a component per image is kipc, and as one image has no clusters, none is said.
    """
    search, cluster = config.search, config.inversion.cluster_timestep
    if not config.has_mixture:
        return ()
    components = search.components if ipc is None or search.components != "ipc" else ipc
    where = () if cluster is None or components in (1, "ipc") else (f"c{cluster}",)
    single = ("medoid",) if search.single == "medoid" else ()
    return (f"k{components}", *where, *single, *((f"r{search.rank}",) if search.rank else ()))


def cao2_words(config: RunConfig) -> tuple[str, ...]:
    """What a set's name says of CaO2's stages: m4-easy-rematch-null100 for a pool of 4 x IPC, the most confident ones,
    re-matched, and 100 iterations with the null class. A stage that is off says nothing.
    """
    cao2 = config.cao2
    rematch = config.method == "d3hr+cao2" and cao2.rematch
    words = (
        cao2.sampler if config.method == "cao2" and cao2.sampler != "ddpm" else None,
        f"m{cao2.pool}",
        cao2.select if cao2.select != "none" else None,
        "rematch" if rematch else None,
        f"{cao2.condition}{cao2.iterations}" if cao2.iterations else None,
    )
    return tuple(word for word in words if word)
