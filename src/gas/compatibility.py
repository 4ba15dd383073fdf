"""Whether a solver fits a model or pipeline: the facts that it was made for against another's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gas.display import brief
from gas.schedule import Schedule, same_schedule, schedule_from_config

if TYPE_CHECKING:
    from gas.models.protocol import Model
    from gas.solver_schema import Document

__all__ = ["differences", "model_differences"]

# Facts of a model that do not decide its numbers: a solver learned at one precision serves at another.
_RUNTIME_FACTS = ("precision", "compiled")
# Facts that identify a network, or a copy of it, among those that one solver may serve.
_IDENTITY_FACTS = ("name", "sha256", "quantize")


def model_differences(document: Document, model: Model, guidance: float, *, transfer: bool) -> list[str]:
    """Return the :func:`differences` of a model; with ``transfer``, which network it is does not count."""
    ignored = (*_RUNTIME_FACTS, *(_IDENTITY_FACTS if transfer else ()))
    facts = {key: value for key, value in model.fingerprint().items() if key not in ignored}
    return differences(document, facts, model.schedule, guidance)


def differences(
    document: Document,
    facts: Mapping[str, Any],
    schedule: Schedule | None,
    guidance: float | None,
    user: str = "this model",
) -> list[str]:
    """Return in words each respect in which a model or pipeline is not the one that a solver was made for.

    A fact that either side does not state is not compared.

    Args:
        document: of the solver's file.
        facts: of the model: ``name``, ``sha256``, ``prediction``, ``sample_shape``, ``shift`` and others.
        schedule: its forward process; the same when the half log-SNR agrees (:func:`gas.schedule.same_schedule`).
        guidance: the guidance scale that it is called with.
        user: what the facts are of, for messages.
    """
    expected = document.model or {}
    differing = [
        f"{key.replace('_', ' ')} {_shown(expected[key])} ({user}: {_shown(value)})"
        for key, value in facts.items()
        if key in expected and not _same(key, expected[key], value)
    ]
    stated = None if document.schedule is None else schedule_from_config(document.schedule)
    if schedule is not None and stated is not None and not same_schedule(stated, schedule):
        differing.append(f"schedule {stated.config()['kind']} with other noise levels than {user}'s")
    if guidance is not None and not document.serves(guidance):
        differing.append(f"guidance {document.served} ({user}: {guidance:g})")
    return differing


def _same(key: str, expected: Any, value: Any) -> bool:
    if key == "shift" and None not in (expected, value):  # a flow's shift, which pipelines compute in float32
        return bool(abs(float(expected) - value) <= 1e-3 * abs(value))
    if isinstance(expected, (list, tuple)) and isinstance(value, (list, tuple)):
        return list(expected) == list(value)
    return bool(expected == value)


def _shown(value: Any) -> str:
    """Return a fact for a message; of a long text, such as a hash, the beginning."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        value = tuple(value)
    text = value[:25] if isinstance(value, str) else brief(value)
    return text if len(text) <= 24 else text[:12] + "..."
