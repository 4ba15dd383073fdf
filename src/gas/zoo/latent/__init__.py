"""A latent, guided diffusion model and a flow-matching one of MNIST, as diffusers pipelines; need diffusers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
