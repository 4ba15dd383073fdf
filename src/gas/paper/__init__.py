"""Reproduction of arXiv 2510.17699: presets, networks and files as published, reported and measured figures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
