"""What each choice in adversarial training is worth: the same solver, trained with one thing changed at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gas.adversary import GAS, adversary_for
from gas.distill import Distilled, against, distill
from gas.learned import GeneralizedSolver
from gas.model import Model
from gas.names import named
from gas.optimizers import Adam, GaussNewton
from gas.pairs import Pairs
from gas.race import Race
from gas.table import Table, table_of

__all__ = ["ABLATIONS", "Variant", "ablate", "ablation_by_name"]


@dataclass(frozen=True)
class Variant:
    """One training of an ablation.

    Args:
        label: what it is called.
        adversary: settings of :func:`gas.adversary_for` that differ from the usual ones; none trains without critics.
        share: of the training pairs, in (0, 1].
        theory: as in :class:`gas.GeneralizedSolver`.
    """

    label: str
    adversary: Mapping[str, Any] | None = field(default_factory=dict)
    share: float = 1.0
    theory: bool = True


# By the question that is asked; the objective's is that of arXiv 2510.17699, Table 6.
ABLATIONS: dict[str, tuple[Variant, ...]] = {
    "objective": (Variant("relativistic"), Variant("classic", {"objective": "classic"})),
    "weight": tuple(Variant(f"w = {w:g}", {"weight": w}) for w in (0.0, 0.1, 1.0, 10.0, 100.0)),
    "balance": tuple(Variant(f"balance {b:g}", {"balance": b}) for b in (0.0, 2.5, 10.0, 40.0)),
    "penalty": tuple(Variant(f"penalty {p:g}", {"penalty": p}) for p in (0.2, 2.0, 20.0)),
    "pairs": tuple(Variant(f"{share:.4g} of the pairs", share=share) for share in (0.125, 0.25, 0.5, 1.0)),
    "pairing": (Variant("independent"), Variant("paired", {"pairing": "paired"})),
    "theory": (Variant("with theory", None), Variant("without theory", None, theory=False)),
}


def ablation_by_name(name: str) -> tuple[Variant, ...]:
    """Return the variants of :data:`ABLATIONS`.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    return named("ablation", name, ABLATIONS)


def ablate(
    model: Model,
    pairs: Pairs,
    validation: Pairs,
    nfe: int,
    variants: tuple[Variant, ...],
    *,
    config: Adam = GAS,
    race: Race | None = None,
    finish: GaussNewton | None = None,
    seed: int = 0,
) -> Iterator[tuple[Variant, Table]]:
    """Train each variant, from the same start where pairs and theory are the same, and yield its table.

    Args:
        model: with ``features(x)``, as :func:`gas.adversary_for` asks.
        pairs: teacher pairs to train on.
        validation: teacher pairs to choose by, of other seeds.
        nfe: network evaluations.
        variants: of :data:`ABLATIONS`, or one's own.
        config: settings of Adam against the critic.
        race: how the start is chosen.
        finish: settings of the training before the critic.
        seed: of the critic's first weights.

    Raises:
        ValueError: for settings out of range, or fewer pairs than two batches.
    """
    started: dict[tuple[float, bool], Table] = {}
    for variant in variants:
        some = pairs.subset(slice(0, max(1, round(variant.share * len(pairs)))))
        key = (variant.share, variant.theory)
        if key not in started:
            *_, gs = distill(model, some, validation, nfe, config=finish, race=race, theory=variant.theory)
            if not isinstance(gs, Distilled):
                raise RuntimeError("a training ended without its result")
            started[key] = gs.table()
        adversary = None
        if variant.adversary is not None:
            adversary = adversary_for(model, some, config=config, seed=seed, **variant.adversary)
        if adversary is None or not adversary.speaks():
            yield variant, started[key]
            continue
        solver = GeneralizedSolver.from_table(
            model.schedule, started[key], model.t_end, theory=variant.theory
        )
        for _ in against(adversary, solver, model, some, validation):
            pass
        yield variant, table_of(solver)
