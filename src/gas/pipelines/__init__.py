"""Diffusers pipelines as models: what their schedulers and networks mean, and safe loading from folders."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
