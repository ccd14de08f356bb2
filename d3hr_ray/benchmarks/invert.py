"""bench invert: images/s from pixels to noised latents, the authors' way against ours.

On a GPU: DiT-XL/2-256's geometry with random weights, half precision. On a CPU: the digits model, float32, one thread.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel

from d3hr_ray.benchmarks.measure import CPU, WALL, Result, in_turns, median_ratio
from d3hr_ray.models.accelerate import accelerate, to_device
from d3hr_ray.models.autoencoder import Autoencoder, to_images
from d3hr_ray.models.card import ModelCard, read_card
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.models.flops import count_flop
from d3hr_ray.models.geometry import DIT_XL_CARD
from d3hr_ray.models.loading import load_networks
from d3hr_ray.numerics import adams, ddim
from d3hr_ray.numerics.grids import even_grid, leading_grid
from d3hr_ray.numerics.schedule import Schedule, linear_alphas

AUTHORS_STEPS, AUTHORS_SCALE, AUTHORS_BATCH = 38, 4.0, 200  # of D3HR's dit_inversion_save_statistic.py
TOP = 20 * AUTHORS_STEPS  # the t that they walk to
T = 600  # the t that they use, and where we stop
DDIM = Schedule(linear_alphas(), leading_grid(1000, 50))
ADAMS = Schedule(linear_alphas(), even_grid(1000, 15))
TINY = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "sample_size": 8}  # for tests


@dataclass(frozen=True)
class Bench:
    """Networks of both sides on a device, and one batch of pixels, classes and posterior noise on the CPU."""

    card: ModelCard
    device: str
    theirs: tuple[Autoencoder, Denoiser]
    ours: tuple[Autoencoder, Denoiser]
    pixels: torch.Tensor
    classes: torch.Tensor
    noise: torch.Tensor

    def on_device(self, rows: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first rows of the batch: images, classes, noise."""
        pixels, classes, noise = (to_device(x[:rows], self.device) for x in (self.pixels, self.classes, self.noise))
        return to_images(pixels), classes, noise


def run(quick: bool) -> Result:
    """Measure; `quick` is for tests: a tiny random DiT on the CPU, 4 images."""
    bench = set_up("cuda" if torch.cuda.is_available() and not quick else "cpu", quick)
    batch = len(bench.pixels)
    sides: dict[str, tuple[Callable[[Bench], Any], int]] = {
        "authors: 38 steps, guidance 4": (authors_way, 2 * AUTHORS_STEPS),
        "ours: 38 steps, guidance 4": (equal_maths, 2 * AUTHORS_STEPS),
        "ours: 30 steps, guidance 1": (our_defaults, DDIM.position(T)),
        "ours: 9 adams steps, guidance 1": (adams_walk, ADAMS.position(T) + 1),
    }
    peak, cost = peak_flops(bench.device), count_flop(bench.card)
    clock = CPU if bench.device == "cpu" else synchronised
    with torch.inference_mode():
        seconds = in_turns({k: (lambda f=f: f(bench)) for k, (f, _) in sides.items()}, 2 if quick else 3, clock)  # type: ignore[misc]
        rows: list[dict[str, Any]] = [
            {
                "way": name,
                "batch": batch,
                "images/s": batch / median(seconds[name]),
                "TFLOP/s": batch * (forwards * cost.forward + cost.encode) / median(seconds[name]) / 1e12,
                "share of peak": batch * (forwards * cost.forward + cost.encode) / median(seconds[name]) / peak,
            }
            for name, (_, forwards) in sides.items()
        ]
        errors = half_errors(bench)
    theirs, equal, default, second = seconds.values()
    ratios = {
        "equal_maths_speedup": median_ratio(theirs, equal),
        "peak_share": float(rows[1]["share of peak"]),
        "default_speedup": median_ratio(theirs, default),
        "adams_speedup": median_ratio(theirs, second),
        "cost_model_error": float(rows[1]["TFLOP/s"]) / float(rows[2]["TFLOP/s"]) - 1,
    }
    where = "random DiT-XL/2-256" if bench.device == "cuda" else f"{bench.card.image_size}-pixel model, float32"
    notes = [
        f"{where} on {bench.device}; measured matrix-multiply peak {peak / 1e12:.4g} TFLOP/s; VAE encoding included",
        "cost_model_error: 30 steps at guidance 1, predicted from FLOP and the rate at guidance 4, as --dry-run does",
        "error: relative to the norm of float32's latents, 8 images",
    ]
    return Result("invert", ratios | errors, rows, notes)


