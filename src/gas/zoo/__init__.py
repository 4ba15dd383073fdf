"""Small pretrained models shipped with the library, of digits: images of 8x8 and 32x32, latents, a flow of latents."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
