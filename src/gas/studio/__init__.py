"""The local page of ``gas studio``: choose, compare, learn, keep.

:mod:`~gas.studio.actions` and :mod:`~gas.studio.learning` do the work as generators over the library, without gradio;
:mod:`~gas.studio.drawing` turns their results into HTML, and :mod:`~gas.studio.page` lays them out.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
