"""Evaluation: samples of a solver, and their distance to the teacher and to data."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
