"""Small pretrained models shipped with the library, of digits (images, latents, a flow of latents) and emoji."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
