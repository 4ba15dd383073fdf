"""``gas evaluate``: a solver file against the classical solvers and the teacher, on unseen seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from gas import distributed
from gas.arguments import MAX_NFE
from gas.cli.app import command
from gas.cli.checks import checked, existing_file, listed, registered
from gas.cli.comparisons import print_comparisons, print_distributions
from gas.cli.measuring import judging, measuring
from gas.cli.options import (
    FeatureOptions,
    Json,
    MetricWeights,
    NetworkOptions,
    Picture,
    check_classical,
    check_grid,
    check_space,
    interpolation,
    measured_seeds,
    parse_nfes,
    parse_seeds,
)
from gas.cli.screen import bar, note, print_json, tracked
from gas.cli.solver_files import load_named, warn_of_known_seeds, warn_of_unknown_model

if TYPE_CHECKING:
    from torch import Tensor

    from gas.classical.registry import Classical
    from gas.evaluation.evaluator import Comparison, Yardstick
    from gas.models.protocol import Model
    from gas.pairs.dataset import Pairs
    from gas.solver_file import Artefact
    from gas.table import Table

__all__ = ["Evaluation", "EvaluationOptions", "evaluate", "evaluate_files", "taught"]

BASELINES = ("dpmpp-3m/log_snr", "unipc-3-bh2", "ipndm-3")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Solvers to measure, and the seeds and metrics to measure them with."""

    panel: ClassVar[str] = "Evaluation"

    solver: Annotated[
        list[Path],
        typer.Option(
            "--solver",
            "-s",
            help="Solver file; repeat it to compare several.",
            callback=checked(existing_file),
        ),
    ]
    nfe: Annotated[
        str,
        typer.Option(
            help="NFE to measure, as 4 or 3-6,8,10; default: all in the files.", callback=checked(parse_nfes)
        ),
    ] = ""
    seeds: Annotated[
        str,
        typer.Option(
            help="Seeds, as N or FIRST:LAST; not those trained on.", callback=checked(measured_seeds)
        ),
    ] = "50000:50512"
    baselines: Annotated[
        str,
        typer.Option(
            help="Classical solvers, comma-separated: SOLVER on its best grid, or SOLVER/GRID.",
            callback=checked(listed(check_classical)),
        ),
    ] = ",".join(BASELINES)
    every: Annotated[bool, typer.Option("--every", help="Also find the best of all classical solvers.")] = (
        False
    )
    transfer: Annotated[
        bool,
        typer.Option("--transfer", help="Take solvers of another network of the same shape and schedule."),
    ] = False
    metrics: Annotated[
        str,
        typer.Option(
            help="Metrics of single samples: lpips (to the teacher), clip-score (of prompts).",
            callback=checked(listed(registered("metric", "gas.features.judges:JUDGES"))),
        ),
    ] = ""
    metric_weights: MetricWeights = None
    picture: Picture = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measured solvers: what they were measured on, one row a solver and NFE, and the last solver's name."""

    document: dict[str, Any]
    rows: list[Comparison]
    strongest: str

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation in plain JSON."""
        return {**self.document, "rows": [asdict(row) for row in self.rows]}

    def show(self, json: bool) -> None:
        """Print tables, or JSON."""
        if json:
            print_json(self.to_json())
            return
        first, stop = self.document["seeds"]
        title = f"{self.document['model']}: {stop - first} samples, seeds {first} to {stop - 1}"
        print_comparisons(title, self.rows, strong=self.strongest)
        title = "the same, as distributions of features; 95% intervals"
        print_distributions(title, self.rows, strong=self.strongest)
        print_distributions("the same, against real images", self.rows, strong=self.strongest, data=True)


@command(
    "gas evaluate --model digits --solver runs/digits.json --seeds 50000:50512", shared=True, file="picture"
)
def evaluate(
    *,
    evaluation: EvaluationOptions,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Solver of the teacher; default: the file's.",
            callback=checked(registered("solver", "gas.classical.registry:SOLVERS")),
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="Time grid of the teacher; default: the file's.", callback=checked(check_grid)),
    ] = None,
    teacher_nfe: Annotated[
        int | None, typer.Option(help="NFE of the teacher; default: the file's.", min=1, max=MAX_NFE)
    ] = None,
    features: FeatureOptions,
    network: NetworkOptions,
    json: Json = False,
) -> None:
    """Measure solvers from the same noise: error to the teacher, and distances of distributions with 95% intervals.

    An NFE between two of the file's gets a table interpolated from them, named so. A baseline without a grid runs on
    the grid that is best for it on these very seeds, which favors it; of more than eight candidates, all are measured
    on the first 64 seeds and the best eight on all. The first file names the teacher.
    """
    check_space(features.features, features.weights)
    given = {"solver": teacher, "grid": grid, "nfe": teacher_nfe}
    evaluate_files(network.load(), evaluation, features, given=given).show(json)


def evaluate_files(
    model: Model,
    options: EvaluationOptions,
    features: FeatureOptions,
    *,
    usual: Callable[[int], Mapping[str, Any]] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Measure solver files against classical solvers and the teacher.

    Args:
        model: that the files are for.
        options: files, seeds, baselines and metrics.
        features: space of the distances.
        usual: NFE -> the teacher's settings that neither ``given`` nor the first file has; by default the model's.
        given: the teacher's settings; ``None`` leaves one open.

    Raises:
        UserError: for files, baselines or metrics that do not fit the model.
    """
    from gas.models.runtime import ending_at

    check_space(features.features, features.weights)
    baselines = [name.strip() for name in options.baselines.split(",") if name.strip()]
    artefacts = load_named(options.solver, model, transfer=options.transfer)
    first = next(iter(artefacts.values()))
    nfes = parse_nfes(options.nfe) if options.nfe else sorted({n for a in artefacts.values() for n in a.nfes})
    for n in nfes if options.nfe else ():
        for each in artefacts.values():
            each.neighbours(n)  # refuses what is neither trained nor between two that are
    seeds = parse_seeds(options.seeds)
    defaults = {"t_end": model.t_end} if usual is None else usual(nfes[0])
    teacher = _teacher(first, defaults, given or {})
    _check_baselines(baselines, nfes, model.t_end)
    yardstick_of, space = measuring(
        model, features.real, features.features, features.weights, features.reference
    )
    judges, judged = judging(model, options.metrics, options.metric_weights)
    for each in artefacts.values():
        warn_of_unknown_model(each, model)
        warn_of_known_seeds(each, seeds)
    pairs = taught(ending_at(model, teacher.t_end), teacher, seeds, first.document.guidance)
    ruler = replace(yardstick_of(pairs), judges=judges)
    rows = [row for n in nfes for row in _measure(model, ruler, n, artefacts, baselines, options.every)]
    _warn_of_interpolation(rows)
    rows.append(ruler.measure(f"{teacher.label} (teacher)", pairs.target, teacher.nfe))
    if options.picture is not None and distributed.is_first():
        _draw(options.picture, rows, model.name, len(pairs))
        note(f"wrote {options.picture}")
    document = {"model": model.name, "seeds": [seeds.start, seeds.stop], **space, **judged}
    return Evaluation(document=document, rows=rows, strongest=list(artefacts)[-1])


