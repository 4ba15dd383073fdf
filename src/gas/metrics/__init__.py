"""How far samples are: from the teacher one by one, and from data as a distribution."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
