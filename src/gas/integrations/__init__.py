"""Solvers in other programs: each module needs the program it is named after only when used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
