"""``gas demo``: the main job from end to end, on a real model, in three minutes."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gas.arguments import MAX_ITERATIONS, MAX_NFE
from gas.cli.app import command
from gas.cli.checks import checked, output_folder
from gas.cli.loading import load_zoo
from gas.cli.options import Device, Json, Seed, ZooName
from gas.cli.screen import note, print_json
from gas.display import significant
from gas.workspace import claim, scratch

if TYPE_CHECKING:
    from torch import Tensor

    from gas.classical.registry import Classical
    from gas.evaluation.evaluator import Comparison
    from gas.learned.generalized import GeneralizedSolver
    from gas.pairs.dataset import Pairs
    from gas.table import Table
    from gas.training.distillation import Distilled
    from gas.zoo.model import ZooModel

__all__ = ["demo"]

TRAINED, VALIDATED, EVALUATED, FIRST_UNSEEN = 160, 64, 192, 50_000
STEPS = 48  # against the critic


@command("gas demo --nfe 4 --out demo", folder="out")
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for pairs, solver and pictures.", callback=checked(output_folder))
    ] = Path("demo"),
    nfe: Annotated[
        int, typer.Option(help="Network evaluations of the solver to learn.", min=1, max=MAX_NFE)
    ] = 4,
    iterations: Annotated[
        int,
        typer.Option(help="Gauss-Newton steps after the search for the start.", min=0, max=MAX_ITERATIONS),
    ] = 8,
    model: ZooName = "mnist",
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Learn a solver for a pretrained model, without a critic and with one, and show both beside the classical ones.

    Teacher pairs, the best classical start, training, the solver files, samples of unseen seeds, figures.
    """
    from gas.classical.registry import Classical
    from gas.cli.comparisons import print_comparisons
    from gas.cli.evaluate import taught
    from gas.cli.pairs import run_teacher
    from gas.pairs.dataset import read_pairs
    from gas.plotting.style import require_matplotlib
    from gas.solver_file import load, save

    began = time.perf_counter()
    require_matplotlib()
    output_folder(out)
    loaded = load_zoo(model, device)
    teacher = Classical("unipc-3-bh2", "log_snr", 20, loaded.t_end)
    note(f": {teacher.label}, {teacher.nfe} network calls a sample", label="1. Teacher", style="bold")
    folder, path = out / f"pairs-{loaded.name}", out / f"{loaded.name}-{nfe}.json"
    adversarial, state = path.with_stem(f"{path.stem}-gas"), path.with_suffix(".state")
    claim(out, [folder.name, path.name, adversarial.name, state.name, "samples.png", "times.png"])
    run_teacher(loaded, teacher, folder, range(TRAINED + VALIDATED))
    kept, held = read_pairs(folder, model=loaded).split(VALIDATED)

    note(f": the Generalized Solver, {nfe} calls a sample", label="2. Student", style="bold")
    result = _learn(loaded, kept, held, nfe, iterations, seed, state)
    told: dict[str, Any] = {
        "model": loaded,
        "teacher": teacher.config(),
        "loss": "l2",
        "starts": {nfe: result.start},
    }
    save(path, result.solver, **told)
    note(": the same solver goes on to learn from a discriminator", label="3. Critic", style="bold")
    save(adversarial, _against(loaded, kept, held, result.table(), seed), **told)
    learned = {}
    for name, file in (("GS", path), ("GAS", adversarial)):
        artefact = load(file)
        artefact.check(loaded)
        learned[name] = artefact.table(nfe)

    note(f" {FIRST_UNSEEN} to {FIRST_UNSEEN + EVALUATED - 1}", label="4. Unseen seeds", style="bold")
    unseen = taught(loaded, teacher, range(FIRST_UNSEEN, FIRST_UNSEEN + EVALUATED))
    rows = _show(out, loaded, unseen, _contestants(loaded, unseen, nfe, learned), teacher)
    if json:
        seeds = [FIRST_UNSEEN, FIRST_UNSEEN + EVALUATED]
        print_json({"model": loaded.name, "seeds": seeds, "rows": [asdict(row) for row in rows]})
    else:
        print_comparisons(f"{loaded.name}, {len(unseen)} unseen seeds", rows)
    note(
        f"solvers {path} and {adversarial} ({path.stat().st_size / 1000:.1f} kB each), "
        f"pictures {out}/samples.png and {out}/times.png"
    )
    note(f"done in {time.perf_counter() - began:.0f} s")


