"""``gas evaluate``: a solver file against the classical solvers and the teacher, on unseen seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gas import distributed
from gas.arguments import MAX_NFE
from gas.cli.app import command
from gas.cli.checks import checked, existing_file, listed, registered
from gas.cli.comparisons import print_comparisons, print_distributions
from gas.cli.measuring import judging, measuring
from gas.cli.options import (
    Call,
    Compile,
    CudaGraphs,
    Device,
    Features,
    FeatureWeights,
    Json,
    MetricWeights,
    ModelName,
    Picture,
    Precision,
    Prompts,
    Real,
    Reference,
    check_classical,
    check_grid,
    check_space,
    interpolation,
    measured_seeds,
    parse_nfes,
    parse_seeds,
    recorded,
    solver_names,
    was_given,
)
from gas.cli.presets import PresetName, Settings, Weights, changed_settings, chosen_preset, opened
from gas.cli.screen import bar, note, print_json, tracked
from gas.cli.solver_files import load_named, warn_of_known_seeds, warn_of_unknown_model
from gas.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from gas.classical.registry import Classical
    from gas.evaluation.evaluator import Comparison, Yardstick
    from gas.models.protocol import Model
    from gas.pairs.dataset import Pairs
    from gas.solver_file import Artefact
    from gas.table import Table

__all__ = [
    "best_on",
    "evaluate",
    "taught",
]

BASELINES = ("dpmpp-3m/log_snr", "unipc-3-bh2", "ipndm-3")
_FINALISTS = 8


def _judges() -> Iterable[str]:
    from gas.features.judges import JUDGES

    return JUDGES


@command(
    "gas evaluate --model digits --solver runs/digits.json --seeds 50000:50512", shared=True, file="picture"
)
def evaluate(
    context: typer.Context,
    solver: Annotated[
        list[Path],
        typer.Option(
            "--solver",
            "-s",
            help="A solver file; repeat it to compare several.",
            callback=checked(existing_file),
        ),
    ],
    model: ModelName = "mnist",
    nfe: Annotated[
        str,
        typer.Option(
            help="Which NFE, as 4 or 3-6,8,10; default: all in the file.", callback=checked(parse_nfes)
        ),
    ] = "",
    seeds: Annotated[
        str,
        typer.Option(
            help="Seeds, as N or FIRST:LAST; not those trained on.", callback=checked(measured_seeds)
        ),
    ] = "50000:50512",
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The teacher's solver; default: the file's.",
            callback=checked(registered("solver", solver_names)),
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="The teacher's time grid; default: the file's.", callback=checked(check_grid)),
    ] = None,
    teacher_nfe: Annotated[
        int | None, typer.Option(help="The teacher's NFE; default: the file's.", min=1, max=MAX_NFE)
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(
            help="Classical solvers, comma-separated: SOLVER on its best grid, or SOLVER/GRID.",
            callback=checked(listed(check_classical)),
        ),
    ] = (",".join(BASELINES)),
    every: Annotated[
        bool, typer.Option("--every", help="Also find the best of all classical solvers.")
    ] = False,
    real: Real = None,
    features: Features = "model",
    weights: FeatureWeights = None,
    reference: Reference = None,
    transfer: Annotated[
        bool,
        typer.Option("--transfer", help="Take solvers of another network of the same shape and schedule."),
    ] = False,
    metrics: Annotated[
        str,
        typer.Option(
            help="Judges of each sample too: lpips (to the teacher), clip-score (of prompts).",
            callback=checked(listed(registered("metric", _judges))),
        ),
    ] = "",
    metric_weights: MetricWeights = None,
    picture: Picture = None,
    preset: PresetName = "",
    settings: Settings = None,
    preset_weights: Weights = None,
    prompts: Prompts = None,
    call: Call = "",
    device: Device = "cpu",
    precision: Precision = "float32",
    compiled: Compile = False,
    cuda_graphs: CudaGraphs = False,
    json: Json = False,
) -> None:
    """Measure solvers from the same noise: error to the teacher, and distances of distributions with 95% intervals.

    An NFE of --nfe between two of the file's gets a table interpolated from them, named so. A baseline without a
    grid runs on whichever is best for it on these very seeds, which favours it; of more than eight candidates all are
    measured on the first 64, and the best eight on all. The first file names the teacher. With --preset, the setup's
    model and seeds.
    """
    own: tuple[str, ...] = ("solver", "nfe", "seeds", "baselines", "every", "picture", "transfer")
    own += ("metrics", "metric_weights", "features", "weights", "reference", "real")
    setup = chosen_preset(context, preset, settings, own)
    check_space(features, weights)
    names = [name.strip() for name in baselines.split(",") if name.strip()]
    loaded = opened(setup, model, preset_weights, device, precision, compiled, prompts, call)
    loaded = recorded(loaded, cuda_graphs)
    artefacts = load_named(solver, loaded, transfer=transfer)
    artefact = next(iter(artefacts.values()))
    nfes = parse_nfes(nfe) if nfe else sorted({n for a in artefacts.values() for n in a.nfes})
    for n in nfes if nfe else ():
        for each in artefacts.values():
            each.neighbours(n)  # refuses what is neither trained nor between two that are
    guidance, chosen = artefact.document.guidance, parse_seeds(seeds)
    if setup is not None and not was_given(context, "seeds"):
        chosen = range(*setup.evaluation_seeds)
    usual = {"t_end": loaded.t_end} if setup is None else setup.master(nfes[0]).config()
    master = _teacher(artefact, usual, solver=teacher, grid=grid, nfe=teacher_nfe)
    _check_baselines(names, nfes, loaded.t_end)
    yardstick_of, space = measuring(loaded, real, features, weights, reference)
    judges, judged = judging(loaded, metrics, metric_weights or preset_weights)
    for each in artefacts.values():
        warn_of_unknown_model(each, loaded)
        warn_of_known_seeds(each, chosen)
    pairs = taught(_as_taught(loaded, master.t_end), master, chosen, guidance)
    ruler = replace(yardstick_of(pairs), judges=judges)
    rows = [row for n in nfes for row in _measure(loaded, ruler, n, artefacts, names, every)]
    _warn_of_interpolation(rows)
    rows.append(ruler.measure(f"{master.label} (teacher)", pairs.target, master.nfe))
    if picture is not None and distributed.is_first():
        _draw(picture, rows, loaded.name, len(pairs))
        note(f"wrote {picture}")
    if json:
        seeds_used = [chosen.start, chosen.stop]
        of = {} if setup is None else {"preset": preset, "settings": changed_settings(setup)}
        named = {"model": loaded.name, **of, "seeds": seeds_used, **space, **judged}
        print_json({**named, "rows": [asdict(r) for r in rows]})
    else:
        title = f"{loaded.name}: {len(pairs)} samples, seeds {chosen.start} to {chosen.stop - 1}"
        strong = list(artefacts)[-1]
        print_comparisons(title, rows, strong=strong)
        print_distributions("the same, as distributions of features; 95% intervals", rows, strong=strong)
        print_distributions("the same, against real images", rows, strong=strong, data=True)


def _check_baselines(names: list[str], nfes: list[int], t_end: float) -> None:
    """Refuse a baseline that does not exist at one of the NFE before the teacher runs."""
    from gas.classical.registry import Classical

    for name in names:
        solver, _, grid = name.partition("/")
        for n in nfes:
            Classical(solver, grid or "log_snr", n, t_end)


def _as_taught(model: Model, t_end: float) -> Model:
    """The model as a teacher runs it that ends at another time: EDM's published networks have another schedule then."""
    from gas.models.custom import OwnModel
    from gas.models.runtime import CudaGraphs, full_precision
    from gas.paper.backbone import ending_at

    if isinstance(model, CudaGraphs):
        return CudaGraphs(_as_taught(model.model, t_end))
    return ending_at(model, t_end) if isinstance(full_precision(model), OwnModel) else model


