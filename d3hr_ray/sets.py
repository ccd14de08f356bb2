"""Distilled sets: what each is made of, and the one place that makes its name; no code reads a name."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from d3hr_ray.config import SEARCHING, InversionConfig, RunConfig, as_dict, fingerprint, from_dict

IMAGES_PER_BLOCK = 256  # of one subsets/ file: a few batches of synthesis, 4 MB at D = 4096
REFINED_PER_BLOCK = 64  # where an image takes thousands of steps: more actors, and a bar that moves


@dataclass(frozen=True)
class SetSpec:
    """One distilled set: a run's config with one timestep (any, if the method has no Gaussian), one IPC and one seed.

    With `is_pool` it is the pool of candidates, several per image, that the set is chosen from.
    """

    config: RunConfig
    is_pool: bool = False

    def __post_init__(self) -> None:
        axes = self.config.inversion.timesteps, self.config.search.ipc
        assert all(len(axis) == 1 for axis in axes), "a set has one timestep and one IPC"

    @property
    def timestep(self) -> int | None:
        """Of the Gaussians it is matched to; None for noise."""
        return self.config.inversion.timesteps[0] if self.config.fits else None

    @property
    def seed(self) -> int:
        """Of every draw that is not the inversion's."""
        return self.config.seed

    @property
    def images_per_class(self) -> int:
        """Of the set itself, or of the set that is chosen from this pool."""
        return self.config.search.ipc[0]

    @property
    def ipc(self) -> int:
        """Latents per class: images, or all candidates of a pool."""
        return self.images_per_class * (self.config.cao2.pool if self.is_pool else 1)

    @property
    def search(self) -> str | None:
        """How its subsets are found, by methods that search."""
        return self.config.search.method if self.config.method in SEARCHING else None

    @property
    def has_weights(self) -> bool:
        """Whether its images stand for several components of a class, each with a share of it."""
        components = self.config.search.components
        several = self.images_per_class > 1 if components == "ipc" else components != 1
        return several and self.timestep is not None and self.config.has_mixture

    @property
    def is_clean(self) -> bool:
        """Whether its subsets/ hold latents that are sampled already: chosen candidates that were not re-matched."""
        return self.config.has_pool and not self.is_pool and not self._is_rematched

    @property
    def pool(self) -> "SetSpec":
        """The pool that it is chosen from. Sets that differ in what is done with it share it."""
        return replace(self, is_pool=True)

    @property
    def name(self) -> str:
        """Folder name, such as d3hr-moments-t600-ipc10-seed0."""
        return f"{self.unseeded}-seed{self.seed}"

    @property
    def unseeded(self) -> str:
        """What sets of all seeds share: d3hr-moments-t600-ipc10."""
        method = "pool" if self.is_pool else self.config.method
        words = [method, self.search, *self._mixture_words(self.images_per_class), *self._cao2_words]
        words += [*self._guide_words, *self._refine_words]
        words += [] if self.timestep is None else [f"t{self.timestep}"]
        return "-".join([*filter(None, words), f"ipc{self.ipc}"])

    @property
    def about(self) -> dict[str, str | int | None]:
        """The parts of its names, for its manifest."""
        words = [*self._mixture_words(None), *self._guide_words, *self._cao2_words, *self._refine_words]
        kind = "-".join(filter(None, [self.config.method, self.search, *words]))
        own = {"method": self.config.method, "search": self.search, "timestep": self.timestep, "ipc": self.ipc}
        return {"name": self.unseeded, "kind": kind, **own, "seed": self.seed}

    @property
    def settings(self) -> str:
        """A folder name for what its own name does not tell: candidates, guidance, solver and the like."""
        plain = without_axes(as_dict(self.config))
        if not self.config.has_pool:  # how a pool is sampled, and what is done with it, goes by the method
            plain.pop("method")
        guidance, candidates = self.config.synthesis.guidance, self.config.search.candidates
        return f"w{guidance:g}-c{candidates}-{fingerprint(plain)[:6]}"

    def blocks(self, classes: int) -> list[range]:
        """Labels 0..K-1 in runs that make about IMAGES_PER_BLOCK images: the unit of search and synthesis."""
        images = REFINED_PER_BLOCK if self.config.refines and not self.is_pool else IMAGES_PER_BLOCK
        return list(whole_classes(range(classes), self.ipc, images))

    def recipe(self, inputs: Mapping[str, Any], judges: Mapping[str, str] | None = None) -> dict[str, Any]:
        """All that decides its bytes: the config but for what its method does not look at, and the run's inputs.

        For a pool only what decides what it holds, and the networks that judge it: `classifier` and `learner`.
        """
        plain = as_dict(self.config)
        plain["data"].pop("max_rejected")
        plain["inversion"]["timesteps"] = [] if self.timestep is None else [self.timestep]
        plain["search"]["ipc"] = [self.ipc]
        if not self.config.has_pool:
            plain["cao2"] = None
        if not (self.config.search.is_mixture or self.config.guides_sets):
            plain["inversion"]["cluster_timestep"] = None
        if not self.config.mended:
            plain.pop("mended")
        if self.is_pool:
            plain.pop("refine", None)
            plain |= {"cao2": {key: plain["cao2"][key] for key in ("pool", "sampler")}, "method": "pool"}
        return {"variant": self.name, "config": plain, "inputs": inputs, **(judges or {})}

    @property
    def _is_rematched(self) -> bool:
        return self.config.method == "d3hr+cao2" and self.config.cao2.rematch

    def _mixture_words(self, ipc: int | None) -> tuple[str, ...]:
        """What a name says of a mixture: k10-c100-r4 for 10 components, clustered at t = 100, of rank 4.

        `ipc` None is for all of them: a component per image is kipc, and as one image has no clusters, none is said.
        """
        search, cluster = self.config.search, self.config.inversion.cluster_timestep
        if not self.config.has_mixture:
            return ()
        components = search.components if ipc is None or search.components != "ipc" else ipc
        words = (
            f"k{components}",
            None if cluster is None or components in (1, "ipc") else f"c{cluster}",
            f"p{search.cluster_pool}" if search.cluster_pool > 1 and components != 1 else None,
            "medoid" if search.single == "medoid" else None,
            f"r{search.rank}" if search.rank else None,
        )
        return tuple(word for word in words if word)

    @property
    def _cao2_words(self) -> tuple[str, ...]:
        """What a name says of CaO2's stages: m4-easy-rematch-null100 for a pool of 4 x IPC, the most confident ones,
        re-matched, and 100 iterations with the null class. A stage that is off says nothing.
        """
        cao2, ancestral = self.config.cao2, self.config.method == "cao2"
        if not self.config.has_pool:
            return ()
        if self.is_pool:
            return (*((cao2.sampler,) if ancestral else ()), f"m{cao2.pool}")
        words = (
            cao2.sampler if ancestral and cao2.sampler != "ddpm" else None,
            f"m{cao2.pool}",
            cao2.select if cao2.select != "none" else None,
            "rematch" if self._is_rematched else None,
            f"{cao2.condition}{cao2.iterations}" if cao2.iterations else None,
        )
        return tuple(word for word in words if word)

    @property
    def _guide_words(self) -> tuple[str, ...]:
        """What a name says of a guide: modes0.1; set0.1c100r0.01 for moments at t = 100 and a repulsion of 0.01;
        features0.1b2 for those of block 2.
        """
        guide = self.config.guide
        if not self.config.guides:
            return ()
        moments = f"c{self.config.inversion.cluster_timestep}" if self.config.guides_sets else ""
        repulsion = f"r{guide.repulsion:g}" if guide.repulsion else ""
        block = "" if guide.block is None or not self.config.guides_features else f"b{guide.block}"
        return (f"{guide.kind}{guide.strength:g}{moments}{repulsion}{block}",)

    @property
    def _refine_words(self) -> tuple[str, ...]:
        """What a name says of refinement: match100x10 for 10 steps under each of 100 networks."""
        refine = self.config.refine
        return (f"match{refine.networks}x{refine.steps}",) if self.config.refines and not self.is_pool else ()


