"""Training of a latent diffusion model, VAE then DiT, on any image source; only `launch` knows Ray."""
