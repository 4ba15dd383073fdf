"""``gas demo``: the main job from end to end, on a real model, in about a minute."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import gas
from gas.arguments import MAX_ITERATIONS, MAX_NFE
from gas.cli.app import command, resumable
from gas.cli.checks import option
from gas.cli.evaluate import print_metrics, teacher_progress
from gas.cli.follow import show
from gas.cli.loading import load_zoo
from gas.cli.options import Device, Json, Seed, ZooName, adam_against
from gas.cli.pairs import run_teacher
from gas.cli.screen import bar, note, print_json
from gas.display import significant

if TYPE_CHECKING:
    from torch import Tensor

# Seeds of training, validation and evaluation, and the first seed of the evaluation.
TRAINED, VALIDATED, EVALUATED, FIRST_UNSEEN = 160, 64, 192, 50_000
# A third of the usual steps against the discriminator, which on these models shows what it does.
GAS_STEPS = 48
# Classical solvers to measure, on the best grid unless they name one.
BASELINES = {"DPM-Solver++(3M)": "dpmpp-3m/log_snr", "UniPC-3": "unipc-3-bh2", "iPNDM-3": "ipndm-3"}
# Samples a row of the picture.
_COLUMNS = 5


@command("gas demo --nfe 4 --out demo", folder="out")
def demo(
    out: Annotated[Path, option("Folder for pairs, solvers and pictures.")] = Path("demo"),
    nfe: Annotated[int, option("NFE of the solver to learn.", min=1, max=MAX_NFE)] = 4,
    iterations: Annotated[int, option("Gauss-Newton steps of the training.", min=0, max=MAX_ITERATIONS)] = 8,
    model: ZooName = "mnist",
    seed: Seed = 0,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Learn a solver for a pretrained model, without and with a discriminator, and show both beside classical ones.

    Teacher pairs, the best classical start, training, the solver files, samples of unseen seeds, figures.
    """
    began = time.perf_counter()
    gas.plotting.require_matplotlib()
    network, guidance = load_zoo(model, device), gas.zoo.guidance(model)
    teacher = gas.Classical("unipc-3-bh2", "log_snr", 20, network.t_end)
    guided = "" if guidance == 1 else f", guidance {guidance:g}"
    note(f": {teacher.label}, {teacher.nfe} network calls a sample{guided}", label="1. Teacher", style="bold")
    folder, path = out / f"pairs-{network.name}", out / f"{network.name}-{nfe}.json"
    files = {"GS": path, "GAS": path.with_stem(f"{path.stem}-gas")}
    names = [folder.name, *(file.name for file in files.values()), f"{path.stem}.state"]
    gas.workspace.claim(out, [*names, "samples.png", "times.png"])
    run_teacher(network, teacher, folder, range(TRAINED + VALIDATED), guidance)
    pairs = gas.read_pairs(folder, model=network)
    tables = _learn_both(network, pairs, files, nfe, iterations, seed)
    seeds = range(FIRST_UNSEEN, FIRST_UNSEEN + EVALUATED)
    note(f" {seeds.start} to {seeds.stop - 1}", label="4. Unseen seeds", style="bold")
    start = time.perf_counter()
    unseen = gas.evaluation.teacher_pairs(
        network, teacher, seeds, guidance=guidance, progress=teacher_progress
    )
    milliseconds = 1e3 * (time.perf_counter() - start) / len(unseen)
    rows = _measure(out, network, unseen, tables, teacher, f"{teacher.nfe} calls, {milliseconds:.0f} ms")
    if json:
        report = {"model": network.name, "seeds": [seeds.start, seeds.stop]}
        print_json({**report, "rows": [asdict(row) for row in rows]})
    else:
        print_metrics(f"{network.name}, {len(unseen)} unseen seeds", rows)
    note(
        f"solvers {' and '.join(map(str, files.values()))} ({path.stat().st_size / 1000:.1f} kB each), "
        f"pictures {out}/samples.png and {out}/times.png"
    )
    note(f"done in {time.perf_counter() - began:.0f} s")


