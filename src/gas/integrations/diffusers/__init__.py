"""Solvers as diffusers schedulers, and what a diffusers scheduler's config says of the model it is for."""

from typing import TYPE_CHECKING

from gas.lazy import submodules_of

if not TYPE_CHECKING:  # a checker sees the imports
    __getattr__ = submodules_of(__name__)
