"""A latent, guided diffusion model and a flow-matching one of MNIST, as diffusers pipelines; need diffusers."""

from typing import TYPE_CHECKING

from gas.lazy import submodules_of

if not TYPE_CHECKING:  # a checker sees the imports
    __getattr__ = submodules_of(__name__)
