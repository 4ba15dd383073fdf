"""``gas evaluate``: a solver file against the classical solvers and the teacher, on unseen seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import gas
from gas.cli import options
from gas.cli.app import command
from gas.cli.checks import FILE, NFE, option, split_names
from gas.cli.screen import bar, note, print_json, print_table, tracked
from gas.display import with_interval


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Solvers to measure, and the seeds and metrics to measure them with."""

    panel: ClassVar[str] = "Evaluation"

    solver: Annotated[
        list[Path], option("Solver file; repeat it to compare several.", names=("--solver", "-s"), **FILE)
    ]
    nfe: Annotated[str, option("NFE, as 4 or 3-6,8,10; default: all in the files.", options.parse_nfes)] = ""
    seeds: Annotated[
        str, option("Unseen seeds, as N or FIRST:STOP (not included).", options.measured_seeds)
    ] = "50000:50512"
    guidance: options.GuidanceScale = None
    baselines: Annotated[
        str, option("Classical solvers, comma-separated: SOLVER on its best grid, or SOLVER/GRID.")
    ] = "dpmpp-3m/log_snr,unipc-3-bh2,ipndm-3"
    every: Annotated[bool, option("Also measure the best classical solver.")] = False
    transfer: Annotated[bool, option("Accept solvers of another network, same shape and schedule.")] = False
    metrics: Annotated[
        str, option("Per-sample metrics: lpips (to the teacher), clip-score (of prompts).")
    ] = ""
    metric_weights: options.MetricWeights = None
    picture: options.Picture = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A row for each solver and NFE, and the teacher's, with model, seeds and fingerprints in a plain document."""

    document: dict[str, Any]
    rows: list[gas.evaluation.SolverMetrics]
    strongest: str  # name of the row to emphasize

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
        for title, data in (
            ("the same, as distributions of features; 95% intervals", False),
            ("the same, against real images", True),
        ):
            print_distributions(title, self.rows, self.strongest, data)


@command(
    "gas evaluate --model digits --solver runs/digits.json --seeds 50000:50512", shared=True, file="picture"
)
def evaluate(
    *,
    evaluation: EvaluationOptions,
    teacher: Annotated[str | None, option("Solver of the teacher; default: the file's.")] = None,
    grid: Annotated[str | None, option("Time grid of the teacher; default: the file's.")] = None,
    teacher_nfe: Annotated[int | None, option("NFE of the teacher; default: the file's.", **NFE)] = None,
    features: options.FeatureOptions,
    network: options.NetworkOptions,
    json: options.Json = False,
) -> None:
    """Measure solvers from the same noise: error to the teacher, and distances of distributions with 95% intervals.

    An NFE between two of the file's gets a table interpolated from them, named so. A baseline without a grid runs on
    the grid that is best for it on these very seeds, which favors it; of more than eight candidates, all are measured
    on the first 64 seeds and the best eight on all. The first file names the teacher.
    """
    given = {"solver": teacher, "grid": grid, "nfe": teacher_nfe}
    evaluate_files(network.load(), evaluation, features, given=given).show(json)


