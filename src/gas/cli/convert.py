"""``gas convert``: published files into ours, once, without executing anything in them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gas.cli.app import command
from gas.cli.checks import GUIDANCE, checked, existing_file, is_in, output_file, output_folder, registered
from gas.cli.options import Json, was_given
from gas.cli.screen import bar, note, print_json
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.models.protocol import Model

__all__ = ["convert"]


# Options of a student, and those of teacher sets.
_STUDENTS = ("model", "schedule", "t_end", "guidance", "form")
_TEACHERS = ("model", "t_end", "guidance")


def _schedules() -> Iterable[str]:
    from gas.paper.convert import SCHEDULES

    return SCHEDULES


@command("gas convert edm-cifar10-32x32-uncond-vp.pkl weights/cifar10.safetensors", file="out", folder="out")
def convert(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="A published .pkl, .ckpt or .pt file.", callback=checked(existing_file))
    ],
    out: Annotated[Path, typer.Argument(help="A .safetensors or .json file, or a folder for teacher pairs.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="What pairs or a student are for: weights, preset:NAME, or a zoo model."
        ),
    ] = "",
    schedule: Annotated[
        str,
        typer.Option(
            help="A student's schedule without --model: edm, ldm, sd or vp.",
            callback=checked(registered("schedule", _schedules)),
        ),
    ] = "",
    t_end: Annotated[
        float,
        typer.Option(
            help="Time that a student's sampling ends at.", callback=checked(is_in("t_end", "(0, 1)"))
        ),
    ] = 1e-3,
    guidance: Annotated[
        float,
        typer.Option(
            help="Guidance scale that pairs or a student were made with.",
            callback=checked(is_in("guidance", GUIDANCE)),
        ),
    ] = 1.0,
    form: Annotated[
        str,
        typer.Option(
            help="A student's: gs, s4s (trained without theory), or auto: by its numbers.",
            callback=checked(registered("form", lambda: ("auto", "gs", "s4s"))),
        ),
    ] = "auto",
    json: Json = False,
) -> None:
    """Turn a published file into ours: weights to safetensors, a GAS student to a solver file, teachers to pairs.

    EDM networks, R3GAN discriminators, CompVis's latent diffusion, GAS students and teacher sets are told apart by
    what they hold. Everything else, and everything that would run code, is refused.
    """
    from gas.paper.convert import KINDS, recognise, weights_to_safetensors

    if model and schedule:
        raise UserError("--model and --schedule both say what a student is for: give one")
    (output_file() if out.suffix else output_folder)(out)
    kind, data = recognise(file)
    what, suffix = KINDS[kind]
    if out.suffix != suffix:
        wanted = f"end in {suffix}" if suffix else "be a folder, without a suffix"
        raise UserError(f"{file} holds {what}, so the output should {wanted}, got {str(out)!r}")
    taken = {"student": _STUDENTS, "teachers": _TEACHERS}.get(kind, ())
    for name in _STUDENTS:
        if name not in taken and was_given(context, name):
            raise UserError(f"--{name.replace('_', '-')} is not for {what}, which {file} holds: leave it out")
    note(f"{file} holds {what}")
    report: dict[str, Any] = {"file": str(file), "kind": kind, "out": str(out)}
    if kind == "student":
        report |= _student(file, data, out, model, schedule, t_end, guidance, form)
    elif kind == "teachers":
        report |= _teachers(file, data, out, model, t_end, guidance)
    else:
        del data  # its small tensors; the weights are read anew, whole
        report["numbers"] = weights_to_safetensors(kind, file, out)
    note(f"wrote {out}")
    if json:
        print_json(report)


def _student(
    file: Path,
    data: Any,
    out: Path,
    model: str,
    schedule: str,
    t_end: float,
    guidance: float,
    form: str,
) -> dict[str, Any]:
    from gas.io import sha256
    from gas.learned.generalized import GeneralizedSolver
    from gas.paper.convert import SCHEDULES
    from gas.paper.student import read_student
    from gas.registry import named
    from gas.solver_file import save

    loaded = _model(model, t_end) if model else None
    if (loaded is None) == (not schedule):
        raise UserError("a student's file does not say what it is for: give --model, or --schedule alone")
    known = named("schedule", schedule, SCHEDULES)(t_end) if loaded is None else loaded.schedule
    solver = read_student(file, known, t_end, data, form=form)
    is_gs = isinstance(solver, GeneralizedSolver)
    if not is_gs:
        note(
            f"{file} was trained without theory: it is read as S4S with a corrector (--form gs if it is not)"
        )
    training = {"imported": file.name, "sha256": sha256(file), "solver": "gs" if is_gs else "s4s-pc"}
    save(out, solver, model=loaded, guidance=guidance, training=training)
    told = {"nfe": solver.nfe, "t_end": t_end, "form": "gs" if is_gs else "s4s"}
    return told | ({"order": solver.order} if isinstance(solver, GeneralizedSolver) else {})


def _teachers(file: Path, data: Any, out: Path, model: str, t_end: float, guidance: float) -> dict[str, Any]:
    from gas.paper.teacher_set import import_pairs, read_teacher_set

    loaded = _model(model, t_end) if model else None
    teachers = read_teacher_set(file, data)
    with bar("teacher pairs", len(teachers)) as running:
        for progress in import_pairs(teachers, out, model=loaded, guidance=guidance):
            running.at(progress.done)
    return {"pairs": len(teachers), "shape": list(teachers.noise.shape[1:])}


def _model(name: str, t_end: float) -> Model:
    from gas import zoo
    from gas.paper.published import open_model

    if name.startswith("preset:"):
        from gas.paper.backbone import ending_at, open_backbone
        from gas.paper.presets import preset_by_name

        return ending_at(open_backbone(preset_by_name(name.removeprefix("preset:"))), t_end)
    return zoo.load(name) if name in zoo.names() else open_model(name, t_end=t_end)