def whole_classes(labels: range, ipc: int, batch: int) -> Iterator[range]:
    """Labels in runs of as many whole classes as a batch of images has room for, or of one."""
    size = max(1, batch // ipc)
    return (range(at, min(at + size, labels.stop)) for at in range(labels.start, labels.stop, size))


def sets_of(config: RunConfig) -> list[SetSpec]:
    """One set per timestep and IPC; methods without a Gaussian have no timestep."""
    timesteps = config.inversion.timesteps if config.fits else InversionConfig().timesteps[:1]
    return [SetSpec(_narrowed(config, t, n)) for t in timesteps for n in config.search.ipc]


def spec_of(plain: Mapping[str, Any]) -> SetSpec:
    """The set of a config in a recipe or manifest. What the set did not look at, or it lacks, has its default."""
    inversion = dict(plain["inversion"])
    inversion["timesteps"] = inversion.get("timesteps") or list(InversionConfig().timesteps)
    (spec,) = sets_of(from_dict({**plain, "inversion": inversion, "cao2": plain.get("cao2") or {}}))
    return spec


def about_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """`SetSpec.about` of a manifest's set: as it says, or where an older version wrote it, by its config."""
    return dict(manifest.get("set") or spec_of(manifest["config"]).about)


def without_axes(plain: dict[str, Any]) -> dict[str, Any]:
    """A plain config without what the sets of one setting differ in: seed, timesteps and IPC."""
    made = copy.deepcopy(plain)
    made["search"].pop("ipc")
    made["inversion"].pop("timesteps")
    made.pop("seed")
    return made


def with_axes(plain: Mapping[str, Any], timestep: int | None, ipc: int, seed: int) -> dict[str, Any]:
    """The inverse of without_axes, for one set."""
    made = copy.deepcopy(dict(plain))
    made["search"]["ipc"] = [ipc]
    made["inversion"]["timesteps"] = [] if timestep is None else [timestep]
    return made | {"seed": seed}


def _narrowed(config: RunConfig, timestep: int, ipc: int) -> RunConfig:
    inversion, search = replace(config.inversion, timesteps=(timestep,)), replace(config.search, ipc=(ipc,))
    return replace(config, inversion=inversion, search=search)
