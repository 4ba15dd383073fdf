"""Which class a scheduler's config is of, where the config does not say so."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from gas.integrations.diffusers.library import diffusers

__all__ = ["config_of", "foreign_class"]

_DEFAULTS = "_use_default_values"


def config_of(scheduler: Any) -> Mapping[str, Any]:
    """Return a scheduler's config with its class's name, which a config has only once it was saved.

    Args:
        scheduler: ``pipe.scheduler``; of a class derived from one of diffusers', that one counts.
    """
    names = [
        kind.__name__
        for kind in type(scheduler).__mro__
        if kind.__name__.endswith("Scheduler") and kind.__module__.partition(".")[0] in ("diffusers", "gas")
    ]
    config: Mapping[str, Any] = scheduler.config
    return {**config, "_class_name": names[0]} if names else config


def foreign_class(config: Mapping[str, Any], served: Collection[str]) -> str | None:
    """Return the class of a config without ``_class_name`` if it is not among ``served``, or ``None``.

    A config that was never saved has every argument of its class, and more only where it was converted. So it is of a
    class whose arguments it has all of, and that no other such class adds arguments to. A config with fewer, written by
    hand, says nothing of its class.

    Raises:
        ValueError: when it may be of a served class or of another.
    """
    keys = frozenset(key for key in config if not key.startswith("_"))
    arguments = _arguments()
    whole = _DEFAULTS in config or keys in arguments.values()
    fitting = {name: taken for name, taken in arguments.items() if taken <= keys} if whole else {}
    largest = [
        name for name, taken in fitting.items() if not any(taken < other for other in fitting.values())
    ]
    foreign = [name for name in largest if name not in served]
    if foreign and len(foreign) < len(largest):
        raise ValueError(
            f"this scheduler config without _class_name may be of {foreign[0]}, which is not supported: pass the "
            "scheduler itself (pipe.scheduler), or add _class_name to its config"
        )
    return foreign[0] if foreign else None


@functools.cache
def _arguments() -> dict[str, frozenset[str]]:
    """The arguments of every scheduler of diffusers that is installed."""
    library = diffusers()
    kinds = {name: getattr(library, name) for name in dir(library) if name.endswith("Scheduler")}
    return {
        name: frozenset(inspect.signature(kind).parameters) - {"kwargs"}
        for name, kind in kinds.items()
        if isinstance(kind, type)
        and issubclass(kind, library.SchedulerMixin)
        and kind.__module__.startswith("diffusers.")  # ours is in its namespace too
    }
