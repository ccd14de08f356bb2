"""Every setting that decides a result, as frozen dataclasses; nothing here says where or how fast a run runs.

docs/design.md has the authors' constants (Fidelity) and the reasons of our defaults (Decisions).
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Method = Literal["d3hr", "cao2", "d3hr+cao2", "gaussian", "dit", "random"]
Fidelity = Literal["fixed", "official"]
Format = Literal["auto", "imagefolder", "webdataset", "parquet", "digits"]
Posterior = Literal["sample", "mode"]
Solver = Literal["ddim", "adams"]
Search = Literal["moments", "random"]
Single = Literal["mean", "medoid"]
Spread = Literal["std", "radius"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Sampler = Literal["ddpm", "ddim"]
Selection = Literal["easy", "hard", "none"]
Condition = Literal["class", "null"]
# What the authors' code does and the papers do not say (docs/design.md): D3HR samples from a grid step above t,
# draws the same candidates for every class, and takes their skewness along the features; CaO2 guides 3 of 4 channels,
# judges images that are not normalised, tells its network other noise levels than there are, takes its noises from a
# bank of 1024, and fills up with the wrong images that the classifier is surest of.
Quirk = Literal["start", "seeds", "skewness", "channels", "normalisation", "levels", "bank", "fill"]
D3HR_QUIRKS: tuple[Quirk, ...] = ("start", "seeds", "skewness")  # the others are CaO2's

# The score's weight of the skewness term, of the D3HR paper and of the authors' code, which has it on another quantity
# (numerics/groups.py); and their search block.
PAPER_SKEW_WEIGHT, OFFICIAL_SKEW_WEIGHT = 0.5, 0.1
OFFICIAL_BLOCK = 10_000


# Metadata of a field that runs of before do not have; its default is what was true of them. Plain configs leave it out
# where it has that default, so that the fingerprints of those runs stay.
LATE = {"late": True}


class RunError(RuntimeError):
    """A stage failed. The message says which stage, which input, and what to do about it."""


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def _one_of(flag: str, value: str, options: Any) -> None:
    _check(value in get_args(options), f"{flag} {value!r} is not one of: {', '.join(get_args(options))}")


@dataclass(frozen=True)
class DataConfig:
    """Which images: `uri` is a folder, file or URI that pyarrow.fs resolves, or an embedded set's name.

    `class_depth` is the level of an image folder's class folders: 1 for FOLDER/<class>/..., 2 for groups of them.
    `classes` chooses some; `class_ids`, written NAME=ID, says what class of the model a class is, and leaves none out.
    `image_column` and `label_column` name columns of Parquet that are not found by their names.
    """

    uri: str
    format: Format = "auto"
    classes: tuple[str, ...] = ()
    limit_per_class: int | None = None
    max_rejected: float = 0.01
    shard_size: int = 512
    class_depth: int | None = field(default=None, metadata=LATE)
    class_ids: tuple[str, ...] = field(default=(), metadata=LATE)
    image_column: str | None = field(default=None, metadata=LATE)
    label_column: str | None = field(default=None, metadata=LATE)

    def __post_init__(self) -> None:
        _one_of("--format", self.format, Format)
        _check(len(set(self.classes)) == len(self.classes), "--classes names a class twice; name each once")
        for entry in self.class_ids:
            name, _, number = entry.rpartition("=")
            _check(bool(name) and number.isdecimal(), f"--class-ids {entry}: write NAME=ID, ID a number")
        named = {entry.rpartition("=")[0] for entry in self.class_ids}
        _check(len(named) == len(self.class_ids), "--class-ids names a class twice; name each once")
        limit = self.limit_per_class
        _check(
            limit is None or limit >= 2,
            f"--limit-per-class {limit} leaves no variance to fit; give 2 or more",
        )
        _check(0 <= self.max_rejected <= 1, f"--max-rejected {self.max_rejected} is a share; give 0 to 1")
        depth = self.class_depth
        _check(depth is None or depth >= 1, f"--class-depth {depth} must be at least 1, the level right below --data")
        _check(self.shard_size >= 1, f"shard size {self.shard_size} must be at least 1")


@dataclass(frozen=True)
class ModelConfig:
    """`name` is an embedded model (digits, digits-affine), a diffusers DiTPipeline folder or a hub id."""

    name: str
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        _one_of("--dtype", self.dtype, Dtype)


@dataclass(frozen=True)
class InversionConfig:
    """How latents reach the noise domain: the grid of `steps`, the stored `timesteps`, the guidance scale.

    Sampling walks the same grid back, by the same solver.
    """

    timesteps: tuple[int, ...] = (600,)
    steps: int = 50
    guidance: float = 1.0
    posterior: Posterior = "sample"
    solver: Solver = "ddim"
    batch_size: int | Literal["auto"] = "auto"
    cluster_timestep: int | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """Ascending timesteps whose latents are kept: those to fit at, and the one to cluster at."""
        also = () if self.cluster_timestep is None else (self.cluster_timestep,)
        return tuple(sorted({*self.timesteps, *also}))

    def __post_init__(self) -> None:
        _check(len(self.timesteps) > 0, "--timesteps is empty; name at least one")
        _check(len(set(self.timesteps)) == len(self.timesteps), "--timesteps names a timestep twice")
        _check(self.steps >= 2, f"--ddim-steps {self.steps} is too few; give 2 or more")
        _check(self.guidance >= 0, f"--inversion-guidance {self.guidance} is negative; 1 means no guidance")
        _one_of("--posterior", self.posterior, Posterior)
        _one_of("--solver", self.solver, Solver)
        size = self.batch_size
        _check(size == "auto" or (isinstance(size, int) and size >= 1), f"--batch-size {size} must be at least 1")


@dataclass(frozen=True)
class SearchConfig:
    """How subsets are found: exact `moments` matching, or the paper's best of `candidates` random subsets.

    A class is one diagonal Gaussian, or `components` of them ("ipc": as many as images), with `rank` directions each.
    A component that gets a single image gives its mean or its medoid. `spread` is what exact matching gives the
    Gaussian's to: the latents' unbiased std, or their mean distance from the centre.
    """

    ipc: tuple[int, ...] = (10,)
    method: Search = "moments"
    candidates: int = 256
    skew_weight: float = PAPER_SKEW_WEIGHT
    components: int | Literal["ipc"] = 1
    rank: int = 0
    single: Single = "mean"
    spread: Spread = field(default="std", metadata=LATE)

    @property
    def is_mixture(self) -> bool:
        """Whether a class is more than D3HR's one diagonal Gaussian."""
        return self.components != 1 or self.rank > 0

    def __post_init__(self) -> None:
        _check(len(self.ipc) > 0, "--ipc is empty; name at least one number of images per class")
        _check(len(set(self.ipc)) == len(self.ipc), "--ipc names a number twice")
        for n in self.ipc:
            _check(n >= 1, f"--ipc {n} makes no image; give 1 or more")
        _one_of("--search", self.method, Search)
        _check(self.candidates >= 1, f"--candidates {self.candidates} must be at least 1")
        _check(self.skew_weight >= 0, f"skew weight {self.skew_weight} must not be negative")
        enough = self.components == "ipc" or (isinstance(self.components, int) and self.components >= 1)
        _check(enough, f"--components {self.components} must be at least 1, or ipc for one per image")
        _one_of("--single", self.single, Single)
        _one_of("--spread", self.spread, Spread)
        _check(
            self.single == "mean" or self.components != 1,
            "--single medoid needs --components: one Gaussian has the class mean alone",
        )
        _check(self.rank >= 0, f"--rank {self.rank} must not be negative; 0 is a diagonal covariance")
        _check(
            self.method == "moments" or not self.is_mixture,
            "--components and --rank need --search moments: random subsets are drawn from one diagonal Gaussian",
        )


