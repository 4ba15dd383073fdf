"""``gas compare``: solvers x NFE under one budget, cell by cell, in one report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gas.arguments import MAX_SEEDS
from gas.cli.app import command
from gas.cli.checks import existing_folder, listed, option, output_folder, split_names
from gas.cli.evaluation import load_space
from gas.cli.loading import reported
from gas.cli.options import (
    FeatureOptions,
    GasIterations,
    Json,
    MetricWeights,
    NetworkOptions,
    OptimizerOptions,
    PairsFolder,
    Validation,
    adam_against,
    check_space,
    measured_seeds,
    parse_nfes,
    parse_seeds,
    split_pairs,
    was_given,
)
from gas.cli.pairs import run_teacher
from gas.cli.screen import bar, note, print_json, print_table
from gas.display import significant
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.evaluation.evaluator import Evaluator
    from gas.experiments.experiment import Budget, Experiment
    from gas.experiments.methods import Method
    from gas.experiments.pictures import Pictures
    from gas.experiments.report import Report, ReportedResults
    from gas.experiments.runner import TrainingReport
    from gas.experiments.store import MethodResult
    from gas.models.protocol import Model
    from gas.pairs.dataset import Pairs

__all__ = ["compare"]


def _check_method(name: str) -> None:
    from gas.experiments.methods import method_by_name
    from gas.training.initialization import check_start

    check_start(name.partition("@")[2] or "best")
    method_by_name(name)


SOLVERS = "ddim,dpmpp-2m,dpmpp-3m,unipc,ipndm,deis,gits,dmn,ld3,s4s,s4s-pc,bns,gs-free,gs,gas"


@command(
    "gas compare --model digits --pairs runs/digits-pairs --solvers unipc,gits,ld3,gs,gas --nfe 3-6 --out runs/compare",
    folder="out",
)
def compare(
    context: typer.Context,
    pairs: Annotated[Path, PairsFolder],
    out: Annotated[
        Path,
        option("Folder for results, solvers and reports; that of an earlier run resumes it.", output_folder),
    ],
    solvers: Annotated[
        str,
        option(
            "Rows, comma-separated: SOLVER or a group (unipc) on its best grid, SOLVER/GRID, classical (the best "
            "of all), gits, dmn or a published grid, ld3, s4s, s4s-pc, s4s-alt, bns, gs-free, gs, gas; NAME@START.",
            listed(_check_method, empty=False),
        ),
    ] = SOLVERS,
    nfe: Annotated[str, option("Columns, as 4 or 3-6,8,10.", parse_nfes)] = "3-6,8,10",
    unseen: Annotated[
        Path | None,
        option(
            "Folder of pairs to measure on; default: pairs of --seeds by the same teacher.", existing_folder
        ),
    ] = None,
    seeds: Annotated[
        str, option("Seeds to measure on, as N or FIRST:LAST; not with --unseen.", measured_seeds)
    ] = "50000:50512",
    count: Annotated[
        int | None,
        option(
            "Number of pairs of --unseen to measure on, from the first; default: all.", min=2, max=MAX_SEEDS
        ),
    ] = None,
    validation: Validation = None,
    rank: Annotated[
        int, option("Validation pairs on which classical solvers and grids are ranked.", min=1, max=MAX_SEEDS)
    ] = 64,
    guides: Annotated[
        int, option("Training pairs whose trajectories GITS follows.", min=1, max=MAX_SEEDS)
    ] = 256,
    metrics: Annotated[
        str,
        option(
            "Tables of the report, comma-separated (mse, frechet, ...); default: all. lpips and clip-score are "
            "measured only where they are named.",
            lambda text: _measures(text),
        ),
    ] = "",
    metric_weights: MetricWeights = None,
    gas_iterations: GasIterations = None,
    *,
    optimizer: OptimizerOptions,
    features: FeatureOptions,
    network: NetworkOptions,
    json: Json = False,
) -> None:
    """Train and measure every solver at every NFE, learned ones within one budget, and write the reports.

    Interrupted at any point, the same command resumes; results whose settings changed are made again. report.html in
    --out needs no other file; report.md, report.csv, the pictures and a solver file for each result lie beside it.
    """
    from gas.evaluation.evaluator import Evaluator
    from gas.experiments.experiment import Experiment
    from gas.experiments.methods import method_by_name
    from gas.experiments.report import Report
    from gas.experiments.runner import run_experiment
    from gas.experiments.store import Store, claim_folders
    from gas.features.per_sample import SAMPLE_METRICS, sample_metrics
    from gas.pairs.dataset import read_pairs

    _check_combination(context, features, unseen)
    methods = [method_by_name(name, optimizer.start) for name in split_names(solvers)]
    nfes, loaded = parse_nfes(nfe), network.load(pairs)
    budget = _budget(optimizer, gas_iterations, rank, guides)
    train, held_out = split_pairs(read_pairs(pairs, model=loaded, hold=False), validation)
    experiment = Experiment(model=loaded, train=train, validation=held_out, budget=budget, folder=out)
    if any(row.base is not None for row in methods):
        _ = experiment.adversary  # refuses a model without a discriminator before anything is trained
    space = load_space(loaded, features)
    names = [name for name in split_names(metrics) if name in SAMPLE_METRICS]
    per_sample = sample_metrics(names, loaded, metric_weights)
    claim_folders(out)
    unseen_pairs = _unseen(loaded, train, unseen, seeds, count, out)
    evaluator = Evaluator.for_model(loaded, unseen_pairs, space, sample_metrics=per_sample)
    running = run_experiment(experiment, evaluator, methods, nfes, Store(out), _commands(context))
    results = list(_followed(running, len(methods) * len(nfes) + 1, out))
    report = Report(
        title=f"{loaded.name}: {len(methods)} solvers at NFE {', '.join(map(str, nfes))}",
        lines=_lines(experiment, evaluator, methods),
        command=_command(context),
        results=results,
        measures=_measures(metrics),
        reported=_reported(network.model, features),
        pictures=_drawn(results, loaded, out / "pictures"),
    )
    for path in report.write(out):
        note(f"wrote {path}")
    if json:
        print_json([result.row() for result in results])
    else:
        _print(report)


def _budget(optimizer: OptimizerOptions, gas_iterations: int | None, rank: int, guides: int) -> Budget:
    from gas.experiments.experiment import Budget

    return Budget(
        config=replace(optimizer, start="best").config(),
        loss=optimizer.loss,
        gas=adam_against(gas_iterations, optimizer.seed),
        rank=rank,
        guides=guides,
    )


def _print(report: Report) -> None:
    for table in report.headline():
        rows = [[label, *(entry.text for entry in entries)] for label, entries in table.rows]
        print_table(table.title, ["solver", *map(str, table.nfes)], rows, strong="GAS")


def _check_combination(context: typer.Context, features: FeatureOptions, unseen: Path | None) -> None:
    """Refuse options that contradict each other."""
    check_space(features.features, features.weights)
    if unseen is not None and was_given(context, "seeds"):
        raise UserError("--seeds and --unseen are two sets of noise to measure on: leave one out")
    if unseen is None and was_given(context, "count"):
        raise UserError("--count is for --unseen: --seeds sets the number of samples without it")


def _unseen(
    model: Model, pairs: Pairs, folder: Path | None, seeds: str, count: int | None, out: Path
) -> Pairs:
    """Pairs to measure on: of a folder, or made of seeds by the same teacher and stored in ``out``."""
    from gas.classical.registry import Classical
    from gas.pairs.dataset import read_pairs

    if folder is None:
        folder = out / "unseen"
        if not pairs.teacher:
            raise UserError("the pairs do not say their teacher: give --unseen a folder of its pairs")
        run_teacher(model, Classical(**pairs.teacher), folder, parse_seeds(seeds), pairs.guidance)
    unseen = read_pairs(folder, model=model)
    if count is not None and count > len(unseen):
        raise UserError(f"--count is {count}, but {folder} holds {len(unseen)} pairs")
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
        if was_given(context, name) and name not in (*without, "json"):
            value = context.params[name]
            words += [parameter.opts[0]] if value is True else [parameter.opts[0], str(value)]
    return shlex.join(["gas", "compare", *words])


def _followed(
    running: Iterator[TrainingReport | MethodResult], total: int, out: Path
) -> Iterator[MethodResult]:
    """Yield results as they come, with a progress bar."""
    from gas.experiments.store import MethodResult

    try:
        with bar("results", total) as progress:
            done = 0
            for report in running:
                if isinstance(report, MethodResult):
                    done += 1
                    progress.at(done, f"NFE {report.nfe}: {report.label}")
                    yield report
                else:
                    record = report.record
                    step = f"step {record.iteration} of {record.iterations}"
                    loss = significant(record.validation_loss)
                    progress.at(done, f"NFE {report.nfe}: {report.label}, {step}, {loss}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Results are in {out}; the same command resumes from there.") from None


def _drawn(results: list[MethodResult], model: Model, folder: Path) -> Pictures:
    """Draw the pictures; without matplotlib, the reports have none."""
    from gas.experiments.pictures import Pictures, draw

    try:
        return draw(results, model.schedule, model.name, folder)
    except ModuleNotFoundError as error:
        note(f": {error}", label="no pictures")
        return Pictures()


def _reported(model: str, features: FeatureOptions) -> ReportedResults | None:
    """The paper's FID of a model, where ours is FID too."""
    from gas.experiments.report import ReportedResults

    figures = reported(model)
    if not figures or features.features != "inception" or features.reference is None:
        return None
    return ReportedResults("arXiv 2510.17699", figures)


