"""What is done for speed changes no result: padding to compiled sizes, compiled blocks, copies to a device."""

import copy

import pytest
import torch

from d3hr_ray.models.accelerate import accelerate, to_device
from d3hr_ray.models.dit import Denoiser


@pytest.mark.slow
@torch.inference_mode()
def test_a_compiled_denoiser_pads_to_sizes_it_knows_and_gives_the_same(networks):
    plain = networks[1]
    autoencoder, denoiser = copy.deepcopy(networks[0]), Denoiser(copy.deepcopy(plain.transformer))
    accelerate(autoencoder, denoiser, backend="eager", least=0)
    sizes = []
    denoiser.transformer.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    draw = torch.Generator().manual_seed(0)
    for rows in (8, 5, 4, 3, 1):
        x = torch.randn(rows, *plain.latent_shape, generator=draw)
        classes = torch.arange(rows)
        for t in (600, torch.arange(rows) + 7):
            assert torch.allclose(denoiser.eps(x, t, classes), plain.eps(x, t, classes), atol=1e-5)
    # 4 of 8 does not go to 8: it may be the half of a batch that did not fit into memory.
    assert sizes == [8, 8, 8, 8, 4, 4, 4, 4, 1, 1]


def test_a_small_denoiser_is_not_compiled(networks):
    autoencoder, denoiser = copy.deepcopy(networks)
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    try:
        accelerate(autoencoder, denoiser)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert autoencoder.tf32 and denoiser.compiled_sizes is None
    assert all(block._compiled_call_impl is None for block in denoiser.transformer.transformer_blocks)


@torch.inference_mode()
def test_tf32_is_the_vaes_alone(networks):
    """What a GPU would round, seen by the settings under which each network runs."""
    autoencoder, denoiser = copy.deepcopy(networks)
    before, seen = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32), {}
    for name, module in (("vae", autoencoder.vae.encoder), ("vae", autoencoder.vae.decoder), ("dit", denoiser)):
        watched = module.transformer if name == "dit" else module
        watched.register_forward_pre_hook(
            lambda module, args, name=name: seen.setdefault(name, set()).add(
                (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
            )
        )
    try:
        accelerate(autoencoder, denoiser, backend="eager")
        latents = autoencoder.encode(torch.zeros(1, 3, 32, 32), None)
        autoencoder.decode(latents)
        denoiser.eps(latents, 600, torch.zeros(1, dtype=torch.long))
        assert seen == {"vae": {("high", True)}, "dit": {("highest", False)}}
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_copies_hold_the_same_numbers():
    x = torch.arange(6).reshape(2, 3)
    assert torch.equal(to_device(x, "cpu"), x)


@pytest.mark.gpu
@torch.inference_mode()
def test_on_a_gpu_compiled_blocks_agree_with_plain_ones(networks):
    plain, fast = (Denoiser(copy.deepcopy(networks[1].transformer)).cuda() for _ in range(2))
    accelerate(copy.deepcopy(networks[0]).cuda(), fast, least=0)
    x = torch.randn(5, *plain.latent_shape, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(5, device="cuda")
    ours, theirs = (d.guided(classes, 4.0)(to_device(x, "cuda"), 600) for d in (fast, plain))
    assert torch.allclose(ours, theirs, atol=1e-2)
