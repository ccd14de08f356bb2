"""D3HR's settings: how images are inverted, how subsets are matched to their Gaussians, how they are sampled."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from d3hr_ray.config.fields import CLUSTER, MATCHING, METHOD, OUTPUT, check, one_of, setting

Posterior = Literal["sample", "mode"]
Solver = Literal["ddim", "adams"]
Search = Literal["moments", "random"]
Single = Literal["mean", "medoid"]
Spread = Literal["std", "radius"]

SEARCHING = ("d3hr", "d3hr+cao2")  # methods that match subsets to Gaussians
FITTING = (*SEARCHING, "gaussian")  # methods that take latents of them
# The score's weight of the skewness term, of the D3HR paper and of the authors' code, which has it on another quantity
# (numerics/groups.py); and their search block.
PAPER_SKEW_WEIGHT, OFFICIAL_SKEW_WEIGHT = 0.5, 0.1
OFFICIAL_BLOCK = 10_000

_inversion = partial(setting, group=METHOD, upstream=True)
_matching = partial(setting, group=MATCHING, methods=SEARCHING, varies=True)


@dataclass(frozen=True)
class InversionConfig:
    """How latents reach the noise domain: the grid of `steps`, the stored `timesteps`, the guidance scale.

    Sampling walks the same grid back, by the same solver.
    """

    timesteps: tuple[int, ...] = setting(
        (600,), "DDPM timesteps, on the sampling grid, at which Gaussians are fitted.", METHOD
    )
    steps: int = _inversion(50, "Points of the sampling grid.", name="ddim_steps", shown="50; adams: 15")
    guidance: float = _inversion(
        1.0,
        "Classifier-free guidance of the inversion; 1 is none, and costs half.",
        name="inversion_guidance",
        shown="the preset's",
    )
    posterior: Posterior = _inversion("sample", "VAE posterior: sample (seeded per image) or mode.")
    solver: Solver = _inversion(
        "ddim",
        "Solver of both directions: ddim, or adams, of second order, which needs a third of the steps.",
    )
    batch_size: int | Literal["auto"] = setting(
        "auto", "Images per forward. auto: 128 on GPUs, 64 on CPUs; halved when a GPU runs out of memory.", CLUSTER
    )
    cluster_timestep: int | None = setting(
        None,
        "Store latents at this t too and cluster them there (--components): nearer the images, such as 100, clusters "
        "mean more. --guide set takes the moments of classes there.",
        MATCHING,
        shown="where the Gaussians are fitted",
        methods=SEARCHING,
    )

    def flag_for(self, t: int) -> str:
        """What asks for latents at t."""
        return "--timesteps" if t in self.timesteps else "--cluster-timestep"

    @property
    def stored(self) -> tuple[int, ...]:
        """Ascending timesteps whose latents are kept: those to fit at, and the one to cluster at."""
        also = () if self.cluster_timestep is None else (self.cluster_timestep,)
        return tuple(sorted({*self.timesteps, *also}))

    def __post_init__(self) -> None:
        check(len(self.timesteps) > 0, "--timesteps is empty; name at least one")
        check(len(set(self.timesteps)) == len(self.timesteps), "--timesteps names a timestep twice")
        check(self.steps >= 2, f"--ddim-steps {self.steps} is too few; give 2 or more")
        check(self.guidance >= 0, f"--inversion-guidance {self.guidance} is negative; 1 means no guidance")
        one_of("--posterior", self.posterior, Posterior)
        one_of("--solver", self.solver, Solver)
        size = self.batch_size
        check(size == "auto" or (isinstance(size, int) and size >= 1), f"--batch-size {size} must be at least 1")


@dataclass(frozen=True)
class SearchConfig:
    """How subsets are found: exact `moments` matching, or the paper's best of `candidates` random subsets.

    A class is one diagonal Gaussian, or `components` of them ("ipc": as many as images), with `rank` directions each.
    A component that gets a single image gives its mean or its medoid. `spread` is what exact matching gives the
    Gaussian's to: the latents' unbiased std, or their mean distance from the centre.
    """

    ipc: tuple[int, ...] = setting((10,), "Images per class, one or more.", METHOD)
    method: Search = _matching(
        "moments",
        "moments: exact matching; random: the paper's best of many subsets.",
        name="search",
        shown="moments; official: random",
    )
    candidates: int = _matching(
        256,
        "Candidate columns (moments) or subsets (random).",
        shown="256; random: 1000000",
    )
    skew_weight: float = _matching(
        PAPER_SKEW_WEIGHT,
        "Weight of the skewness term in the score.",
        shown="0.5, the paper's; official: 0.1, the code's",
    )
    components: int | Literal["ipc"] = _matching(
        1,
        "Gaussians per class, fitted to the stored latents (k-means); ipc: one per image.",
    )
    cluster_pool: int = _matching(
        1,
        "Average latents over K x K cells before they are clustered: the content of a class is compared, and not where "
        "in the image it is. --components other than 1.",
        metavar="K",
        late=True,
    )
    rank: int = _matching(
        0,
        "Principal directions beside each Gaussian's diagonal covariance.",
    )
    single: Single = _matching(
        "mean",
        "What a component with one image gives: its mean (better at low IPC) or its medoid, the stored latent nearest "
        "to its centre (better at high IPC, and close to a real image).",
    )
    spread: Spread = _matching(
        "std",
        "What exact matching matches beside the mean. std: the unbiased std; radius: the distance from the mean, "
        "larger by sqrt(n / (n - 1)), as far out as the Gaussian's own draws.",
        late=True,
    )

    @property
    def is_mixture(self) -> bool:
        """Whether a class is more than D3HR's one diagonal Gaussian."""
        return self.components != 1 or self.rank > 0

    def __post_init__(self) -> None:
        check(len(self.ipc) > 0, "--ipc is empty; name at least one number of images per class")
        check(len(set(self.ipc)) == len(self.ipc), "--ipc names a number twice")
        for n in self.ipc:
            check(n >= 1, f"--ipc {n} makes no image; give 1 or more")
        one_of("--search", self.method, Search)
        check(self.candidates >= 1, f"--candidates {self.candidates} must be at least 1")
        check(self.skew_weight >= 0, f"--skew-weight {self.skew_weight} must not be negative")
        enough = self.components == "ipc" or (isinstance(self.components, int) and self.components >= 1)
        check(enough, f"--components {self.components} must be at least 1, or ipc for one per image")
        one_of("--single", self.single, Single)
        one_of("--spread", self.spread, Spread)
        check(
            self.single == "mean" or self.components != 1,
            "--single medoid needs --components: one Gaussian has the class mean alone",
        )
        check(self.cluster_pool >= 1, f"--cluster-pool {self.cluster_pool} must be at least 1; 1 averages nothing")
        check(
            self.cluster_pool == 1 or self.components != 1,
            "--cluster-pool needs --components: one Gaussian has no clusters",
        )
        check(self.rank >= 0, f"--rank {self.rank} must not be negative; 0 is a diagonal covariance")
        check(
            self.method == "moments" or not self.is_mixture,
            "--components and --rank need --search moments: random subsets are drawn from one diagonal Gaussian",
        )


@dataclass(frozen=True)
class SynthesisConfig:
    """How subsets become images: guidance of the sampler and the side in pixels of the saved PNGs."""

    guidance: float = setting(
        4.0, "Classifier-free guidance of the sampling.", METHOD, shown="the preset's", varies=True
    )
    image_size: int | None = setting(
        None, "Side in pixels of the saved images.", OUTPUT, shown="the model's; official ImageNet: 224"
    )

    def __post_init__(self) -> None:
        check(self.guidance >= 0, f"--guidance {self.guidance} is negative; 1 means no guidance")
        size = self.image_size
        check(size is None or size >= 1, f"--image-size {size} must be at least 1")