def _check_baselines(names: list[str], nfes: list[int], t_end: float) -> None:
    """Refuse a baseline that does not exist at one of the NFE before the teacher runs."""
    from gas.classical.registry import Classical

    for name in names:
        solver, _, grid = name.partition("/")
        for n in nfes:
            Classical(solver, grid or "log_snr", n, t_end)


def _teacher(artefact: Artefact, usual: Mapping[str, Any], given: Mapping[str, Any]) -> Classical:
    """Return the teacher: as given, else the file's, else as usual, else UniPC-3."""
    from gas.classical.registry import Classical

    teacher = artefact.document.teacher or {}
    known = teacher if "solver" in teacher else {}  # an imported set does not say what made it
    chosen = {name: value for name, value in given.items() if value is not None}
    return Classical(**{"solver": "unipc-3-bh2", "grid": "log_snr", "nfe": 20, **usual, **known, **chosen})


def _warn_of_interpolation(rows: list[Comparison]) -> None:
    for row in rows:
        others = [other for other in rows if other.nfe == row.nfe and other.mse < row.mse]
        if "interpolated" in row.name and others:
            best = min(others, key=lambda other: other.mse)
            told = f"NFE {row.nfe}: {row.name} is worse than {best.name}; train it or take that"
            note(f": {told}", label="warning")


