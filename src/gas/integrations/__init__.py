"""Other programs' forms of a table: each file needs the program it is named after only when it is used."""

from typing import TYPE_CHECKING

from gas.lazy import submodules_of

if not TYPE_CHECKING:  # a checker sees the imports
    __getattr__ = submodules_of(__name__)
