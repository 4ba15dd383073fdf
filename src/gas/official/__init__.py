"""Published files read as data: pickles that run nothing, students and teacher sets, and our form of each."""

from typing import TYPE_CHECKING

from gas.lazy import submodules_of

if not TYPE_CHECKING:  # a checker sees the imports
    __getattr__ = submodules_of(__name__)
