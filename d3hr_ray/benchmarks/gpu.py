"""bench gpu: every figure that needs a GPU, in one run of under 10 minutes. Without a GPU it checks itself, tiny.

It imports neither Ray nor scikit-learn. On a bare machine with torch, torchvision, timm and numpy, carry wheels:
docs/speed.md, "GPU figures".
"""

import time
from functools import partial
from typing import Any

import torch

from d3hr_ray.benchmarks import invert, train
from d3hr_ray.benchmarks.measure import CPU, Clock, Result, in_turns, median_ratio
from d3hr_ray.models.dit import Denoiser
from d3hr_ray.models.flops import count_flop

LIMIT = 420.0  # seconds after which no further part is begun
T = 600


def run(quick: bool) -> Result:
    """All parts that fit into the time, and which were left out."""
    start, tiny = time.perf_counter(), quick or not torch.cuda.is_available()
    first = invert.run(tiny)
    ratios, rows, notes = dict(first.ratios), [*first.rows], [*first.notes]
    bench = invert.set_up("cpu" if tiny else "cuda", tiny)
    for name, part in (("batch sizes", batches), ("VAE", encoders), ("CUDA graph", graph), ("students", students)):
        if time.perf_counter() - start > LIMIT:
            notes.append(f"left out for want of time: {name}")
            continue
        more, lines = part(bench, tiny)
        ratios |= more
        rows += lines
    where = "the CPU, with tiny networks: it runs; no figure here is a GPU's" if tiny else torch.cuda.get_device_name()
    notes.append(f"measured on {where}")
    return Result("gpu", ratios, rows, notes)


Part = tuple[dict[str, float], list[dict[str, Any]]]


def _clock(tiny: bool) -> Clock:
    return CPU if tiny else invert.synchronised


@torch.inference_mode()
def batches(bench: invert.Bench, tiny: bool) -> Part:
    """Forwards per second of the compiled denoiser at several batch sizes, and the memory that they take."""
    _, denoiser = bench.ours
    peak, cost = invert.peak_flops(bench.device), count_flop(bench.card)
    rows = []
    for size in (2, 4) if tiny else (8, 32, 64, 128, 256):
        assert denoiser.compiled_sizes is not None, "ours is accelerated"
        denoiser.compiled_sizes.clear()  # each size on its own, unpadded
        x = torch.randn(size, *bench.card.latent_shape, device=bench.device)
        classes = torch.zeros(size, dtype=torch.long, device=bench.device)
        if not tiny:
            torch.cuda.reset_peak_memory_stats()
        seconds = in_turns({"forward": partial(denoiser.eps, x, T, classes)}, 5, _clock(tiny))["forward"]
        memory = 0.0 if tiny else torch.cuda.max_memory_allocated() / 2**30
        rate = size / min(seconds)
        rows.append(
            {"forward, batch": size, "images/s": rate, "share of peak": rate * cost.forward / peak, "GiB": memory}
        )
    return {"best_forward_share": max(row["share of peak"] for row in rows)}, rows


@torch.inference_mode()
def encoders(bench: invert.Bench, tiny: bool) -> Part:
    """VAE encodings per second in float32, with TF32, and in bfloat16; the last two's error against the first."""
    images, _, _ = bench.on_device(4 if tiny else 64)
    exact = invert.random_networks(bench.card, torch.float32, bench.device)[0]
    half = invert.random_networks(bench.card, torch.float32, bench.device)[0]
    half.vae.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    sides = {"float32": partial(exact.encode, images, None), "TF32": partial(bench.ours[0].encode, images, None)}
    sides["bfloat16"] = partial(half.encode, images, None)
    seconds = in_turns(sides, 3, _clock(tiny))
    want = sides["float32"]()
    rows = [
        {
            "VAE": name,
            "images/s": len(images) / min(seconds[name]),
            "error": float((side() - want).norm() / want.norm()),
        }
        for name, side in sides.items()
    ]
    return {"vae_tf32_speedup": median_ratio(seconds["float32"], seconds["TF32"])}, rows


@torch.inference_mode()
def graph(bench: invert.Bench, tiny: bool) -> Part:
    """What a CUDA graph of one forward saves at batches of 1, 8 and 128: the launches."""
    if tiny:
        return {}, []
    ratios, rows = {}, []
    for size in (1, 8, 128):
        seconds = in_turns(_graphed(bench.ours[1], bench, size), 10, invert.synchronised)
        ratios[f"cuda_graph_speedup_batch{size}"] = median_ratio(seconds["eager"], seconds["graph"])
        rows.append(
            {"CUDA graph, batch": size, "ms": 1e3 * min(seconds["graph"]), "eager ms": 1e3 * min(seconds["eager"])}
        )
    return ratios, rows


def _graphed(denoiser: Denoiser, bench: invert.Bench, size: int) -> dict[str, Any]:
    assert denoiser.compiled_sizes is not None, "ours is accelerated"
    denoiser.compiled_sizes.clear()
    x = torch.randn(size, *bench.card.latent_shape, device="cuda")
    classes = torch.zeros(size, dtype=torch.long, device="cuda")
    work = partial(denoiser.eps, x, T, classes)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, stream=stream):
        work()
    return {"eager": work, "graph": captured.replay}


def students(bench: invert.Bench, tiny: bool) -> Part:
    """One ConvNet against a plain loop; many at once on one device against one after another."""
    count, epochs = (2, 1) if tiny else (8, 100)
    case = (train.TINY if tiny else train.CASES)[-1]
    ratios, rows = train.on_device(bench.device, case, epochs, _clock(tiny))
    ratio = train.side_by_side(count, epochs, bench.device)
    rows.append({"students at once": count, "x one after another": ratio})
    return ratios | {"concurrent_students_speedup": ratio}, rows
