"""Model cards of saved schedulers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gas.display import markdown, markdown_table, quoted_string, significant
from gas.io import read_text
from gas.pipelines.process import Process
from gas.solver_file import Artefact
from gas.solver_schema import Document

# ``owner/name`` on the hub.
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# A card with a hundred NFE and as many measurements has 0.2 MB.
_CARD_BYTES = 1 << 20

_TAGS = ["diffusers", "gas-solver", "scheduler", "few-step-sampling"]


def model_card(
    process: Process,
    artefact: Artefact | None,
    *,
    base_model: str | None = None,
    picture: str | None = None,
    name: str = "this-folder",
    config: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a ``README.md`` in the hub's form.

    Args:
        artefact: the solver, ``None`` for classical ones only.
        base_model: name of the model on the hub; default the name in the solver file, if it is of the form
            ``owner/name``.
        picture: file name of a picture beside the card.
        name: argument of ``from_pretrained`` in the card's example.
        config: of the scheduler, to name the class of diffusers that can replace it.
    """
    document = artefact.document if artefact else None
    model = dict(document.model or {}) if document else {}
    if base_model is None and _REPOSITORY.fullmatch(str(model.get("name"))):
        base_model = str(model["name"])
    front = [f"base_model: {quoted_string(base_model)}"] if base_model else []
    front += ["library_name: diffusers", "tags:", *[f"- {tag}" for tag in _TAGS]]
    parts = [
        "---\n" + "\n".join(front) + "\n---",
        f"# {'Few-step solver' if artefact else 'Classical solvers'}"
        + (f" for {markdown(base_model)}" if base_model else ""),
        *([f"![Samples]({quote(picture)})"] if picture else []),
        _usage(name, artefact),
        _replacement(stand_in(process, config or {})),
        "## When it applies\n\n" + markdown_table(["", "made for"], _model_rows(process, artefact, model)),
    ]
    if document:
        rows = _provenance_rows(document.model_dump(mode="json"))
        parts.append("## How it was made\n\n" + markdown_table(["", ""], rows))
        if any(entry.measured for entry in document.solvers):
            parts.append("## Measured\n\n" + _measurements(document))
    return "\n\n".join(parts) + "\n"


def may_overwrite(path: Path) -> bool:
    """Whether there is no card yet, or one of this library: a user's own text stays."""
    try:
        return not path.exists() or "- gas-solver" in read_text(path, _CARD_BYTES).splitlines()
    except (OSError, ValueError):  # no regular file, too large, not UTF-8
        return False


def stand_in(process: Process, config: Mapping[str, Any]) -> str:
    """Return the class of diffusers that loads the same ``scheduler_config.json`` for the same model."""
    if process.kind == "flow":
        return "UniPCMultistepScheduler" if "flow_shift" in config else "FlowMatchEulerDiscreteScheduler"
    if process.kind == "vp":
        return "DDIMScheduler"
    if config.get("timestep_type") == "continuous":
        return "EulerDiscreteScheduler"
    return "CosineDPMSolverMultistepScheduler" if process.level == "atan" else "EDMEulerScheduler"


def _usage(name: str, artefact: Artefact | None) -> str:
    construction = f"gas.GASScheduler.from_pretrained({quoted_string(name)})"
    if artefact and not artefact.nfes:  # in a modular pipeline alone
        code = (
            f"from gas.integrations.diffusers.guider import BranchGuider\n\nscheduler = {construction}\n"
            "pipe.update_components(scheduler=scheduler, guider=BranchGuider(scheduler))\n"
            'image = pipe(prompt=prompt, negative_prompt="", output="images", '
            f"num_inference_steps={artefact.forwards[0]})[0]"
        )
    else:
        nfe = artefact.nfes[0] if artefact else 8
        code = f"\npipe.scheduler = {construction}\nimage = pipe(prompt, num_inference_steps={nfe}).images[0]"
    return (
        "gas-solver is not on a package index: install it from a checkout of its repository, "
        f"`pip install '.[diffusers]'`.\n\n```python\nimport gas\n{code}\n```"
    )


def _replacement(cls: str) -> str:
    return (
        "Without gas-solver, a pipeline that was saved with this scheduler loads with one of diffusers' own in its "
        "place, which needs more steps:\n\n"
        f"```python\nfrom diffusers import DiffusionPipeline, {cls}\n\n"
        'pipe = DiffusionPipeline.from_pretrained("pipeline-folder", scheduler=None)\n'
        f'pipe.scheduler = {cls}.from_pretrained("pipeline-folder", subfolder="scheduler")\n```'
    )


def _model_rows(process: Process, artefact: Artefact | None, model: Mapping[str, Any]) -> list[list[str]]:
    rows = [["process", process.kind], ["prediction", process.prediction]]
    if artefact:
        counts = {
            "network evaluations (NFE)": artefact.nfes,
            "forward passes, with branches": artefact.forwards,
        }
        rows += [[name, ", ".join(map(str, several))] for name, several in counts.items() if several]
        document = artefact.document
        rows.append(["guidance scale", document.served])
        passes = [document.forward_passes(artefact.entry(nfe)) for nfe in artefact.nfes]
        rows += [["forward passes", ", ".join(map(str, passes))]] if all(passes) else []
    rest = {key: value for key, value in model.items() if key not in ("name", "prediction")}
    return rows + [[_words(key), _short(value)] for key, value in rest.items()]


def _provenance_rows(document: Mapping[str, Any]) -> list[list[str]]:
    rows = [["loss", document["loss"]]] if document["loss"] else []
    for part in ("teacher", "training", "versions"):
        rows += [[f"{part}: {_words(key)}", _short(value)] for key, value in (document[part] or {}).items()]
    entries = [entry for entry in document["solvers"] if entry["branches"] is None]
    starts = {entry["nfe"]: entry["start"] for entry in entries if entry["start"]}
    return rows + [[f"started from, NFE {nfe}", start] for nfe, start in starts.items()]


def _measurements(document: Document) -> str:
    entries = document.solvers
    names = sorted({name for entry in entries for name in entry.measured})
    guided = document.scales != (1.0, 1.0)
    rows = [
        [
            str(entry.nfe),
            *([str(document.forward_passes(entry))] if guided else []),
            *(significant(entry.measured[name]) if name in entry.measured else "" for name in names),
        ]
        for entry in sorted(entries, key=lambda entry: entry.nfe)
        if entry.branches is None
    ]
    return markdown_table(["NFE", *(["forward passes"] if guided else []), *map(_words, names)], rows)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 72 else text[:69] + "..."
