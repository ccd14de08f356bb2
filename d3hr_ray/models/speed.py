"""How fast networks run, for the times of a plan: as was said, as measured here, or as a GPU does."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from d3hr_ray.models.card import ModelCard, locate
from d3hr_ray.models.flops import Cost
from d3hr_ray.models.loading import load_networks

GPU_TFLOPS = 300.0  # that half precision sustains on an H100
SMALL = 20e9  # FLOP of a forward that a CPU takes less than a second for
MEASURED = 50e9  # FLOP of what is measured, at most: a second or two
BATCH = 64  # images per forward on CPUs


@dataclass(frozen=True)
class Speed:
    """`tflops` TFLOP/s of one actor's device; `words` say which and where the number is from."""

    tflops: float
    words: str


def find_speed(name: str, card: ModelCard, cost: Cost, tflops: float | None) -> Speed:
    """As --tflops says; measured where the model is here and small and there is no GPU; else a GPU's."""
    if tflops is not None:
        return Speed(tflops, f"of one device at {tflops:g} TFLOP/s (--tflops)")
    if torch.cuda.is_available() or cost.forward > SMALL or not Path(locate(name)).is_dir():
        return Speed(GPU_TFLOPS, f"of one GPU at {GPU_TFLOPS:g} sustained TFLOP/s, an H100's (--tflops)")
    rate = measure(name, card, cost) / 1e12
    return Speed(rate, f"of one CPU core at {rate:.2g} TFLOP/s, measured here, besides what Ray takes to start")


def measure(name: str, card: ModelCard, cost: Cost) -> float:
    """FLOP per second of a model's denoiser on one CPU core, as an actor has, in batches as a run has them."""
    _, denoiser = load_networks(name, torch.float32, "cpu")
    rows = int(min(BATCH, max(1, MEASURED // cost.forward)))
    x, classes = torch.zeros(rows, *card.latent_shape), torch.zeros(rows, dtype=torch.long)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(3):  # the first one is slower
            start = time.perf_counter()
            with torch.inference_mode():
                denoiser.eps(x, 0, classes)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return rows * cost.forward / min(seconds)
