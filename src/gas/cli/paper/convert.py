"""``gas paper convert``: published files into ours, once, without executing anything in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

import gas
from gas.arguments import number
from gas.cli.app import command, paper
from gas.cli.checks import FILE, GUIDANCE, argument, option
from gas.cli.options import Json, was_given
from gas.cli.screen import bar, note, print_json

# Options of students and of teacher sets; weights have none.
_STUDENT_OPTIONS = ("model", "schedule", "t_end", "guidance", "form")
_TEACHER_OPTIONS = ("model", "t_end", "guidance")


@dataclass(frozen=True, kw_only=True)
class StudentOptions:
    """The facts about a student or a teacher set that its file lacks."""

    panel: ClassVar[str] = "Students and teacher sets"

    model: Annotated[
        str,
        option("Model of the pairs or student: weights, preset:NAME, or the zoo's.", names=("--model", "-m")),
    ] = ""
    schedule: Annotated[str, option("Schedule of a student, without --model: edm, ldm, sd or vp.")] = ""
    t_end: Annotated[float, option("Time at which a student's sampling ends.")] = 1e-3
    guidance: Annotated[float, option("Guidance scale of the pairs or the student.", **GUIDANCE)] = 1.0
    form: Annotated[str, option("Kind of a student: gs, s4s (trained without theory), or auto.")] = "auto"

    def load_model(self) -> gas.models.Model | None:
        """Load the model that was named, if any, for runs that end at ``t_end``."""
        if not self.model:
            return None

        if self.model.startswith("preset:"):
            setup = gas.paper.preset_by_name(self.model.removeprefix("preset:"))
            return gas.models.runtime.ending_at(gas.paper.load_backbone(setup), self.t_end)
        known = self.model in gas.zoo.names()
        return gas.zoo.load(self.model) if known else gas.paper.load_published(self.model, t_end=self.t_end)


@command(
    "gas paper convert edm-cifar10-32x32-uncond-vp.pkl weights/cifar10.safetensors",
    group=paper,
    file="out",
    folder="out",
)
def convert(
    context: typer.Context,
    file: Annotated[Path, argument("Published .pkl, .ckpt or .pt file.", **FILE)],
    out: Annotated[Path, argument("A .safetensors or .json file, or a folder for teacher pairs.")],
    *,
    options: StudentOptions,
    json: Json = False,
) -> None:
    """Turn a published file into ours: weights to safetensors, a GAS student to a solver file, teachers to pairs.

    EDM networks, R3GAN discriminators, CompVis's latent diffusion, GAS students and teacher sets are recognized by
    their contents. Everything else, and everything that would run code, is refused.
    """
    number("t_end", options.t_end, "(0, 1)")
    if options.model and options.schedule:
        raise gas.UserError("--model and --schedule both say what a student is for: give one")
    kind, data = gas.paper.convert.recognize(file)
    contents, suffix = gas.paper.convert.KINDS[kind]
    if out.suffix != suffix:
        wanted = f"end in {suffix}" if suffix else "be a folder, without a suffix"
        raise gas.UserError(f"{file} holds {contents}, so the output should {wanted}, got {str(out)!r}")
    allowed = {"student": _STUDENT_OPTIONS, "teachers": _TEACHER_OPTIONS}.get(kind, ())
    for name in _STUDENT_OPTIONS:
        if name not in allowed and was_given(context, name):
            option = f"--{name.replace('_', '-')}"
            raise gas.UserError(f"{option} is not for {contents}, which {file} holds: leave it out")
    note(f"{file} holds {contents}")
    report: dict[str, Any] = {"file": str(file), "kind": kind, "out": str(out)}
    if kind == "student":
        report |= _convert_student(file, data, out, options)
    elif kind == "teachers":
        report |= _import_pairs(file, data, out, options)
    else:
        del data  # its small tensors; the weights are read again, whole
        report["numbers"] = gas.paper.convert.weights_to_safetensors(kind, file, out)
    note(f"wrote {out}")
    if json:
        print_json(report)


def _convert_student(file: Path, data: Any, out: Path, options: StudentOptions) -> dict[str, Any]:
    model, t_end = options.load_model(), options.t_end
    if (model is None) == (not options.schedule):
        raise gas.UserError("a student's file does not say what it is for: give --model, or --schedule alone")
    schedule = (
        gas.registry.named("schedule", options.schedule, gas.paper.convert.SCHEDULES)(t_end)
        if model is None
        else model.schedule
    )
    solver = gas.paper.student.read_student(file, schedule, t_end, data, form=options.form)
    is_gs = isinstance(solver, gas.GeneralizedSolver)
    if not is_gs:
        note(f"{file} was trained without theory: it is read as S4S with a corrector (--form gs if not)")
    training = {"imported": file.name, "sha256": gas.io.sha256(file), "solver": "gs" if is_gs else "s4s-pc"}
    gas.save(out, solver, model=model, guidance=options.guidance, training=training)
    report = {"nfe": solver.nfe, "t_end": t_end, "form": "gs" if is_gs else "s4s"}
    return report | ({"order": solver.order} if isinstance(solver, gas.GeneralizedSolver) else {})


def _import_pairs(file: Path, data: Any, out: Path, options: StudentOptions) -> dict[str, Any]:
    model = options.load_model()
    teachers = gas.paper.teacher_set.read_teacher_set(file, data)
    with bar("teacher pairs", len(teachers)) as running:
        for progress in gas.paper.teacher_set.import_pairs(
            teachers, out, model=model, guidance=options.guidance
        ):
            running.at(progress.done)
    return {"pairs": len(teachers), "shape": list(teachers.noise.shape[1:])}
