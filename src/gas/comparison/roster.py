"""Who takes part in a comparison, by name."""

from __future__ import annotations

from gas.catalogue import NAMED_GRIDS, SOLVERS
from gas.comparison.contestants import SCHEDULES, Adversarial, Contestant, Learned, OnGrid
from gas.learned import SOLVERS as KINDS
from gas.names import named

__all__ = ["FAMILIES", "contestant_by_name"]

# Solvers of one name and several orders or variants, of which the validation pairs choose.
FAMILIES: dict[str, tuple[str, ...]] = {
    name: tuple(solver for solver in SOLVERS if solver.startswith(f"{name}-"))
    for name in ("dpmpp", "unipc", "ipndm", "deis")
}
_ALL = {"classical": tuple(SOLVERS)}
_LABELS = {
    "classical": "best classical",
    "ddim": "DDIM = DPM-Solver++(1M)",
    "dpmpp": "DPM-Solver++",
    "dpmpp-2m": "DPM-Solver++(2M)",
    "dpmpp-3m": "DPM-Solver++(3M)",
    "dpmpp-3m-corrected": "DPM-Solver++(3M), corrected",
    "unipc": "UniPC",
    "ipndm": "iPNDM",
    "deis": "DEIS",
    "heun": "Heun",
    "gits": "GITS",
    "dmn": "DMN",
    "ld3": "LD3",
    "s4s": "S4S",
    "s4s-pc": "S4S + PC",
    "s4s-alt": "S4S-Alt",
    "bns": "BNS",
    "gs-free": "GS without theory",
    "gs": "GS",
    "gas": "GAS",
}


def contestant_by_name(spec: str, start: str = "best") -> Contestant:
    """Return what a name asks for.

    - ``SOLVER`` of :data:`gas.catalogue.SOLVERS`, or a family of them (``unipc``): on the grid that is best for it;
    - ``SOLVER/GRID``: on that grid, ``SOLVER/gits`` on the one that GITS finds;
    - ``gits``, ``dmn`` or a published grid: whichever classical solver is best on it;
    - ``classical``: the best of all solvers and grids;
    - ``gs``, ``ld3`` and the other kinds of :data:`gas.learned.SOLVERS`, or ``gas``, with ``@START`` from a start of
      its own.

    Args:
        spec: the name.
        start: of learned solvers that do not say.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    name, _, own = spec.partition("@")
    if name == "gas":
        return Adversarial(spec, _labelled(name, own), _learned("gs", own, start))
    if name in KINDS:
        return _learned(name, own, start)
    if own:
        raise ValueError(f"only learned solvers have a start (NAME@START), got {spec!r}")
    solver, slash, grid = spec.partition("/")
    if slash:
        named("grid", grid, {**NAMED_GRIDS, "gits": None})
    elif solver in SCHEDULES:
        return OnGrid(spec, _LABELS.get(spec, spec), tuple(SOLVERS), spec)
    groups = {**{one: (one,) for one in SOLVERS}, **FAMILIES, **_ALL}
    everything = {**groups, **dict.fromkeys((*SCHEDULES, *KINDS, "gas"), ())}
    solvers = groups.get(solver) or named("solver", solver, everything)
    label = _LABELS.get(solver, solver) + (f" / {grid}" if grid else "")
    return OnGrid(spec, label, tuple(solvers), grid)


def _learned(kind: str, own: str, start: str) -> Learned:
    return Learned(f"{kind}@{own}" if own else kind, _labelled(kind, own), kind, own or start)


def _labelled(name: str, own: str) -> str:
    return _LABELS.get(name, name) + (f", {own} start" if own else "")
