"""Parameters that prove the same in less time, and the exhaustive ones, which are slow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import pytest


def covering(
    *,
    step: int = 1,
    indirect: Sequence[str] = (),
    where: Callable[..., bool] = lambda *values: True,
    **axes: Mapping[str, Any] | Iterable[Any],
) -> pytest.MarkDecorator:
    """Parametrize by a full product; all but as many combinations as the longest axis has values are slow.

    Combination n takes value ``n % len(axis)`` of every axis, so that each value of each axis is in a fast one; with
    a step, fewer.

    Args:
        step: only every ``step``-th of these is fast.
        indirect: axes that are parameters of a fixture.
        where: whether a combination exists.
        **axes: values by name of the argument; the keys of a mapping are their labels.
    """
    values = [list(axis.values()) if isinstance(axis, Mapping) else list(axis) for axis in axes.values()]
    labels = [
        list(axis)
        if isinstance(axis, Mapping)
        else [getattr(value, "__name__", str(value)) for value in axis]
        for axis in axes.values()
    ]
    fast = {tuple(n % len(axis) for axis in values) for n in range(0, max(map(len, values)), step)}
    cases = []
    for index in product(*(range(len(axis)) for axis in values)):
        chosen = [axis[i] for axis, i in zip(values, index, strict=True)]
        if where(*chosen):
            label = "-".join(axis[i] for axis, i in zip(labels, index, strict=True))
            marks = () if index in fast else pytest.mark.slow
            cases.append(pytest.param(*chosen, id=label, marks=marks))
    return pytest.mark.parametrize(list(axes), cases, indirect=list(indirect))


def thinned(cases: Sequence[Any], step: int) -> list[Any]:
    """Cases of a corpus, of which every ``step``-th is fast."""
    return [pytest.param(case, marks=pytest.mark.slow if n % step else ()) for n, case in enumerate(cases)]


# The Jacobian along one random direction, and all of it.
gradcheck_modes = pytest.mark.parametrize(
    "fast_mode", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["projected", "full"]
)
