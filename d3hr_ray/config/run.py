"""One distillation run: all settings together, and what they refuse to do together."""

from dataclasses import dataclass, field
from typing import Any, Literal

from d3hr_ray.config.cao2 import CHOOSING, CaO2Config
from d3hr_ray.config.data import DataConfig, ModelConfig
from d3hr_ray.config.fields import METHOD, check, one_of, setting
from d3hr_ray.config.guide import GuideConfig
from d3hr_ray.config.method import FITTING, SEARCHING, InversionConfig, SearchConfig, SynthesisConfig
from d3hr_ray.config.plain import with_tuples
from d3hr_ray.config.refine import RefineConfig

Method = Literal["d3hr", "cao2", "d3hr+cao2", "gaussian", "dit", "random"]
Fidelity = Literal["fixed", "official"]
# What the authors' code does and the papers do not say (docs/design.md): D3HR samples from a grid step above t,
# draws the same candidates for every class, and takes their skewness along the features; CaO2 guides 3 of 4 channels,
# judges images that are not normalised, tells its network other noise levels than there are, takes its noises from a
# bank of 1024, and fills up with the wrong images that the classifier is surest of.
Quirk = Literal["start", "seeds", "skewness", "channels", "normalisation", "levels", "bank", "fill"]
D3HR_QUIRKS: tuple[Quirk, ...] = ("start", "seeds", "skewness")  # the others are CaO2's


class RunError(RuntimeError):
    """A stage failed. The message says which stage, which input, and what to do about it."""