@dataclass(frozen=True)
class SynthesisConfig:
    """How subsets become images: guidance of the sampler and the side in pixels of the saved PNGs."""

    guidance: float = 4.0
    image_size: int | None = None

    def __post_init__(self) -> None:
        _check(self.guidance >= 0, f"--guidance {self.guidance} is negative; 1 means no guidance")
        size = self.image_size
        _check(size is None or size >= 1, f"--image-size {size} must be at least 1")


@dataclass(frozen=True)
class CaO2Config:
    """CaO2 (arXiv 2506.22637): what stays of a pool of `pool` x IPC images, and how its latents are optimised.

    `rematch` brings what stays back to the class moments. `levels` are the noise levels of stage 2, as places on the
    even grid of --ddim-steps. `classifier` None is the model's own. jobs/distill.py leaves stage 2 out of d3hr+cao2,
    where it was measured not to help, unless it is asked for.
    """

    pool: int = 4
    sampler: Sampler = "ddpm"
    classifier: str | None = None
    select: Selection = "easy"
    rematch: bool = True
    iterations: int = 100
    lr: float = 6e-4
    linf: float = 10.0
    condition: Condition = "null"
    levels: tuple[int, int] = (1, 11)

    def __post_init__(self) -> None:
        _check(self.pool >= 1, f"--pool {self.pool} must be at least 1")
        _one_of("--sampler", self.sampler, Sampler)
        _one_of("--select", self.select, Selection)
        _one_of("--condition", self.condition, Condition)
        _check(self.iterations >= 0, f"--optimise {self.iterations} must not be negative; 0 leaves stage 2 out")
        _check(self.lr > 0, f"--optimise-lr {self.lr:g} must be above 0")
        _check(self.linf >= 0, f"--linf {self.linf:g} must not be negative")
        low, high = self.levels if len(self.levels) == 2 else (-1, -1)
        _check(0 <= low <= high, f"--levels {' '.join(map(str, self.levels))}: give LOW HIGH, with 0 <= LOW <= HIGH")


