"""Whether a solver fits the pipeline it is put into: what differs, in words."""

from __future__ import annotations

from collections.abc import Sequence

from gas.artefact import Artefact
from gas.integrations.diffusers.plan import same_schedule
from gas.integrations.diffusers.process import PREDICTIONS, Process

__all__ = ["misfits"]


def misfits(
    artefact: Artefact | None,
    process: Process,
    *,
    guidance: float | None = None,
    shift: float | None = None,
    sample_shape: Sequence[int] | None = None,
) -> list[str]:
    """Return each thing in which the pipeline is not what the solver was made for; what is not known is not compared.

    Args:
        artefact: the solver.
        process: the pipeline's.
        guidance: the guidance scale that the pipeline is called with.
        shift: a flow's shift of resolution in this call.
        sample_shape: of one state, without the batch.
    """
    if artefact is None:
        return []
    document, model = artefact.document, artefact.document.model or {}
    wrong = []
    # An EDM network is told levels, so that any VP schedule of times will do.
    schedule = None if process.kind == "edm" else artefact.schedule
    if schedule is not None and not same_schedule(schedule, process.schedule):
        wrong.append(f"schedule {schedule.config()['kind']} with other noise levels than the pipeline's")
    prediction = model.get("prediction")
    if prediction in PREDICTIONS and prediction != process.prediction:
        wrong.append(f"prediction {prediction} (this pipeline: {process.prediction})")
    if guidance is not None and abs(guidance - document.guidance) > 1e-6:
        wrong.append(f"guidance {document.guidance:g} (this pipeline: {guidance:g})")
    if shift is not None and "shift" in model and abs(float(model["shift"]) - shift) > 1e-3 * shift:
        wrong.append(f"shift {float(model['shift']):g} (this pipeline: {shift:g})")
    shape = model.get("sample_shape")
    if sample_shape is not None and shape is not None and list(shape) != list(sample_shape):
        wrong.append(f"sample shape {tuple(shape)} (this pipeline: {tuple(sample_shape)})")
    return wrong
