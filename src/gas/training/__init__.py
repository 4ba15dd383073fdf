"""Training: classical solvers are ranked, starts chosen by successive halving, and learned by Gauss-Newton or Adam."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