@dataclass(frozen=True)
class RunConfig:
    """One distillation run. Equal configs on equal data give equal bytes on CPU, on any number of actors."""

    data: DataConfig
    model: ModelConfig
    inversion: InversionConfig = field(default_factory=InversionConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    cao2: CaO2Config = field(default_factory=CaO2Config)
    method: Method = "d3hr"
    fidelity: Fidelity = "fixed"
    mended: tuple[Quirk, ...] = ()
    seed: int = 0

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
        return self.method in ("cao2", "d3hr+cao2")

    @property
    def has_mixture(self) -> bool:
        """Whether classes are searched as more than one diagonal Gaussian; a single draw is always of that one."""
        return self.search.is_mixture and self.method != "gaussian"

    @property
    def fits(self) -> bool:
        """Whether the method needs Gaussians, and so the dataset."""
        return self.method in ("d3hr", "d3hr+cao2", "gaussian")

    @property
    def needs_images(self) -> bool:
        """Whether the method needs a dataset; the others need a model, whose classes are theirs."""
        return self.fits or self.method == "random"

    @property
    def lists_images(self) -> bool:
        """Whether images are listed: where they are needed, and where their classes are those that `dit` samples."""
        return self.needs_images or (self.method == "dit" and bool(self.data.uri))

    def __post_init__(self) -> None:
        _one_of("--method", self.method, Method)
        _one_of("--fidelity", self.fidelity, Fidelity)
        _check(0 <= self.seed < 2**63, f"--seed {self.seed} must be between 0 and 2**63 - 1")
        official = self.fidelity == "official"
        for quirk in self.mended:
            _one_of("--mend", quirk, Quirk)
        _check(official or not self.mended, "--mend goes with --fidelity official: fixed has none of the quirks")
        _check(
            not self.has_pool or self.cao2.levels[1] < self.inversion.steps,
            f"--levels {self.cao2.levels[1]} is not on the grid of {self.inversion.steps} --ddim-steps",
        )
        _check(
            not (official and self.method == "d3hr+cao2"),
            "--fidelity official has no --method d3hr+cao2: nobody has published it; use --fidelity fixed",
        )
        _check(
            not (official and self.method == "d3hr" and self.search.method == "moments"),
            "--fidelity official has no --search moments: it is ours; use --search random",
        )
        _check(
            not (official and self.inversion.solver != "ddim"),
            f"--fidelity official walks by DDIM; leave out --solver {self.inversion.solver}",
        )
        _check(
            not (official and self.method == "d3hr" and 1 in self.search.ipc),
            "--fidelity official cannot do --ipc 1: the authors' std is NaN there; use --fidelity fixed",
        )


def as_dict(config: Any) -> dict[str, Any]:
    """Config dataclass => plain JSON types, tuples as lists, so that it compares equal after a JSON round trip."""
    plain: dict[str, Any] = json.loads(json.dumps(_written(config)))
    return plain


def _written(config: Any) -> dict[str, Any]:
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    unwritten = {f.name for f in dataclasses.fields(config) if f.metadata.get("late") and values[f.name] == f.default}
    return {
        name: _written(value) if dataclasses.is_dataclass(value) else value
        for name, value in values.items()
        if name not in unwritten
    }


def fingerprint(*parts: Any) -> str:
    """16 hex digits that change when any part does. Parts are config dataclasses or JSON values."""
    plain = [as_dict(p) if dataclasses.is_dataclass(p) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """'search.ipc: [10] -> [50]' for every leaf that differs between two plain configs."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name}: {a} -> {b}")
    return found


def from_dict(plain: dict[str, Any]) -> RunConfig:
    """The inverse of as_dict. Raises ValueError if a field is unknown or missing."""
    parts = {
        "data": DataConfig,
        "model": ModelConfig,
        "inversion": InversionConfig,
        "search": SearchConfig,
        "synthesis": SynthesisConfig,
        "cao2": CaO2Config,
    }
    plain = {"cao2": {}} | plain  # runs from before CaO2 have none
    try:
        made = {name: kind(**_tuples(plain[name])) for name, kind in parts.items()}
        return RunConfig(**{**_tuples(plain), **made})
    except (TypeError, KeyError) as error:
        raise ValueError(f"run.json holds a config of another version of d3hr_ray ({error})") from error


def data_config(plain: dict[str, Any]) -> DataConfig:
    """The data part of a plain config, as a run or a model keeps it."""
    return DataConfig(**_tuples(plain))


def _tuples(plain: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