def _learn_both(
    model: gas.models.Model, pairs: gas.Pairs, files: dict[str, Path], nfe: int, iterations: int, seed: int
) -> dict[str, gas.Table]:
    """Learn GS in a demo's time, then GAS from it; save both, and return their tables as the files have them."""
    note(f": the Generalized Solver, {nfe} calls a sample", label="2. Student", style="bold")
    train, validation = pairs.split(VALIDATED)
    search, config = gas.training.plan.QUICK_SEARCH, gas.training.plan.QUICK
    config = replace(config, iterations=iterations, seed=seed)
    state = files["GS"].with_suffix(".state")
    with resumable(f"State is in {state}"), gas.workspace.scratch(state, gas.training.distillation.STATE):
        reports = gas.distill(model, train, validation, nfe, config=config, search=search, state=state)
        result = show(reports, model, nfe)
    gas.save(files["GS"], result, model=model)
    note(": the same solver goes on to learn from a discriminator", label="3. Critic", style="bold")
    adversarial = _learn_adversarial(model, train, validation, result.table(), seed)
    recorded = result.provenance["training"]
    training = {name: recorded[name] for name in ("pairs", "validation", "seeds", "solver")} | {
        "objective": "gas"
    }
    went_on = replace(result, solver=adversarial)
    gas.save(
        files["GAS"], went_on, model=model, training=training, measured={nfe: {}}
    )  # the measurements are GS's
    return {name: gas.load(file).table(nfe) for name, file in files.items()}


def _learn_adversarial(
    model: gas.models.Model, pairs: gas.Pairs, validation: gas.Pairs, table: gas.Table, seed: int
) -> gas.GeneralizedSolver:
    """Go on against a discriminator in a demo's time: few steps, on few pairs."""
    solver = gas.GeneralizedSolver.from_table(model.schedule, table, model.t_end)
    config = adam_against(GAS_STEPS, batch=16, validate_every=GAS_STEPS // 4, seed=seed)
    adversary = gas.adversary_for(model, pairs, config=config, samples=EVALUATED, seed=seed)
    with bar("critic", GAS_STEPS) as running:
        for record in gas.training.adversarial.fit_adversarial(adversary, solver, model, pairs, validation):
            share = record.validation_loss / max(record.start_loss, 1e-12)
            running.at(record.iteration, f"{share:.0%} of GS's distance to the teacher's distribution")
    return solver


def _measure(
    out: Path,
    model: gas.models.Model,
    pairs: gas.Pairs,
    learned: dict[str, gas.Table],
    teacher: gas.Classical,
    cost: str,
) -> list[gas.evaluation.SolverMetrics]:
    """Measure learned and classical tables, draw their first samples and times beside the teacher's; return rows."""
    nfe = next(iter(learned.values())).nfe
    ranked = {name: gas.training.best_classical(model, pairs, nfe, [x]) for name, x in BASELINES.items()}
    tables = {name: (best.classical.label, best.table) for name, best in ranked.items()}
    tables |= {name: ("learned", table) for name, table in learned.items()}
    rows, images = [], []
    # Pair by pair alone: a Frechet distance of so few samples is mostly bias.
    evaluator = gas.Evaluator(pairs, data_range=gas.models.data_range_of(model))
    for name, (detail, table) in tables.items():
        start = time.perf_counter()
        samples = gas.evaluation.sample_pairs(model, pairs, table)
        milliseconds = 1e3 * (time.perf_counter() - start) / len(pairs)
        row = evaluator.measure(name, samples, nfe)
        rows.append(row)
        title = f"{name}\n{detail}\n{nfe} calls, {milliseconds:.0f} ms, MSE {significant(row.mse, 3)}"
        images.append((title, _first_images(model, samples)))
    rows.append(evaluator.measure("teacher", pairs.target, teacher.nfe))
    images.append((f"Teacher\n{teacher.label}\n{cost}", _first_images(model, pairs.target)))
    highlight = list(tables).index("GS")
    title = f"The same network, the same noise, {nfe} network calls"
    text = (
        f"{model.name}: the first {_COLUMNS} unseen seeds, and how far each pixel is from the teacher's; "
        f"time of a sample and MSE to the teacher over {len(pairs)}."
    )
    gas.plotting.sample_grid(
        out / "samples.png", images, title=title, note=text, highlight=highlight, errors=True
    )
    times = [(name, table.times.tolist(), ()) for name, (_, table) in tables.items()]
    gas.plotting.times_plot(out / "times.png", times, model.schedule, highlight=highlight)
    return rows


def _first_images(model: gas.models.Model, samples: Tensor) -> Tensor:
    return gas.models.protocol.images_of(model, samples[:_COLUMNS]).clamp(-1, 1)
