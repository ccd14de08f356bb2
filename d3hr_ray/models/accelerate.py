"""What makes the networks fast on a GPU; results change by rounding only. jobs/bench.py gpu measures it.

Attention is fused already: diffusers calls torch's scaled_dot_product_attention. CUDA graphs are left out: at DiT-XL
and a batch of 128 a forward takes tens of milliseconds, its launches microseconds each.
"""

import torch

from d3hr_ray.models.autoencoder import Autoencoder
from d3hr_ray.models.dit import Denoiser

RECOMPILED = 64
LEAST = 20_000_000  # parameters of a DiT that is compiled: each actor of a smaller one would wait 10 s for nothing


def accelerate(autoencoder: Autoencoder, denoiser: Denoiser, backend: str = "inductor", least: int = LEAST) -> None:
    """Compile the blocks of a DiT that is not small, and let the float32 VAE use tensor cores (TF32), channels last.

    Nothing else is TF32: a DiT in float32 is one, its convolutions too, which torch would round by default.

    The blocks are alike, so that one is compiled for all: seconds instead of minutes for the whole network. Each batch
    size is compiled on its own; others are padded to one that is (dit.py), so that a shard's last batch costs little.
    """
    exact_float32("cuda")
    autoencoder.tf32 = True
    autoencoder.vae.to(memory_format=torch.channels_last)
    if sum(p.numel() for p in denoiser.transformer.parameters()) < least:
        return
    from torch import _dynamo  # takes seconds to import

    # Counted over all blocks of all networks of a process: batch sizes of several IPCs are more than torch's 8.
    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, RECOMPILED)
    for block in denoiser.transformer.transformer_blocks:
        block.compile(backend=backend, dynamic=False)
    denoiser.compiled_sizes = set()


def exact_float32(device: str) -> None:
    """Make this process's float32 what it says: no TF32, which torch takes for convolutions; one thread on a CPU.

    Sums round differently with other numbers of threads.
    """
    if device == "cpu":
        torch.set_num_threads(1)
        return
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def to_device(rows: torch.Tensor, device: str) -> torch.Tensor:
    """A CPU tensor on a device; to a GPU through pinned memory, without waiting for the work queued before."""
    if not device.startswith("cuda"):
        return rows.to(device)
    return rows.pin_memory().to(device, non_blocking=True)
