"""``gas compare``: solvers x NFE under one budget, cell by cell, in one report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import gas
from gas.arguments import MAX_SEEDS
from gas.cli import options
from gas.cli.app import command, resumable
from gas.cli.checks import FOLDER, option, split_names
from gas.cli.loading import REPORTED
from gas.cli.pairs import run_teacher
from gas.cli.screen import bar, note, print_json, print_table
from gas.display import significant

SOLVERS = "ddim,dpmpp-2m,dpmpp-3m,unipc,ipndm,deis,gits,dmn,ld3,s4s,s4s-pc,bns,gs-free,gs,gas"


@command(
    "gas compare --model digits --pairs runs/digits-pairs --solvers unipc,gits,ld3,gs,gas --nfe 3-6 --out runs/compare",
    folder="out",
)
def compare(
    context: typer.Context,
    pairs: Annotated[Path, options.PairsFolder],
    out: Annotated[Path, option("Folder for results and reports; that of an earlier run resumes it.")],
    solvers: Annotated[
        str,
        option(
            "Rows, comma-separated: SOLVER or a group (unipc) on its best grid, SOLVER/GRID, classical (the best "
            "of all), gits, dmn or a published grid, ld3, s4s, s4s-pc, s4s-alt, bns, gs-free, gs, gas; NAME@START."
        ),
    ] = SOLVERS,
    nfe: Annotated[str, option("Columns, as 4 or 3-6,8,10.", options.parse_nfes)] = "3-6,8,10",
    unseen: Annotated[Path | None, option("Pairs to measure on instead of --seeds.", **FOLDER)] = None,
    seeds: Annotated[
        str, option("Seeds to measure on, N or FIRST:STOP (not included).", options.measured_seeds)
    ] = "50000:50512",
    count: Annotated[
        int | None, option("First pairs of --unseen, to measure on.", min=2, max=MAX_SEEDS)
    ] = None,
    validation: options.Validation = None,
    rank: Annotated[int, option("Validation pairs that rank classical solvers.", min=1, max=MAX_SEEDS)] = 64,
    guides: Annotated[int, option("Training pairs that GITS follows.", min=1, max=MAX_SEEDS)] = 256,
    metrics: Annotated[
        str,
        option(
            "Tables of the report, comma-separated (mse, frechet, ...); default: all. lpips and clip-score are "
            "measured only where they are named."
        ),
    ] = "",
    metric_weights: options.MetricWeights = None,
    gas_iterations: options.GasIterations = None,
    *,
    optimizer: options.OptimizerOptions,
    features: options.FeatureOptions,
    network: options.NetworkOptions,
    json: options.Json = False,
) -> None:
    """Train and measure every solver at every NFE, learned ones within one budget, and write the reports.

    Interrupted at any point, the same command resumes; results whose settings changed are made again. report.html in
    --out needs no other file; report.md, report.csv, the pictures and a solver file for each result lie beside it.
    """
    if unseen is not None and options.was_given(context, "seeds"):
        raise gas.UserError("--seeds and --unseen are two sets of noise to measure on: leave one out")
    if unseen is None and options.was_given(context, "count"):
        raise gas.UserError("--count is for --unseen: --seeds sets the number of samples without it")
    methods = _methods(solvers, optimizer.start)
    measures, nfes = split_names(metrics), options.parse_nfes(nfe)
    for name in measures:
        gas.registry.named("metric", name, gas.experiments.MEASURES)
    budget, loaded = _budget(optimizer, gas_iterations, rank, guides), network.load(pairs)
    sets = options.split_pairs(gas.read_pairs(pairs, model=loaded, hold=False), validation)
    experiment = gas.experiments.Experiment(loaded, *sets, budget=budget, folder=out)
    if any(row.base is not None for row in methods):
        _ = experiment.adversary  # refuses a model without a discriminator before anything is trained
    space = features.space(loaded)
    names = [name for name in measures if name in gas.features.per_sample.SAMPLE_METRICS]
    per_sample = gas.features.per_sample.sample_metrics(names, loaded, metric_weights)
    gas.experiments.claim_folders(out)
    unseen_pairs = _unseen(loaded, sets[0], unseen, seeds, count, out)
    evaluator = gas.Evaluator.for_model(loaded, unseen_pairs, space, sample_metrics=per_sample)
    store, commands = gas.experiments.Store(out), _commands(context)
    running = gas.experiments.run_experiment(experiment, evaluator, methods, nfes, store, commands)
    with resumable(f"Results are in {out}"):
        results = _followed(running, len(methods) * len(nfes) + 1)
    report = gas.experiments.Report(
        title=f"{loaded.name}: {len(methods)} solvers at NFE {', '.join(map(str, nfes))}",
        lines=_lines(experiment, evaluator, methods),
        command=_command(context),
        results=results,
        measures=measures or tuple(gas.experiments.MEASURES),
        reported=_reported(network.model, features),
        pictures=_drawn(results, loaded, out / "pictures"),
    )
    for path in report.write(out):
        note(f"wrote {path}")
    if json:
        print_json([result.row() for result in results])
    else:
        _print(report)


def _methods(solvers: str, start: str) -> list[gas.experiments.Method]:
    """Return the rows of ``--solvers``; a solver file is no start for them."""
    if start.endswith(".json"):
        raise gas.UserError(
            f"--start {start} is a solver file, a start for gas train only: name a SOLVER/GRID"
        )
    methods = [gas.experiments.method_by_name(name, start) for name in split_names(solvers)]
    if not methods:
        raise gas.UserError("--solvers names nothing to compare")
    return methods


def _budget(
    optimizer: options.OptimizerOptions, gas_iterations: int | None, rank: int, guides: int
) -> gas.experiments.Budget:
    gas.training.initialization.check_start(optimizer.start)
    return gas.experiments.Budget(
        config=replace(optimizer, start="best").config(),
        loss=optimizer.loss,
        gas=options.adam_against(gas_iterations, seed=optimizer.seed),
        rank=rank,
        guides=guides,
    )


def _print(report: gas.experiments.Report) -> None:
    for table in report.headline():
        passes = report.passes
        columns = [f"{nfe} ({passes * nfe} passes)" if passes > 1 else str(nfe) for nfe in table.nfes]
        rows = [
            {"solver": label} | {column: entry.text for column, entry in zip(columns, entries, strict=True)}
            for label, entries in table.rows
        ]
        print_table(table.title, rows, strong="GAS")


def _unseen(
    model: gas.models.Model, pairs: gas.Pairs, folder: Path | None, seeds: str, count: int | None, out: Path
) -> gas.Pairs:
    """Pairs to measure on: of a folder, or made of seeds by the same teacher and stored in ``out``."""
    if folder is None:
        folder = out / "unseen"
        if "solver" not in pairs.teacher:  # imported ones
            raise gas.UserError("the pairs do not say their teacher: give --unseen a folder of its pairs")
        teacher = gas.Classical.from_config(pairs.teacher)
        run_teacher(model, teacher, folder, options.parse_seeds(seeds), pairs.guidance)
    unseen = gas.read_pairs(folder, model=model)
    if count is not None and count > len(unseen):
        raise gas.UserError(f"--count is {count}, but {folder} holds {len(unseen)} pairs")
    return unseen.subset(slice(0, count))


def _commands(context: typer.Context) -> Callable[[str, int], str]:
    """Return the command line of one result: the options as typed, with its solver and NFE."""
    base = _command(context, without=("solvers", "nfe"))
    return lambda spec, nfe: f"{base} --solvers {shlex.quote(spec)} --nfe {nfe}"


def _command(context: typer.Context, without: tuple[str, ...] = ()) -> str:
    """Return the command line as typed."""
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        if options.was_given(context, name) and name not in (*without, "json"):
            value = context.params[name]
            words += [parameter.opts[0]] if value is True else [parameter.opts[0], str(value)]
    return shlex.join(["gas", "compare", *words])


def _followed(
    running: Iterator[gas.experiments.TrainingReport | gas.experiments.MethodResult], total: int
) -> list[gas.experiments.MethodResult]:
    """Return the results, with a progress bar."""
    results = []
    with bar("results", total) as progress:
        for report in running:
            detail = f"NFE {report.nfe}: {report.label}"
            if isinstance(report, gas.experiments.MethodResult):
                results.append(report)
            else:
                record = report.record
                detail += f", step {record.iteration} of {record.iterations}"
                detail += f", {significant(record.validation_loss)}"
            progress.at(len(results), detail)
    return results


def _drawn(
    results: list[gas.experiments.MethodResult], model: gas.models.Model, folder: Path
) -> dict[str, Path]:
    """Draw the pictures; without matplotlib, the reports have none."""
    try:
        return gas.experiments.pictures.draw(results, model.schedule, model.name, folder)
    except ModuleNotFoundError as error:
        note(f": {error}", label="no pictures")
        return {}


def _reported(model: str, features: options.FeatureOptions) -> gas.experiments.ReportedResults | None:
    """The paper's FID of a model, where ours is FID too."""
    prefix, _, name = model.partition(":")
    if prefix not in REPORTED or features.features != "inception" or features.reference is None:
        return None
    return gas.experiments.ReportedResults("arXiv 2510.17699", REPORTED[prefix](name))


