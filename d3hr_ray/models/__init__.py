"""Pretrained networks behind small contracts: the VAE, the denoiser, and an exact toy denoiser for tests."""
