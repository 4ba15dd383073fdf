"""``gas demo``: the main job from end to end, on a real model, in three minutes."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from gas.arguments import MAX_ITERATIONS, MAX_NFE
from gas.cli.app import command, resumable
from gas.cli.checks import option, output_folder
from gas.cli.loading import load_zoo
from gas.cli.options import Device, Json, Seed, ZooName, require_matplotlib
from gas.cli.screen import bar, note, print_json
from gas.display import significant
from gas.workspace import claim, scratch

if TYPE_CHECKING:
    from gas.classical.registry import Classical
    from gas.evaluation.evaluator import SolverMetrics
    from gas.learned.generalized import GeneralizedSolver
    from gas.pairs.dataset import Pairs
    from gas.table import Table
    from gas.training.distillation import Distilled
    from gas.zoo.model import ZooModel

__all__ = ["demo"]

# Seeds of training, validation and evaluation, and the first seed of the evaluation.
TRAINED, VALIDATED, EVALUATED, FIRST_UNSEEN = 160, 64, 192, 50_000
# A third of the usual steps against the discriminator, which on these models shows what it does.
GAS_STEPS = 48
# Samples a row of the picture.
_COLUMNS = 10


@command("gas demo --nfe 4 --out demo", folder="out")
def demo(
    out: Annotated[Path, option("Folder for pairs, solvers and pictures.", output_folder)] = Path("demo"),
    nfe: Annotated[int, option("NFE of the solver to learn.", min=1, max=MAX_NFE)] = 4,
    iterations: Annotated[
        int, option("Gauss-Newton steps after the choice of the start.", min=0, max=MAX_ITERATIONS)
    ] = 8,
    model: ZooName = "mnist",
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Learn a solver for a pretrained model, without and with a discriminator, and show both beside classical ones.

    Teacher pairs, the best classical start, training, the solver files, samples of unseen seeds, figures.
    """
    from gas.classical.registry import Classical
    from gas.cli.evaluation import print_metrics, teacher_progress
    from gas.cli.pairs import run_teacher
    from gas.evaluation.sampler import teacher_pairs
    from gas.pairs.dataset import read_pairs

    began = time.perf_counter()
    require_matplotlib()
    output_folder(out)
    network = load_zoo(model, device)
    teacher = Classical("unipc-3-bh2", "log_snr", 20, network.t_end)
    note(f": {teacher.label}, {teacher.nfe} network calls a sample", label="1. Teacher", style="bold")
    folder, path = out / f"pairs-{network.name}", out / f"{network.name}-{nfe}.json"
    files = {"GS": path, "GAS": path.with_stem(f"{path.stem}-gas")}
    state = path.with_suffix(".state")
    claim(out, [folder.name, *(file.name for file in files.values()), state.name, "samples.png", "times.png"])
    run_teacher(network, teacher, folder, range(TRAINED + VALIDATED))
    pairs, validation = read_pairs(folder, model=network).split(VALIDATED)
    tables = _learn_both(network, teacher, pairs, validation, files, nfe, iterations, seed, state)
    stop = FIRST_UNSEEN + EVALUATED
    note(f" {FIRST_UNSEEN} to {stop - 1}", label="4. Unseen seeds", style="bold")
    unseen = teacher_pairs(network, teacher, range(FIRST_UNSEEN, stop), progress=teacher_progress)
    rows = _measure(out, network, unseen, _solvers(network, unseen, nfe, tables), teacher)
    if json:
        seeds = [FIRST_UNSEEN, stop]
        print_json({"model": network.name, "seeds": seeds, "rows": [asdict(row) for row in rows]})
    else:
        print_metrics(f"{network.name}, {len(unseen)} unseen seeds", rows)
    note(
        f"solvers {' and '.join(map(str, files.values()))} ({path.stat().st_size / 1000:.1f} kB each), "
        f"pictures {out}/samples.png and {out}/times.png"
    )
    note(f"done in {time.perf_counter() - began:.0f} s")


def _learn_both(
    model: ZooModel,
    teacher: Classical,
    pairs: Pairs,
    validation: Pairs,
    files: dict[str, Path],
    nfe: int,
    iterations: int,
    seed: int,
    state: Path,
) -> dict[str, Table]:
    """Learn GS, then GAS from it; save both, and return their tables as the files have them."""
    from gas.solver_file import load, save

    note(f": the Generalized Solver, {nfe} calls a sample", label="2. Student", style="bold")
    result = _learn(model, pairs, validation, nfe, iterations, seed, state)
    kwargs: dict[str, Any] = {
        "model": model,
        "teacher": teacher.config(),
        "loss": "l2",
        "starts": {nfe: result.start},
    }
    save(files["GS"], result.solver, **kwargs)
    note(": the same solver goes on to learn from a discriminator", label="3. Critic", style="bold")
    save(files["GAS"], _learn_adversarial(model, pairs, validation, result.table(), seed), **kwargs)
    tables = {}
    for name, file in files.items():
        artefact = load(file)
        artefact.check(model)
        tables[name] = artefact.table(nfe)
    return tables