def _lines(
    experiment: gas.experiments.Experiment,
    evaluator: gas.Evaluator,
    methods: Sequence[gas.experiments.Method],
) -> list[str]:
    """Describe the experiment for its report."""
    budget, train, seeds = experiment.budget, experiment.train, evaluator.pairs.seeds
    optimizer = type(budget.config).__name__
    settings = ", ".join(f"{name} {value}" for name, value in budget.config.config().items())
    config = train.teacher
    teacher = f"{config.get('solver', 'unknown')} / {config.get('grid', '')}, {config.get('nfe', '?')} calls"
    adversarial = f"GAS continues from GS for {budget.gas.iterations} steps of Adam against a discriminator."
    files = {key: text for metric in evaluator.sample_metrics for key, text in metric.fingerprint.items()}
    passes = gas.models.protocol.passes_of(experiment.model, train.guidance)
    guided = f"With guidance {train.guidance:g}, an evaluation (NFE) is two forward passes of the network."
    return [
        f"Measured on {len(seeds)} unseen seeds, {int(seeds[0])} to {int(seeds[-1])}; the teacher is {teacher}.",
        f"Trained on {len(train)} pairs, chosen on {len(experiment.validation)} others; classical solvers "
        f"and grids are ranked on {budget.rank} of these. Learned solvers have one start, unless their name sets "
        f"another, and one optimizer, {optimizer}: {settings}.",
        *([guided] if passes > 1 else []),
        *([adversarial] if any(method.base is not None for method in methods) else []),
        " ".join([evaluator.space.description, *(f"{key}: {text}." for key, text in files.items())]),
    ]