def _measures(text: str) -> tuple[str, ...]:
    from gas.experiments.tables import MEASURES
    from gas.registry import named

    names = split_names(text)
    for name in names:
        named("metric", name, MEASURES)
    return tuple(names) or tuple(MEASURES)


def _lines(experiment: Experiment, evaluator: Evaluator, methods: Sequence[Method]) -> list[str]:
    """Describe the experiment for its report."""
    budget, train, seeds = experiment.budget, experiment.train, evaluator.pairs.seeds
    optimizer = type(budget.config).__name__
    settings = ", ".join(f"{name} {value}" for name, value in budget.config.config().items())
    config = train.teacher
    teacher = f"{config.get('solver', 'unknown')} / {config.get('grid', '')}, {config.get('nfe', '?')} calls"
    adversarial = f"GAS continues from GS for {budget.gas.iterations} steps of Adam against a discriminator."
    files = {key: text for metric in evaluator.sample_metrics for key, text in metric.fingerprint.items()}
    return [
        f"Measured on {len(seeds)} unseen seeds, {int(seeds[0])} to {int(seeds[-1])}; the teacher is {teacher}.",
        f"Trained on {len(train)} pairs, the best chosen on {len(experiment.validation)} others; classical solvers "
        f"and grids are ranked on {budget.rank} of these. Learned solvers have one start, unless their name sets "
        f"another, and one optimizer, {optimizer}: {settings}.",
        *([adversarial] if any(method.base is not None for method in methods) else []),
        " ".join([evaluator.space.description, *(f"{key}: {text}." for key, text in files.items())]),
    ]
