"""``gas evaluate``: a solver file against the classical solvers and the teacher, on unseen seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from gas import distributed
from gas.arguments import MAX_NFE
from gas.cli.app import command
from gas.cli.checks import existing_file, listed, option, registered, split_names
from gas.cli.evaluation import (
    load_space,
    print_distributions,
    print_metrics,
    teacher_progress,
    warn_of_provenance,
)
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
from gas.cli.screen import bar, note, print_json

if TYPE_CHECKING:
    from gas.classical.registry import Classical
    from gas.evaluation.evaluator import Evaluator, SolverMetrics
    from gas.models.protocol import Model
    from gas.solver_file import Artefact
    from gas.table import Table

__all__ = ["Evaluation", "EvaluationOptions", "evaluate", "evaluate_files"]

BASELINES = ("dpmpp-3m/log_snr", "unipc-3-bh2", "ipndm-3")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Solvers to measure, and the seeds and metrics to measure them with."""

    panel: ClassVar[str] = "Evaluation"

    solver: Annotated[
        list[Path],
        option("Solver file; repeat it to compare several.", existing_file, names=("--solver", "-s")),
    ]
    nfe: Annotated[
        str, option("NFE to measure, as 4 or 3-6,8,10; default: all in the files.", parse_nfes)
    ] = ""
    seeds: Annotated[str, option("Seeds, as N or FIRST:LAST; not those trained on.", measured_seeds)] = (
        "50000:50512"
    )
    baselines: Annotated[
        str,
        option(
            "Classical solvers, comma-separated: SOLVER on its best grid, or SOLVER/GRID.",
            listed(check_classical),
        ),
    ] = ",".join(BASELINES)
    every: Annotated[bool, option("Also measure the best of all classical solvers.", names=("--every",))] = (
        False
    )
    transfer: Annotated[
        bool,
        option("Accept solvers of another network of the same shape and schedule.", names=("--transfer",)),
    ] = False
    metrics: Annotated[
        str,
        option(
            "Metrics of single samples: lpips (to the teacher), clip-score (of prompts).",
            listed(registered("metric", "gas.features.per_sample:SAMPLE_METRICS")),
        ),
    ] = ""
    metric_weights: MetricWeights = None
    picture: Picture = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measured solvers.

    Attributes:
        document: model, seeds and fingerprints of the evaluation, in plain JSON.
        rows: one per solver and NFE, and the teacher's.
        strongest: name of the row to emphasize.
    """

    document: dict[str, Any]
    rows: list[SolverMetrics]
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
        print_metrics(title, self.rows, strong=self.strongest)
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
        option(
            "Solver of the teacher; default: the file's.",
            registered("solver", "gas.classical.registry:SOLVERS"),
        ),
    ] = None,
    grid: Annotated[str | None, option("Time grid of the teacher; default: the file's.", check_grid)] = None,
    teacher_nfe: Annotated[
        int | None, option("NFE of the teacher; default: the file's.", min=1, max=MAX_NFE)
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
    from gas.evaluation.evaluator import Evaluator
    from gas.evaluation.sampler import teacher_pairs
    from gas.evaluation.solver_files import load_solver_files
    from gas.features.per_sample import sample_metrics
    from gas.models.runtime import ending_at

    artefacts = load_solver_files(options.solver, model, transfer=options.transfer)
    first, nfes = next(iter(artefacts.values())), _nfes(options.nfe, artefacts)
    baselines, seeds = split_names(options.baselines), parse_seeds(options.seeds)
    defaults = {"t_end": model.t_end} if usual is None else usual(nfes[0])
    teacher = _teacher(first, defaults, given or {})
    _check_baselines(baselines, nfes, model.t_end)
    space = load_space(model, features)
    metrics = sample_metrics(split_names(options.metrics), model, options.metric_weights)
    for artefact in artefacts.values():
        warn_of_provenance(artefact, model, seeds)
    pairs = teacher_pairs(
        ending_at(model, teacher.t_end),
        teacher,
        seeds,
        guidance=first.document.guidance,
        progress=teacher_progress,
    )
    evaluator = Evaluator.for_model(model, pairs, space, sample_metrics=metrics)
    entries = _entries(evaluator, model, nfes, artefacts, baselines, options.every)
    if not options.nfe:
        entries += _branched_entries(artefacts)
    rows = _measure(evaluator, model, entries)
    if options.picture is not None and distributed.is_first():
        _draw(options.picture, entries, rows, model.name)
    passes = _passes(teacher.table(model.schedule), pairs.guidance)
    rows.append(evaluator.measure(f"{teacher.label} (teacher)", pairs.target, teacher.nfe, passes))
    document = {"model": model.name, "seeds": [seeds.start, seeds.stop], **space.fingerprint}
    for metric in metrics:
        document |= metric.fingerprint
    return Evaluation(document=document, rows=rows, strongest=list(artefacts)[-1])


@dataclass(frozen=True)
class _Entry:
    """One row: a table to evaluate.

    Attributes:
        name: of the row.
        nfe: of the row; that of the table may be a smaller one.
        table: the solver.
        curve: its line in the picture; empty for a row that is not drawn.
        grid: of a classical solver.
        interpolated: whether the NFE was not trained.
    """

    name: str
    nfe: int
    table: Table
    curve: str = ""
    grid: str = ""
    interpolated: bool = False


def _nfes(text: str, artefacts: Mapping[str, Artefact]) -> list[int]:
    """The NFE to evaluate; refuses those that are neither trained nor between two trained ones."""
    if not text:
        return sorted({nfe for artefact in artefacts.values() for nfe in artefact.nfes})
    nfes = parse_nfes(text)
    for nfe in nfes:
        for artefact in artefacts.values():
            artefact.neighbours(nfe)
    return nfes


def _check_baselines(names: Sequence[str], nfes: Sequence[int], t_end: float) -> None:
    """Refuse a baseline that does not exist at one of the NFE, before the teacher runs."""
    from gas.classical.registry import Classical

    for name in names:
        solver, _, grid = name.partition("/")
        for nfe in nfes:
            Classical(solver, grid or "log_snr", nfe, t_end)


def _teacher(artefact: Artefact, usual: Mapping[str, Any], given: Mapping[str, Any]) -> Classical:
    """Return the teacher: as given, else the file's, else as usual, else UniPC-3."""
    from gas.classical.registry import Classical

    teacher = artefact.document.teacher or {}
    known = teacher if "solver" in teacher else {}  # an imported set does not name its teacher
    chosen = {name: value for name, value in given.items() if value is not None}
    return Classical(**{"solver": "unipc-3-bh2", "grid": "log_snr", "nfe": 20, **usual, **known, **chosen})