def _teacher(artefact: Artefact, own: Mapping[str, Any], **asked: str | int | None) -> Classical:
    """The teacher that was asked for, in what it leaves open the file's, the model's own, or UniPC-3."""
    from gas.classical.registry import Classical

    usual = {"solver": "unipc-3-bh2", "grid": "log_snr", "nfe": 20, **own}
    file = artefact.document.teacher or {}
    known = file if "solver" in file else {}  # an imported set does not say what made it
    told = {name: value for name, value in asked.items() if value is not None}
    return Classical(**{**usual, **known, **told})


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


def best_on(model: Model, pairs: Pairs, nfe: int, solvers: list[str]) -> tuple[Classical, Table]:
    """Return the best in mean squared error on these pairs of classical solvers: SOLVER (any grid) or SOLVER/GRID.

    All are measured on the first 64, the best eight of them on all.
    """
    from gas.classical.registry import candidates
    from gas.losses import l2
    from gas.training.ranking import rank_classical

    entries = [
        entry
        for solver, _, grid in (name.partition("/") for name in solvers)
        for entry in candidates(
            model.schedule, nfe, model.t_end, solvers=[solver], grids=[grid] if grid else ()
        )
    ]
    first, kept = min(64, len(pairs)), min(_FINALISTS, len(entries))
    ranked = list(rank_classical(model, pairs, nfe, l2, entries=entries, first=first, kept=_FINALISTS))
    if not ranked:
        raise UserError(f"none of {', '.join(solvers)} exists at NFE {nfe}")
    best = ranked[-kept]  # the finalists come last, best first
    return best.classical, best.table


def _measure(
    model: Model, ruler: Yardstick, nfe: int, artefacts: dict[str, Artefact], names: list[str], every: bool
) -> list[Comparison]:
    from gas.classical.registry import SOLVERS
    from gas.evaluation.sampler import run

    tables: dict[str, Table] = {}
    pairs = ruler.pairs
    for name in names:
        classical, table = best_on(model, pairs, nfe, [name])
        tables[classical.label] = table
    if every:
        classical, table = best_on(model, pairs, nfe, list(SOLVERS))
        tables[f"{classical.label} (best of all)"] = table
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