def set_up(device: str, quick: bool) -> Bench:
    """Both sides' networks and a batch."""
    if device == "cpu" and not quick:
        torch.set_num_threads(1)
        card, half = read_card("digits"), torch.float32
        theirs, ours = (load_networks("digits", torch.float32, "cpu") for _ in range(2))
    else:
        card = _tiny(DIT_XL_CARD) if quick else DIT_XL_CARD
        half = torch.float32 if quick else torch.bfloat16
        theirs = random_networks(card, torch.float32 if quick else torch.float16, device)
        ours = random_networks(card, half, device)
        theirs[0].vae.to(theirs[1].transformer.dtype)  # the authors load all of the pipeline in half precision
        accelerate(*ours, backend="eager" if quick else "inductor", least=0)
    batch = 4 if quick else AUTHORS_BATCH
    draw = torch.Generator().manual_seed(0)
    return Bench(
        card=card,
        device=device,
        theirs=theirs,
        ours=ours,
        pixels=torch.randint(0, 256, (batch, card.image_size, card.image_size, 3), dtype=torch.uint8, generator=draw),
        classes=torch.randint(0, card.num_classes, (batch,), generator=draw),
        noise=torch.randn(batch, *card.latent_shape, generator=draw),
    )


def random_networks(card: ModelCard, dtype: torch.dtype, device: str) -> tuple[Autoencoder, Denoiser]:
    """Networks of a card's geometry, the same random weights for every dtype."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        vae = AutoencoderKL.from_config(card.vae)
        transformer = DiTTransformer2DModel.from_config(card.transformer).to(dtype)
    networks = Autoencoder(vae), Denoiser(transformer)
    for network in networks:
        network.eval().requires_grad_(False)
    return networks


def _tiny(card: ModelCard) -> ModelCard:
    vae = card.vae | {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
    return replace(card, latent_shape=(4, 8, 8), image_size=64, transformer=card.transformer | TINY, vae=vae)


def authors_way(bench: Bench) -> torch.Tensor:
    """One doubled batch, eager, all arithmetic in the networks' dtype, 38 steps, as D3HR's code does."""
    autoencoder, denoiser = bench.theirs
    images, classes, noise = bench.on_device()
    dtype = denoiser.transformer.dtype
    x = autoencoder.encode(images, noise).to(dtype)
    both = torch.cat([classes, torch.full_like(classes, denoiser.null_class)])
    for i in range(1, AUTHORS_STEPS + 1):
        t = torch.full((len(both),), DDIM.grid[i], device=x.device)
        out = denoiser.transformer(torch.cat([x, x]), timestep=t, class_labels=both).sample[:, : x.shape[1]]
        given, null = out.chunk(2)
        x = ddim.ddim_step(
            x, null + AUTHORS_SCALE * (given - null), DDIM.alpha(DDIM.grid[i - 1]), DDIM.alpha(DDIM.grid[i])
        )
    return x.cpu()


def equal_maths(bench: Bench, rows: int | None = None) -> torch.Tensor:
    """Ours with the authors' steps and guidance."""
    return _ours(bench, ddim.invert, DDIM, TOP, AUTHORS_SCALE, rows)


def our_defaults(bench: Bench, rows: int | None = None) -> torch.Tensor:
    """Ours as presets have it: guidance 1, stopping at the t that is stored."""
    return _ours(bench, ddim.invert, DDIM, T, 1.0, rows)


def adams_walk(bench: Bench) -> torch.Tensor:
    """Ours with the second-order solver."""
    return _ours(bench, adams.invert, ADAMS, T, 1.0, None)


def _ours(bench: Bench, walk: Any, schedule: Schedule, top: int, scale: float, rows: int | None) -> torch.Tensor:
    autoencoder, denoiser = bench.ours
    images, classes, noise = bench.on_device(rows)
    latents = autoencoder.encode(images, noise)
    states: torch.Tensor = walk(denoiser.guided(classes, scale), latents, schedule, [top])[top]
    return states.cpu()


def half_errors(bench: Bench) -> dict[str, float]:
    """Relative error of our latents, computed on the device in its dtype, against float32 without TF32, 8 images."""
    if bench.device == "cpu":
        return {}
    reference = replace(bench, ours=random_networks(bench.card, torch.float32, bench.device))
    ways: dict[str, Callable[..., torch.Tensor]] = {"guidance4": equal_maths, "guidance1": our_defaults}
    ours, exact = ({name: way(side, 8) for name, way in ways.items()} for side in (bench, reference))
    return {f"error_{n}": float((ours[n] - exact[n]).norm() / exact[n].norm()) for n in ways}


def peak_flops(device: str) -> float:
    """FLOP/s of a large square matrix multiply, the best of 5: bfloat16 on a GPU, float32 on one CPU thread."""
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    loops = 10 if device == "cuda" else 1

    def work() -> None:
        for _ in range(loops):
            torch.mm(a, b)

    seconds = in_turns({"mm": work}, 5, synchronised if device == "cuda" else CPU)["mm"]
    return loops * 2 * side**3 / min(seconds)


def synchronised() -> float:
    """Wall time after all work queued on the GPU is done."""
    torch.cuda.synchronize()
    return WALL()
