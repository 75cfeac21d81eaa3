"""Distill a diffusion model into a one-step generator: see the README for what it does and CONTRIBUTING for how."""

__version__ = "0.1.0"
