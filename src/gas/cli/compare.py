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
from gas.cli.checks import checked, existing_folder, listed, output_folder
from gas.cli.loading import reported
from gas.cli.measuring import judging, measuring, space_told
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
    from gas.experiments.evaluator import Ruler
    from gas.experiments.experiment import Setting
    from gas.experiments.methods import Contestant
    from gas.experiments.pictures import Pictures
    from gas.experiments.report import Published
    from gas.experiments.runner import Training
    from gas.experiments.store import Cell
    from gas.models.protocol import Model
    from gas.pairs.dataset import Pairs

__all__ = ["compare"]


def _check_row(name: str) -> None:
    from gas.experiments.methods import contestant_by_name
    from gas.training.initialization import check_start

    check_start(name.partition("@")[2] or "best")
    contestant_by_name(name)


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
        typer.Option(
            help="Folder for cells, solvers and reports; of an earlier run to go on.",
            callback=checked(output_folder),
        ),
    ],
    solvers: Annotated[
        str,
        typer.Option(
            help="Rows, comma-separated: SOLVER or a family (unipc) on its best grid, SOLVER/GRID, classical (best of "
            "all), gits, dmn or a published grid, ld3, s4s, s4s-pc, s4s-alt, bns, gs-free, gs, gas; NAME@START.",
            callback=checked(listed(_check_row, empty=False)),
        ),
    ] = SOLVERS,
    nfe: Annotated[
        str, typer.Option(help="Columns, as 4 or 3-6,8,10.", callback=checked(parse_nfes))
    ] = "3-6,8,10",
    unseen: Annotated[
        Path | None,
        typer.Option(
            help="Folder of pairs to measure on; default: made of --seeds.", callback=checked(existing_folder)
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(
            help="Seeds to measure on, as N or FIRST:LAST, without --unseen.",
            callback=checked(measured_seeds),
        ),
    ] = "50000:50512",
    count: Annotated[
        int | None, typer.Option(help="How many of --unseen, from the first.", min=2, max=MAX_SEEDS)
    ] = None,
    validation: Validation = None,
    rank: Annotated[
        int,
        typer.Option(
            help="Validation pairs that classical solvers and grids are chosen on.", min=1, max=MAX_SEEDS
        ),
    ] = 64,
    guides: Annotated[
        int, typer.Option(help="Training pairs that GITS follows.", min=1, max=MAX_SEEDS)
    ] = 256,
    metrics: Annotated[
        str,
        typer.Option(
            help="Tables of the report, comma-separated (mse, frechet, ...); default: all. lpips and clip-score are "
            "measured where they are named.",
            callback=checked(lambda text: _measures(text)),
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
    """Make, measure and show every solver at every NFE, learned ones within one budget, and write the reports.

    Killed at any point, the same command goes on where it stopped; cells whose settings changed are made anew.
    report.html in --out needs nothing beside itself; report.md, report.csv, the pictures and a solver file for each
    cell lie beside it.
    """
    from gas.experiments.experiment import Budget, Setting
    from gas.experiments.methods import contestant_by_name
    from gas.experiments.report import Report
    from gas.experiments.runner import fill
    from gas.experiments.store import Store, claim_folders
    from gas.pairs.dataset import read_pairs

    _check_combination(context, features, unseen)
    rows = [contestant_by_name(name, optimizer.start) for name in _names(solvers)]
    shown = _measures(metrics)
    columns = parse_nfes(nfe)
    config = replace(optimizer, start="best").config()
    loaded = network.load(pairs)
    budget = Budget(config, optimizer.loss, adam_against(gas_iterations, optimizer.seed), rank, guides)
    training_pairs, validation_pairs = split_pairs(read_pairs(pairs, model=loaded, hold=False), validation)
    setting = Setting(loaded, training_pairs, validation_pairs, budget, out)
    _check_critic(setting, rows)
    ruler_of = _ruler(loaded, features, metrics, metric_weights)
    claim_folders(out)
    ruler = ruler_of(_unseen(loaded, training_pairs, unseen, seeds, count, out))
    running = fill(setting, ruler, rows, columns, Store(out), _commands(context))
    cells = list(_followed(running, len(rows) * len(columns) + 1, out))
    lines = _lines(setting, ruler, rows)
    title = f"{loaded.name}: {len(rows)} solvers at NFE {', '.join(map(str, columns))}"
    drawn = _drawn(cells, loaded, out / "pictures")
    paper = _published(network.model, features)
    report = Report(title, lines, _command(context), cells, shown, paper, drawn)
    for path in report.write(out):
        note(f"wrote {path}")
    if json:
        print_json([cell.row() for cell in cells])
        return
    for table in report.headline():
        listed = [[label, *(entry.text for entry in entries)] for label, entries in table.rows]
        print_table(table.title, ["solver", *map(str, table.nfes)], listed, strong="GAS")


def _check_combination(context: typer.Context, features: FeatureOptions, unseen: Path | None) -> None:
    """Refuse options that others leave without a meaning."""
    check_space(features.features, features.weights)
    if unseen is not None and was_given(context, "seeds"):
        raise UserError("--seeds and --unseen are two sets of noise to measure on: leave one out")
    if unseen is None and was_given(context, "count"):
        raise UserError("--count is for --unseen: say by --seeds how many to measure on")


def _unseen(
    model: Model, pairs: Pairs, folder: Path | None, seeds: str, count: int | None, out: Path
) -> Pairs:
    """Pairs to measure on: a folder of them, or what the same teacher makes of seeds, kept beside the cells."""
    from gas.classical.registry import Classical
    from gas.pairs.dataset import read_pairs

    if folder is None:
        folder, chosen = out / "unseen", parse_seeds(seeds)
        if not pairs.teacher:
            raise UserError("the pairs do not say their teacher: give --unseen a folder of its pairs")
        run_teacher(model, Classical(**pairs.teacher), folder, chosen, pairs.guidance)
    chosen_pairs = read_pairs(folder, model=model)
    if count is not None and count > len(chosen_pairs):
        raise UserError(f"--count is {count}, but {folder} holds {len(chosen_pairs)} pairs")
    return chosen_pairs.subset(slice(0, count))


def _ruler(
    model: Model, features: FeatureOptions, metrics: str, metric_weights: Path | None
) -> Callable[[Pairs], Ruler]:
    """What makes a ruler of the pairs to measure on; all of its files are read before there are any."""
    from gas.experiments.evaluator import Ruler
    from gas.features.judges import JUDGES

    real, reference = features.real, features.reference
    yardstick_of, named = measuring(model, real, features.features, features.weights, reference)
    asked = ",".join(name for name in _names(metrics) if name in JUDGES)
    judges, judged = judging(model, asked, metric_weights)
    plain = real is None and reference is None and features.features == "model"  # decided by the model alone

    def ruler_of(pairs: Pairs) -> Ruler:
        yardstick = replace(yardstick_of(pairs), judges=judges)
        space = space_told(yardstick, named, reference, real)
        summary = " ".join([space, *(f"{k}: {v}." for k, v in judged.items())])
        return Ruler(model, yardstick, {**({} if plain else named), **judged}, said=summary)

    return ruler_of


def _check_critic(setting: Setting, rows: list[Contestant]) -> None:
    """Refuse a model that no critic is known for before anything is learned, not after it."""
    if any(row.after is not None for row in rows):
        _ = setting.adversary


def _commands(context: typer.Context) -> Callable[[str, int], str]:
    """Return what says how a cell is made alone: the options that were typed, with its solver and NFE."""
    base = _command(context, without=("solvers", "nfe"))
    return lambda spec, nfe: f"{base} --solvers {shlex.quote(spec)} --nfe {nfe}"


def _command(context: typer.Context, without: tuple[str, ...] = ()) -> str:
    """Return the command line as it was typed."""
    typed: list[str] = []
    for option in context.command.params:
        name = option.name or ""
        if was_given(context, name) and name not in (*without, "json"):
            value = context.params[name]
            typed += [option.opts[0]] if value is True else [option.opts[0], str(value)]
    return shlex.join(["gas", "compare", *typed])


def _followed(running: Iterator[Training | Cell], total: int, out: Path) -> Iterator[Cell]:
    """Yield cells as they come, with a bar; an interrupt says how to go on."""
    from gas.experiments.store import Cell

    try:
        with bar("cells", total) as shown:
            done = 0
            for report in running:
                if isinstance(report, Cell):
                    done += 1
                    shown.at(done, f"NFE {report.nfe}: {report.label}")
                    yield report
                else:
                    record = report.record
                    told = f"{report.label}, step {record.iteration} of {record.iterations}"
                    shown.at(done, f"NFE {report.nfe}: {told}, {significant(record.validation_loss)}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Cells are kept in {out}; the same command goes on from there.") from None


def _drawn(cells: list[Cell], model: Model, folder: Path) -> Pictures:
    """Draw what can be drawn: reports do without pictures where matplotlib is not installed."""
    from gas.experiments.pictures import Pictures, draw

    try:
        return draw(cells, model.schedule, model.name, folder)
    except ModuleNotFoundError as error:
        note(f": {error}", label="no pictures")
        return Pictures()


def _published(model: str, features: FeatureOptions) -> Published | None:
    """Return the paper's figures for a preset, if the report's are of the same kind: FID."""
    from gas.experiments.report import Published

    figures = reported(model)
    if not figures or features.features != "inception" or features.reference is None:
        return None
    return Published("arXiv 2510.17699", figures)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _measures(text: str) -> tuple[str, ...]:
    from gas.experiments.tables import MEASURES
    from gas.registry import named

    for name in _names(text):
        named("metric", name, MEASURES)
    return tuple(_names(text)) or tuple(MEASURES)


def _lines(setting: Setting, ruler: Ruler, rows: Sequence[Contestant]) -> list[str]:
    """Say what was done."""
    budget, unseen = setting.budget, ruler.yardstick.pairs
    seeds = unseen.seeds
    settings = ", ".join(f"{name} {value}" for name, value in budget.config.config().items())
    told = setting.train.teacher
    teacher = f"{told.get('solver', 'unknown')} / {told.get('grid', '')}, {told.get('nfe', '?')} calls"
    going = f"GAS goes on from GS for {budget.gas.iterations} steps of Adam against a critic."
    return [
        f"Measured on {len(unseen)} unseen seeds, {int(seeds[0])} to {int(seeds[-1])}; the teacher is {teacher}.",
        f"Learned from {len(setting.train)} pairs and chosen by {len(setting.validation)} others; classical solvers "
        f"and grids are chosen on {budget.rank} of these. Learned solvers have one start, unless their name says "
        f"another, and one optimiser, {type(budget.config).__name__}: {settings}.",
        *([going] if any(row.after is not None for row in rows) else []),
        ruler.said,
    ]