def _learn(
    model: ZooModel, pairs: Pairs, validation: Pairs, nfe: int, iterations: int, seed: int, state: Path
) -> Distilled:
    """Learn within a demo's time: three candidates, few pairs a step."""
    from gas.cli.follow import show
    from gas.training.distillation import STATE, distill
    from gas.training.gauss_newton import GaussNewton
    from gas.training.initialization import StartSearch

    config = GaussNewton(iterations=iterations, batch=32, growth=1.0, seed=seed)
    short_run = GaussNewton(iterations=3, batch=10, validate_every=3, seed=seed)
    search = StartSearch(validation_pairs=16, candidates=3, short_run=short_run)
    try:
        with scratch(state, STATE):
            reports = distill(model, pairs, validation, nfe, config=config, search=search, state=state)
            return show(reports, model, nfe)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"State is in {state}; the same command goes on from there.") from None


def _against(model: ZooModel, pairs: Pairs, validation: Pairs, table: Table, seed: int) -> GeneralizedSolver:
    """Go on against a critic within a demo's time: a third of the usual steps, on few pairs."""
    from gas.cli.screen import bar
    from gas.learned.generalized import GeneralizedSolver
    from gas.training.adversarial.setup import GAS, adversary_for, fit_adversarial

    solver = GeneralizedSolver.from_table(model.schedule, table, model.t_end)
    config = replace(GAS, iterations=STEPS, batch=16, validate_every=STEPS // 4, seed=seed)
    adversary = adversary_for(model, pairs, config=config, samples=EVALUATED, seed=seed)
    with bar("critic", STEPS) as running:
        for record in fit_adversarial(adversary, solver, model, pairs, validation):
            share = record.validation_loss / max(record.start_loss, 1e-12)
            running.at(record.iteration, f"{share:.0%} of GS's distance to the teacher's distribution")
    return solver


def _contestants(
    model: ZooModel, pairs: Pairs, nfe: int, learned: dict[str, Table]
) -> dict[str, tuple[str, Table]]:
    """The solvers of the picture, by name, with the classical ones' grids and their tables."""
    from gas.classical.registry import Classical
    from gas.training.ranking import best_classical

    common = Classical("dpmpp-3m", "log_snr", nfe, model.t_end)
    tables = {"DPM-Solver++(3M)": (common.label, common.table(model.schedule))}
    for name, solver in (("UniPC-3", "unipc-3-bh2"), ("iPNDM-3", "ipndm-3")):
        best = best_classical(model, pairs, nfe, [solver])
        tables[name] = (best.classical.label, best.table)
    return {**tables, **{name: ("learned", table) for name, table in learned.items()}}


def _show(
    out: Path,
    model: ZooModel,
    pairs: Pairs,
    tables: dict[str, tuple[str, Table]],
    teacher: Classical,
    columns: int = 10,
) -> list[Comparison]:
    """Measure every table, draw the first seeds of each and where each asks; return the measurements."""
    from gas.evaluation.evaluator import Yardstick
    from gas.evaluation.sampler import run
    from gas.models.protocol import data_range_of
    from gas.plotting.samples import sample_grid
    from gas.plotting.times import times_plot

    rows: list[Comparison] = []
    images: list[tuple[str, Tensor]] = []
    # Pair by pair alone: a Frechet distance of so few samples is mostly bias.
    ruler = Yardstick(pairs, data_range=data_range_of(model))
    for name, (detail, table) in tables.items():
        made = run(model, pairs, table)
        row = ruler.measure(name, made, table.nfe)
        rows.append(row)
        images.append(
            (f"{name}\n{detail}\n{table.nfe} calls, MSE {significant(row.mse)}", made[:columns].clamp(-1, 1))
        )
    rows.append(ruler.measure("teacher", pairs.target, teacher.nfe))
    images.append((f"Teacher\n{teacher.label}\n{teacher.nfe} calls", pairs.target[:columns].clamp(-1, 1)))
    nfe = rows[0].nfe
    sample_grid(
        out / "samples.png",
        images,
        title=f"The same network, the same noise, {nfe} network calls",
        note=f"{model.name}: the first {columns} unseen seeds; MSE to the teacher over {len(pairs)}.",
        highlight=list(tables).index("GS"),
    )
    times_plot(
        out / "times.png",
        [(name, table.times.tolist(), []) for name, (_, table) in tables.items()],
        model.schedule,
        highlight=list(tables).index("GS"),
    )
    return rows