@dataclass(frozen=True)
class RunConfig:
    """One distillation run. Equal configs on equal data give equal bytes on CPU, on any number of actors."""

    data: DataConfig
    model: ModelConfig
    inversion: InversionConfig = field(default_factory=InversionConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    cao2: CaO2Config = field(default_factory=CaO2Config)
    guide: GuideConfig = field(default=GuideConfig(), metadata={"late": True})
    refine: RefineConfig = field(default=RefineConfig(), metadata={"late": True})
    method: Method = setting(
        "d3hr",
        "d3hr; cao2, which needs no dataset, only the model and a classifier; d3hr+cao2, CaO2's stages on a pool drawn "
        "from D3HR's Gaussians; or a baseline: gaussian (one random draw), dit (plain sampling), random (real images).",
        METHOD,
        varies=True,
    )
    fidelity: Fidelity = setting(
        "fixed",
        "official reproduces the authors' code bug for bug, with their settings (they have none for the digits, which "
        "keep their own guidance); fixed is right.",
        METHOD,
        varies=True,
    )
    mended: tuple[Quirk, ...] = setting(
        (),
        "With --fidelity official, do right after all. d3hr: start (sampling starts a step above t), seeds (shared by "
        "all classes), skewness (taken along the features of an image, not along the images). cao2: channels (3 of 4 "
        "are guided), normalisation (of what is judged), levels (of noise, in stage 2), bank (of 1024 noises), fill "
        "(by the surest wrong images).",
        METHOD,
        name="mend",
        metavar="QUIRK ...",
        varies=True,
    )
    seed: int = setting(
        0,
        "Seed of the run; every draw is keyed by it and by what it is for.",
        METHOD,
        shown="0; --from-gaussians: that run's",
    )

    def has_quirk(self, quirk: Quirk) -> bool:
        """Whether to do as the authors' code does: official, but for what --mend names."""
        return self.fidelity == "official" and quirk not in self.mended

    @property
    def draws_all(self) -> bool:
        """Whether a random search draws all candidates, as the authors do: to share them or score them their way."""
        return self.has_quirk("seeds") or self.has_quirk("skewness")

    @property
    def has_pool(self) -> bool:
        """Whether images are chosen from a pool: CaO2, and its composition with D3HR."""
        return self.method in CHOOSING

    @property
    def has_mixture(self) -> bool:
        """Whether classes are searched as more than one diagonal Gaussian; methods that do not search have none."""
        return self.search.is_mixture and self.method in SEARCHING

    @property
    def refines(self) -> bool:
        """Whether latents are moved to the features of real images."""
        return self.refine.objective != "none" and self.fits

    @property
    def guides(self) -> bool:
        """Whether clean latents are moved while they are sampled."""
        return self.guide.kind != "none" and self.method == "d3hr"

    @property
    def guides_to_components(self) -> bool:
        """Whether they are pulled to the means of components."""
        return self.guides and self.guide.seeks_components

    @property
    def guides_sets(self) -> bool:
        """Whether they are moved to the moments of their class."""
        return self.guides and self.guide.kind == "set"

    @property
    def guides_features(self) -> bool:
        """Whether they are moved until the network sees in them what it sees in real images."""
        return self.guides and self.guide.kind == "features"

    @property
    def moments_timestep(self) -> int | None:
        """Where these moments are taken, if they are."""
        return self.inversion.cluster_timestep if self.guides_sets else None

    @property
    def fits(self) -> bool:
        """Whether the method needs Gaussians, and so the dataset."""
        return self.method in FITTING

    @property
    def needs_images(self) -> bool:
        """Whether the method needs a dataset; the others need a model, whose classes are theirs."""
        return self.fits or self.method == "random"

    @property
    def lists_images(self) -> bool:
        """Whether images are listed: where they are needed, and where their classes are those that `dit` samples."""
        return self.needs_images or (self.method == "dit" and bool(self.data.uri))

    def __post_init__(self) -> None:
        one_of("--method", self.method, Method)
        one_of("--fidelity", self.fidelity, Fidelity)
        check(0 <= self.seed < 2**63, f"--seed {self.seed} must be between 0 and 2**63 - 1")
        official = self.fidelity == "official"
        for quirk in self.mended:
            one_of("--mend", quirk, Quirk)
        check(official or not self.mended, "--mend goes with --fidelity official: fixed has none of the quirks")
        check(
            not self.has_pool or self.cao2.levels[1] < self.inversion.steps,
            f"--levels {self.cao2.levels[1]} is not on the grid of {self.inversion.steps} --ddim-steps",
        )
        check(
            not (official and self.method == "d3hr+cao2"),
            "--fidelity official has no --method d3hr+cao2: nobody has published it; use --fidelity fixed",
        )
        check(
            not (official and self.method == "d3hr" and self.search.method == "moments"),
            "--fidelity official has no --search moments: it is ours; use --search random",
        )
        check(not (official and self.guides), "--fidelity official has no --guide; use --fidelity fixed")
        check(
            not (official and self.has_pool and self.cao2.select == "learnable"),
            "--fidelity official has no --select learnable: CaO2's code knows easy and hard; use --fidelity fixed",
        )
        check(
            not self.guides_to_components
            or (self.search.components != 1 and self.inversion.cluster_timestep is not None),
            f"--guide {self.guide.kind} pulls towards the means of components near the images: give --components (ipc, "
            "or a number) and --cluster-timestep (such as 100), which stores latents there",
        )
        check(
            not self.guides_sets or self.inversion.cluster_timestep is not None,
            "--guide set moves images to the mean and std of their class near the images: give --cluster-timestep "
            "(such as 100), which stores latents there",
        )
        check(
            not (official and self.inversion.solver != "ddim"),
            f"--fidelity official walks by DDIM; leave out --solver {self.inversion.solver}",
        )
        check(
            not (official and self.method == "d3hr" and 1 in self.search.ipc),
            "--fidelity official cannot do --ipc 1: the authors' std is NaN there; use --fidelity fixed",
        )


def from_dict(plain: dict[str, Any]) -> RunConfig:
    """The inverse of as_dict. Raises ValueError if a field is unknown or missing."""
    parts = {
        "data": DataConfig,
        "model": ModelConfig,
        "inversion": InversionConfig,
        "search": SearchConfig,
        "synthesis": SynthesisConfig,
        "cao2": CaO2Config,
        "guide": GuideConfig,
        "refine": RefineConfig,
    }
    plain = {"cao2": {}, "guide": {}, "refine": {}} | plain  # runs from before these were there have none
    try:
        made = {name: kind(**with_tuples(plain[name])) for name, kind in parts.items()}
        return RunConfig(**{**with_tuples(plain), **made})
    except (TypeError, KeyError) as error:
        raise ValueError(f"run.json holds a config of another version of d3hr_ray ({error})") from error


def data_config(plain: dict[str, Any]) -> DataConfig:
    """The data part of a plain config, as a run or a model keeps it."""
    return DataConfig(**with_tuples(plain))