def evaluate_files(
    model: gas.models.Model,
    evaluation: EvaluationOptions,
    features: options.FeatureOptions,
    *,
    usual: Callable[[int], Mapping[str, Any]] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Measure solver files against classical solvers and the teacher.

    The teacher's settings are those ``given`` that are not ``None``, else of the first file, else the ``usual`` ones
    of an NFE.
    """
    artefacts = gas.evaluation.solver_files.load_solver_files(
        evaluation.solver, model, transfer=evaluation.transfer, guidance=evaluation.guidance
    )
    first = next(iter(artefacts.values()))
    nfes = sorted({nfe for artefact in artefacts.values() for nfe in artefact.nfes})
    if evaluation.nfe:
        nfes = options.parse_nfes(evaluation.nfe)
        _ = [a.neighbours(nfe) for nfe in nfes for a in artefacts.values()]  # refuses those outside
    baselines, seeds = split_names(evaluation.baselines), options.parse_seeds(evaluation.seeds)
    defaults = {"t_end": model.t_end} if usual is None else usual(nfes[0] if nfes else first.forwards[0])
    teacher = _teacher(first, defaults, given or {})
    for solver, _, grid in (name.partition("/") for name in baselines):
        # Refused before any work.
        _ = [gas.Classical(solver, grid or "log_snr", nfe, model.t_end) for nfe in nfes]
    space = features.space(model)
    metrics = gas.features.per_sample.sample_metrics(
        split_names(evaluation.metrics), model, evaluation.metric_weights
    )
    for artefact in artefacts.values():
        warn_of_provenance(artefact, model, seeds)
    source, guidance = gas.models.runtime.ending_at(model, teacher.t_end), first.document.guidance
    pairs = gas.evaluation.teacher_pairs(source, teacher, seeds, guidance=guidance, progress=teacher_progress)
    evaluator = gas.Evaluator.for_model(model, pairs, space, sample_metrics=metrics)
    # By name and NFE: two baselines may be the same solver on the same grid.
    rows_of = _entries(evaluator, model, nfes, artefacts, baselines, evaluation.every)
    entries = list({(entry.name, entry.nfe): entry for entry in rows_of}.values())
    for name, artefact in artefacts.items() if not evaluation.nfe else ():
        for count in artefact.forwards:
            entries.append(_Entry(f"{name}, by forward passes", count, artefact.table(forwards=count)))
    entries, rows = _measure(evaluator, model, entries)
    if evaluation.picture is not None and gas.distributed.is_first():
        _draw(evaluation.picture, entries, rows, model.name)
    rows.append(evaluator.measure(f"{teacher.label} (teacher)", pairs.target, teacher.nfe))
    document = {"model": model.name, "seeds": [seeds.start, seeds.stop], **space.fingerprint}
    for metric in metrics:
        document |= metric.fingerprint
    return Evaluation(document=document, rows=rows, strongest=list(artefacts)[-1])


@dataclass(frozen=True)
class _Entry:
    """One row: a table to evaluate, which may be of a smaller NFE, and the line in the picture that it belongs to."""

    name: str
    nfe: int
    table: gas.Table
    curve: str = ""
    grid: str = ""
    interpolated: bool = False


def _teacher(artefact: gas.Artefact, usual: Mapping[str, Any], given: Mapping[str, Any]) -> gas.Classical:
    """Return the teacher: as given, else the file's, else as usual, else UniPC-3."""
    teacher = artefact.document.teacher or {}
    known = teacher if "solver" in teacher else {}  # an imported set does not name its teacher
    settings = {"solver": "unipc-3-bh2", "grid": "log_snr", "nfe": 20, **usual, **known}
    settings |= {name: value for name, value in given.items() if value is not None}
    return gas.Classical.from_config(settings)


def _entries(
    evaluator: gas.Evaluator,
    model: gas.models.Model,
    nfes: Sequence[int],
    artefacts: Mapping[str, gas.Artefact],
    baselines: Sequence[str],
    every: bool,
) -> Iterator[_Entry]:
    """Yield the rows of every NFE: baselines, the best classical solver, and the files that have it."""
    for nfe in nfes:
        for name in baselines:
            best = gas.training.best_classical(model, evaluator.pairs, nfe, [name])
            classical = best.classical
            yield _Entry(classical.label, nfe, best.table, curve=classical.solver, grid=classical.grid)
        if every:
            best = gas.training.best_classical(model, evaluator.pairs, nfe, list(gas.classical.SOLVERS))
            yield _Entry(f"{best.classical.label} (best of all)", nfe, best.table)
        for name, artefact in artefacts.items():
            if not artefact.nfes or not artefact.nfes[0] <= nfe <= artefact.nfes[-1]:
                continue
            around, table = artefact.neighbours(nfe), artefact.table(nfe, interpolate=True)
            if around is None:
                yield _Entry(name, nfe, table, curve=name)
            else:
                yield _Entry(f"{name}, NFE {around[0]} instead", nfe, artefact.table(around[0]))
                label, curve = f"{name}, {options.interpolation(around)}", f"{name}, interpolated"
                yield _Entry(label, nfe, table, curve=curve, interpolated=True)


def _measure(
    evaluator: gas.Evaluator, model: gas.models.Model, entries: Sequence[_Entry]
) -> tuple[list[_Entry], list[gas.evaluation.SolverMetrics]]:
    """Measure entries whose samples are finite; warn of others, and of interpolated ones that another of its NFE beats.

    Returns:
        The entries that were measured, and their rows.
    """
    measured, rows = [], []
    with bar("solvers", len(entries)) as progress:
        for done, entry in enumerate(entries, start=1):
            samples = gas.evaluation.sample_pairs(model, evaluator.pairs, entry.table)
            progress.at(done, f"NFE {entry.nfe}: {entry.name}")
            if not bool(samples.isfinite().all()):
                note(f"NFE {entry.nfe}: samples of {entry.name} are not finite: left out", label="warning: ")
                continue
            branched = entry.table.branches is not None
            measured.append(entry)
            rows.append(evaluator.measure(entry.name, samples, entry.nfe, branched=branched))
    for entry, row in zip(measured, rows, strict=True):
        best = min((other for other in rows if other.nfe == row.nfe), key=lambda other: other.mse)
        if entry.interpolated and best.mse < row.mse:
            note(
                f"NFE {row.nfe}: {row.name} is worse than {best.name}; train it or use that",
                label="warning: ",
            )
    return measured, rows


def _draw(
    path: Path, entries: Sequence[_Entry], rows: Sequence[gas.evaluation.SolverMetrics], model: str
) -> None:
    curves: dict[str, dict[int, float]] = {}
    grids: dict[str, set[str]] = {}
    for entry, row in zip(entries, rows, strict=True):
        if entry.curve and row.mse > 0:
            curves.setdefault(entry.curve, {})[row.nfe] = row.mse
            grids.setdefault(entry.curve, set()).update([entry.grid] if entry.grid else [])
    if not curves:
        note(f"{path} is not drawn: every error is 0")
        return
    used = [f"{curve} on {', '.join(sorted(names))}" for curve, names in grids.items() if names]
    text = f"{model}, {rows[0].samples} unseen seeds; {'; '.join(used)}."
    learned = [e.curve for e in entries if e.curve in curves and not e.grid and not e.interpolated]
    gas.plotting.error_plot(path, curves, note=text, highlight=learned[-1] if learned else None)
    note(f"wrote {path}")


def teacher_progress(batches: Sequence[int]) -> Iterable[int]:
    """Show a progress bar of the teacher's batches."""
    return tracked("teacher", batches, len(batches))


def warn_of_provenance(artefact: gas.Artefact, model: gas.models.Model, seeds: range | None = None) -> None:
    """Print the warnings of :func:`gas.evaluation.solver_files.provenance_warnings`."""
    for warning in gas.evaluation.solver_files.provenance_warnings(artefact, model, seeds):
        note(f": {warning}", label="warning")


def print_metrics(title: str, rows: Sequence[gas.evaluation.SolverMetrics], *, strong: str = "GS") -> None:
    """Print solvers' errors to the teacher, Frechet distances and per-sample metrics as a table."""
    print_table(title, [_cells(row) for row in rows], strong=strong)


def print_distributions(
    title: str, rows: Sequence[gas.evaluation.SolverMetrics], strong: str, data: bool
) -> None:
    """Print distances to the teacher's distribution, or to real images; nothing where they were not measured."""
    if all((row.to_data if data else row.to_teacher) is None for row in rows):
        return

    cells = []
    for row in rows:
        distances = row.to_data if data else None if row.mse == 0 else row.to_teacher
        frechet = _bracketed(row.frechet_data_corrected, row.frechet_data_interval)
        cells.append(
            {
                "solver": row.name,
                "NFE": row.nfe,
                "Frechet to data": None if data else frechet,
                f"Frechet to {'real images' if data else 'teacher'}": distances
                and _bracketed(distances.frechet_corrected, distances.frechet_interval),
                "kernel distance": distances and _number(distances.kernel, distances.kernel_std),
                **{
                    name: distances and distances.prdc and f"{getattr(distances.prdc, name):.3f}"
                    for name in ("precision", "recall", "density", "coverage")
                },
            }
        )
    caption = f"{gas.metrics.distances.BRACKETS}\n± is one standard error."
    print_table(title, cells, strong=strong, caption=caption)


def _cells(row: gas.evaluation.SolverMetrics) -> dict[str, object]:
    """The measurements of a solver by column; the teacher has no errors."""
    errors = {
        "MSE to teacher": _number(row.mse, row.mse_half_width),
        "median": _bracketed(row.mse_median, row.mse_median_interval) or _number(row.mse_median),
        "PSNR dB": None if row.psnr is None else f"{row.psnr:.1f}",
    }
    return {
        "solver": row.name,
        "NFE": row.nfe,
        "forward passes": row.forward_passes,
        **{name: text if row.mse else None for name, text in errors.items()},
        "Frechet to data": _number(row.frechet_data),
        "to teacher": _number(row.to_teacher.frechet) if row.to_teacher and row.mse else None,
        **{name: _number(*interval) for name, interval in row.more.items()},
    }


def _number(value: float | None, half_width: float = 0.0) -> str:
    return "" if value is None else with_interval(value, value - half_width, value + half_width)


def _bracketed(value: float | None, interval: tuple[float, float] | None) -> str:
    """An estimate with its interval; empty below the least number of samples."""
    return "" if value is None or interval is None else with_interval(value, *interval)
