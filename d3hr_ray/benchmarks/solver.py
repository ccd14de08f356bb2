"""bench solver: round trip, moments' error and accuracy on digits against network evaluations, per solver and grid."""

import statistics
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from d3hr_ray.benchmarks.measure import Result
from d3hr_ray.benchmarks.peers import DpmSolver
from d3hr_ray.config import DataConfig
from d3hr_ray.models.autoencoder import Autoencoder, to_images, to_pixels
from d3hr_ray.models.card import read_card
from d3hr_ray.models.classifiers import predict, train_convnet
from d3hr_ray.models.closed_form import GaussianDenoiser
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.models.loading import load_networks, load_schedule
from d3hr_ray.numerics import adams, ddim, groups
from d3hr_ray.numerics.ddim import Denoise
from d3hr_ray.numerics.grids import leading_grid, power_grid
from d3hr_ray.numerics.schedule import Schedule, linear_alphas
from d3hr_ray.numerics.seeds import normal
from d3hr_ray.pretraining.check import load_set, psnr

MODEL, T, GUIDANCE, IPC = "digits", 600, 2.0, 10  # the preset's
POWER = 1.25  # of the grid that is denser where there is little noise
DENSE = f"adams, t^{POWER}"
WALKS: dict[str, Any] = {
    "ddim": ddim,
    "adams": adams,
    DENSE: adams,
    "DPM-Solver": DpmSolver(),
    "DPM-Solver, Karras": DpmSolver(karras=True),
}
GRIDS = {"ddim": (50, 25, 20, 10)} | dict.fromkeys(list(WALKS)[1:], (50, 25, 20, 15, 10))  # 600 is on all of them
ORDERS = ("ddim", "adams")  # of the walks whose order of convergence is measured
JUDGED = (("ddim", 50), ("ddim", 10), ("adams", 15), ("adams", 10))  # by a classifier too, which takes a minute
REFERENCE = 200  # steps of the adams walk that moments are compared with


@dataclass(frozen=True)
class Digits:
    """Networks, images, and the VAE's latents of them, which every walk starts from."""

    autoencoder: Autoencoder
    denoiser: Denoiser
    labels: torch.Tensor
    latents: torch.Tensor


def run(quick: bool) -> Result:
    """Measure; `quick` is for tests: few images, two grids, no classifier."""
    torch.set_num_threads(1)
    digits = _load(40 if quick else 500)
    grids = dict.fromkeys(WALKS, (10,)) if quick else GRIDS
    reference = _moments(digits, _invert(digits, "adams", 20 if quick else REFERENCE)[0])
    rows = []
    for solver, steps in ((s, n) for s, numbers in grids.items() for n in numbers):
        noised, up = _invert(digits, solver, steps)
        images, down = _sample(digits, solver, steps, noised, digits.labels)
        moments = _moments(digits, noised)
        row: dict[str, Any] = {
            "solver": solver,
            "steps": steps,
            "evaluations": up + down,
            "round trip dB": psnr(images, _decode(digits, digits.latents)),
            "mean error": _relative(moments[0], reference[0]),
            "std error": _relative(moments[1], reference[1]),
        }
        judged = (solver, steps) in JUDGED and not quick
        rows.append(row | _accuracy(digits, solver, steps, moments) if judged else row)
    return Result("solver", _ratios(rows), rows, NOTES)


NOTES = [
    "DPM-Solver: diffusers', second order, predicting noise, with as many evaluations, on an even or Karras' grid",
    f"{DENSE}: points at T (i / n)^{POWER}, denser where there is little noise",
    f"digits model, t = {T}, guidance {GUIDANCE:g} both ways; evaluations up and down (two passes each)",
    "round trip: PSNR against the VAE's own decoding; errors of per-class mean and std against adams with 200 steps",
    f"accuracy: ConvNet trained on the {IPC} images per class made by exact matching; test split; 3 seeds",
]