def _entries(
    evaluator: Evaluator,
    model: Model,
    nfes: Sequence[int],
    artefacts: Mapping[str, Artefact],
    baselines: Sequence[str],
    every: bool,
) -> list[_Entry]:
    """The rows of every NFE: baselines, the best classical solver, and the files that have it."""
    entries: dict[tuple[str, int], _Entry] = {}
    for nfe in nfes:
        for entry in (
            *_classical_entries(evaluator, model, nfe, baselines, every),
            *_learned_entries(nfe, artefacts),
        ):
            entries[entry.name, nfe] = entry
    return list(entries.values())


def _classical_entries(
    evaluator: Evaluator, model: Model, nfe: int, baselines: Sequence[str], every: bool
) -> Iterator[_Entry]:
    from gas.classical.registry import SOLVERS
    from gas.training.ranking import best_classical

    for name in baselines:
        best = best_classical(model, evaluator.pairs, nfe, [name])
        solver, grid = best.classical.solver, best.classical.grid
        yield _Entry(best.classical.label, nfe, best.table, curve=solver, grid=grid)
    if every:
        best = best_classical(model, evaluator.pairs, nfe, list(SOLVERS))
        yield _Entry(f"{best.classical.label} (best of all)", nfe, best.table)


def _learned_entries(nfe: int, artefacts: Mapping[str, Artefact]) -> Iterator[_Entry]:
    for name, artefact in artefacts.items():
        if not artefact.nfes or not artefact.nfes[0] <= nfe <= artefact.nfes[-1]:
            continue
        around, table = artefact.neighbours(nfe), artefact.table(nfe, interpolate=True)
        if around is None:
            yield _Entry(name, nfe, table, curve=name)
        else:
            yield _Entry(f"{name}, NFE {around[0]} instead", nfe, artefact.table(around[0]))
            label, curve = f"{name}, {interpolation(around)}", f"{name}, interpolated"
            yield _Entry(label, nfe, table, curve=curve, interpolated=True)


def _branched_entries(artefacts: Mapping[str, Artefact]) -> list[_Entry]:
    """The tables of forward passes of every file."""
    return [
        _Entry(f"{name}, by forward passes", count, artefact.table(forwards=count))
        for name, artefact in artefacts.items()
        for count in artefact.forwards
    ]


def _measure(evaluator: Evaluator, model: Model, entries: Sequence[_Entry]) -> list[SolverMetrics]:
    """Measure every entry; warn of an interpolated one that another of its NFE beats."""
    from gas.evaluation.sampler import sample_pairs

    rows, guidance = [], evaluator.pairs.guidance
    with bar("solvers", len(entries)) as progress:
        for done, entry in enumerate(entries, start=1):
            samples = sample_pairs(model, evaluator.pairs, entry.table)
            rows.append(evaluator.measure(entry.name, samples, entry.nfe, _passes(entry.table, guidance)))
            progress.at(done, f"NFE {entry.nfe}: {entry.name}")
    for entry, row in zip(entries, rows, strict=True):
        best = min((other for other in rows if other.nfe == row.nfe), key=lambda other: other.mse)
        if entry.interpolated and best.mse < row.mse:
            text = f"NFE {row.nfe}: {row.name} is worse than {best.name}; train it or use that"
            note(f": {text}", label="warning")
    return rows


def _passes(table: Table, guidance: float) -> int | None:
    """Forward passes a sample, where guidance is on."""
    return None if guidance == 1.0 else table.forward_passes(guidance)


def _draw(path: Path, entries: Sequence[_Entry], rows: Sequence[SolverMetrics], model: str) -> None:
    from gas.plotting.errors import error_plot

    curves: dict[str, dict[int, float]] = {}
    grids: dict[str, set[str]] = {}
    for entry, row in zip(entries, rows, strict=True):
        if entry.curve and row.mse > 0:
            curves.setdefault(entry.curve, {})[row.nfe] = row.mse
            grids.setdefault(entry.curve, set()).update([entry.grid] if entry.grid else [])
    used = [f"{curve} on {', '.join(sorted(names))}" for curve, names in grids.items() if names]
    text = f"{model}, {rows[0].samples} unseen seeds; {'; '.join(used)}."
    error_plot(path, curves, note=text, highlight="GS")
    note(f"wrote {path}")