def _learn(
    model: ZooModel, pairs: Pairs, validation: Pairs, nfe: int, iterations: int, seed: int, state: Path
) -> Distilled:
    """Learn GS in a demo's time: three starts, few pairs a step."""
    from gas.cli.follow import show
    from gas.training.distillation import STATE, distill
    from gas.training.gauss_newton import GaussNewton
    from gas.training.initialization import StartSearch

    config = GaussNewton(iterations=iterations, batch=32, growth=1.0, seed=seed)
    short_run = GaussNewton(iterations=3, batch=10, validate_every=3, seed=seed)
    search = StartSearch(validation_pairs=16, candidates=3, short_run=short_run)
    with resumable(f"State is in {state}"), scratch(state, STATE):
        reports = distill(model, pairs, validation, nfe, config=config, search=search, state=state)
        return show(reports, model, nfe)


def _learn_adversarial(
    model: ZooModel, pairs: Pairs, validation: Pairs, table: Table, seed: int
) -> GeneralizedSolver:
    """Go on against a discriminator in a demo's time: few steps, on few pairs."""
    from gas.learned.generalized import GeneralizedSolver
    from gas.training.adversarial.setup import GAS, adversary_for, fit_adversarial

    solver = GeneralizedSolver.from_table(model.schedule, table, model.t_end)
    config = replace(GAS, iterations=GAS_STEPS, batch=16, validate_every=GAS_STEPS // 4, seed=seed)
    adversary = adversary_for(model, pairs, config=config, samples=EVALUATED, seed=seed)
    with bar("critic", GAS_STEPS) as running:
        for record in fit_adversarial(adversary, solver, model, pairs, validation):
            share = record.validation_loss / max(record.start_loss, 1e-12)
            running.at(record.iteration, f"{share:.0%} of GS's distance to the teacher's distribution")
    return solver


def _solvers(
    model: ZooModel, pairs: Pairs, nfe: int, learned: dict[str, Table]
) -> dict[str, tuple[str, Table]]:
    """Return the solvers of the picture by name, with their grids and tables."""
    from gas.classical.registry import Classical
    from gas.training.ranking import best_classical

    common = Classical("dpmpp-3m", "log_snr", nfe, model.t_end)
    tables = {"DPM-Solver++(3M)": (common.label, common.table(model.schedule))}
    for name, solver in (("UniPC-3", "unipc-3-bh2"), ("iPNDM-3", "ipndm-3")):
        best = best_classical(model, pairs, nfe, [solver])
        tables[name] = (best.classical.label, best.table)
    return {**tables, **{name: ("learned", table) for name, table in learned.items()}}


def _measure(
    out: Path, model: ZooModel, pairs: Pairs, tables: dict[str, tuple[str, Table]], teacher: Classical
) -> list[SolverMetrics]:
    """Measure every table, draw the first samples and the times of each, and return the measurements."""
    from gas.evaluation.evaluator import Evaluator
    from gas.evaluation.sampler import sample_pairs
    from gas.models.protocol import data_range_of
    from gas.plotting.samples import sample_grid
    from gas.plotting.times import times_plot

    rows, images = [], []
    # Pair by pair alone: a Frechet distance of so few samples is mostly bias.
    evaluator = Evaluator(pairs, data_range=data_range_of(model))
    for name, (detail, table) in tables.items():
        samples = sample_pairs(model, pairs, table)
        row = evaluator.measure(name, samples, table.nfe)
        rows.append(row)
        title = f"{name}\n{detail}\n{table.nfe} calls, MSE {significant(row.mse)}"
        images.append((title, samples[:_COLUMNS].clamp(-1, 1)))
    rows.append(evaluator.measure("teacher", pairs.target, teacher.nfe))
    title = f"Teacher\n{teacher.label}\n{teacher.nfe} calls"
    images.append((title, pairs.target[:_COLUMNS].clamp(-1, 1)))
    highlight = list(tables).index("GS")
    sample_grid(
        out / "samples.png",
        images,
        title=f"The same network, the same noise, {rows[0].nfe} network calls",
        note=f"{model.name}: the first {_COLUMNS} unseen seeds; MSE to the teacher over {len(pairs)}.",
        highlight=highlight,
    )
    times_plot(
        out / "times.png",
        [(name, table.times.tolist(), ()) for name, (_, table) in tables.items()],
        model.schedule,
        highlight=highlight,
    )
    return rows
