"""Pretrained models behind the library's contract: EDM's networks, CompVis's latent diffusion."""