def taught(model: Model, teacher: Classical, seeds: range, guidance: float = 1.0) -> Pairs:
    """Run the teacher on seeds, in memory, with a bar; several processes share the batches."""
    from gas.models.protocol import conditions_of
    from gas.pairs.dataset import Pairs, join_pairs
    from gas.pairs.teacher import teach

    table = teacher.table(model.schedule)
    starts = range(seeds.start, seeds.stop, 64)

    def part(start: int) -> dict[str, Tensor]:
        made = teach(model, table, range(start, min(start + 64, seeds.stop)), guidance=guidance)
        labels = {} if made.labels is None else {"labels": made.labels}
        return {"seeds": made.seeds, "noise": made.noise, "target": made.target, **labels}

    manifest = {"recipe": {"guidance": guidance, "teacher": {}, **conditions_of(model)}}
    made = distributed.map_sharded(part, tracked("teacher", starts, len(starts)))
    return join_pairs([Pairs(**tensors, manifest=manifest) for tensors in made])


def _measure(
    model: Model, ruler: Yardstick, nfe: int, artefacts: dict[str, Artefact], names: list[str], every: bool
) -> list[Comparison]:
    from gas.classical.registry import SOLVERS
    from gas.evaluation.sampler import run
    from gas.training.ranking import best_classical

    tables: dict[str, Table] = {}
    pairs = ruler.pairs
    for name in names:
        best = best_classical(model, pairs, nfe, [name])
        tables[best.classical.label] = best.table
    if every:
        best = best_classical(model, pairs, nfe, list(SOLVERS))
        tables[f"{best.classical.label} (best of all)"] = best.table
    for name, one in artefacts.items():
        if one.nfes[0] <= nfe <= one.nfes[-1]:
            around = one.neighbours(nfe)
            if around is not None:
                tables[f"{name}, NFE {around[0]} instead"] = one.table(around[0])
                name = f"{name}, {interpolation(around)}"
            tables[name] = one.table(nfe, interpolate=True)
    rows = []
    with bar(f"NFE {nfe}", len(tables)) as running:
        for done, (name, table) in enumerate(tables.items(), start=1):
            rows.append(ruler.measure(name, run(model, pairs, table), nfe))
            running.at(done, name)
    return rows


def _draw(path: Path, rows: list[Comparison], model: str, samples: int) -> None:
    from gas.plotting.errors import error_plot

    curves: dict[str, dict[int, float]] = {}
    grids: dict[str, set[str]] = {}
    for row in rows:
        if row.mse > 0 and not row.name.endswith(("(best of all)", " instead")):
            solver, _, used = row.name.split(" from NFE ")[0].partition(" / ")
            curves.setdefault(solver, {})[row.nfe] = row.mse
            grids.setdefault(solver, set()).add(used)
    told = [f"{solver} on {', '.join(sorted(used))}" for solver, used in grids.items() if any(used)]
    note_text = f"{model}, {samples} unseen seeds; {'; '.join(told)}."
    error_plot(path, curves, note=note_text, highlight="GS")
