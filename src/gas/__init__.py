"""gas-solver: learned few-step samplers for pretrained diffusion and flow models.

A solver is a table of numbers (:class:`gas.Table`); :func:`gas.sample` runs every one of them.
Names load when first used (listed in ``__init__.pyi``), so that ``import gas`` costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
# Diffusers loads a pipeline's scheduler from the module that the pipeline's index names, ``gas``, if that has this too.
__all__.remove("SchedulerMixin")
