"""Published feature spaces by name, with weights from disk: what official metrics compare images in."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
