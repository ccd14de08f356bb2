"""Diffusion-based dataset distillation (D3HR, CaO2) as a Ray-distributed engine."""

__version__ = "0.1.0"
