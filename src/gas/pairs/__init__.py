"""Teacher pairs: noise by seed and the sample that a slow, accurate solver takes it to, in checksummed shards."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