@torch.inference_mode()
def _load(count: int) -> Digits:
    autoencoder, denoiser = load_networks(MODEL, torch.float32, "cpu")
    pixels, labels = load_set(DataConfig(MODEL), read_card(MODEL))
    chosen = np.argsort(labels, kind="stable")[np.linspace(0, len(labels) - 1, count).astype(int)]
    noise = normal((len(chosen), *denoiser.latent_shape), "bench solver")
    latents = autoencoder.encode(to_images(torch.from_numpy(pixels[chosen])), noise)
    return Digits(autoencoder, denoiser, torch.from_numpy(labels[chosen]).long(), latents)


def _schedule(solver: str, steps: int) -> Schedule:
    """Of ours, the grid that the engine walks; others have as many points up to T."""
    even = load_schedule(MODEL, steps, "ddim" if solver == "ddim" else "adams")
    if solver != DENSE:
        return even
    return replace(even, grid=power_grid(T, even.position(T) + 1, POWER))


class _Counted:
    """A denoiser that counts its evaluations."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.calls = denoise, 0

    def __call__(self, x: torch.Tensor, t: int) -> torch.Tensor:
        self.calls += 1
        return self.denoise(x, t)


@torch.inference_mode()
def _invert(digits: Digits, solver: str, steps: int) -> tuple[torch.Tensor, int]:
    denoise = _Counted(digits.denoiser.guided(digits.labels, GUIDANCE))
    states = WALKS[solver].invert(denoise, digits.latents, _schedule(solver, steps), [T])
    return states[T], denoise.calls


@torch.inference_mode()
def _sample(
    digits: Digits, solver: str, steps: int, noised: torch.Tensor, labels: torch.Tensor
) -> tuple[np.ndarray, int]:
    denoise = _Counted(digits.denoiser.guided(labels, GUIDANCE))
    latents = WALKS[solver].sample(denoise, noised, _schedule(solver, steps), T)
    return _decode(digits, latents), denoise.calls


@torch.inference_mode()
def _decode(digits: Digits, latents: torch.Tensor) -> np.ndarray:
    return to_pixels(digits.autoencoder.decode(latents)).numpy()


def _moments(digits: Digits, noised: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-class mean and std (K, D)."""
    parts = [noised.flatten(1)[digits.labels == k] for k in range(10)]
    return torch.stack([p.mean(0) for p in parts]), torch.stack([p.std(0) for p in parts])


def _relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


def _accuracy(digits: Digits, solver: str, steps: int, moments: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    subsets = [groups.match_moments(m, s, IPC, 64, 0, k) for k, (m, s) in enumerate(zip(*moments, strict=True))]
    labels = torch.arange(10).repeat_interleave(IPC)
    noised = torch.cat(subsets).reshape(-1, *digits.denoiser.latent_shape)
    images, _ = _sample(digits, solver, steps, noised, labels)
    pixels, truth = _test_set()
    nets = [train_convnet(images, labels.numpy(), 10, steps=400, seed=seed) for seed in range(3)]
    found = [100 * float((predict(net, pixels) == truth).mean()) for net in nets]
    return {"accuracy %": statistics.mean(found), "spread": statistics.stdev(found)}


@cache
def _test_set() -> tuple[np.ndarray, np.ndarray]:
    return load_set(DataConfig(f"{MODEL}/test"), read_card(MODEL))


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What a round trip as good as that of the finest DDIM grid costs, and the orders of convergence."""
    base = rows[0]
    enough = [r for r in rows if r["solver"] == "adams" and r["round trip dB"] >= base["round trip dB"]]
    share = min((r["evaluations"] for r in enough), default=float("nan")) / base["evaluations"]
    ratios = {"evaluations_share": share}
    return ratios | {f"slope_{name}": _slope(WALKS[name]) for name in ORDERS}


def _slope(walk: Any) -> float:
    """Of log error against log steps of the inversion of Gaussian data, whose exact map is known."""
    steps, errors = (100, 200, 500, 1000), []
    for n in steps:
        schedule = Schedule(linear_alphas(), leading_grid(1000, n))
        denoise = GaussianDenoiser(schedule, torch.tensor(0.5).double(), torch.tensor(0.7).double())
        x0 = torch.linspace(-1, 2, 100, dtype=torch.float64)
        ours = walk.invert(denoise, x0.float(), schedule, [T])[T]
        errors.append(float((ours - denoise.transport(x0, 0, T)).abs().mean()))
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
