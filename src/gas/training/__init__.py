"""Training: rank classical solvers, choose a start by successive halving, and learn by Gauss-Newton or Adam."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
