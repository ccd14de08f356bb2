"""Pretrained networks behind small contracts: the VAE, the denoiser, classifiers; and an exact toy denoiser."""
