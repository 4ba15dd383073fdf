"""What ``benchmarks/gas_seeds.py`` measured: ``python benchmarks/gas_report.py [--picture docs/gas.png]``.

Prints Markdown: one table a number of calls to the teacher's samples, one to real images. Of several training seeds
it gives mean ± standard deviation; the brackets hold every seed's 95% interval (over samples, bias taken away).
"""

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev

from safetensors.torch import load_file
from torch import Tensor

import gas
from gas.metrics.frechet import extract
from gas.plotting.samples import sample_grid

KINDS = {
    "classical": "best classical",
    "gs": "GS",
    "control": "GS, and GAS's steps without a critic",
    "gas": "**GAS**",
    "teacher": "teacher",
}
SHARES = ("precision", "recall", "density", "coverage")
COLUMNS = 7


def main() -> None:
    """Print the tables; draw the picture where one is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--results", type=Path, default=Path("docs/results/gas"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--unseen", type=Path, default=Path("runs/mnist-unseen"), help="of the picture")
    parser.add_argument("--work", type=Path, default=Path("runs/gas-seeds"), help="of the picture")
    options = parser.parse_args()
    cells = read(options.results, options.model)
    nfes = sorted({nfe for nfe, kind in cells if kind != "teacher"})
    first = next(iter(cells.values()))[0]
    print(
        f"`{options.model}`, {first['samples']} samples, seeds {first['seeds'][0]} to {first['seeds'][1] - 1}\n"
    )
    for where in ("to_teacher", "to_data"):
        print_table(cells, where)
    print_differences(cells, nfes)
    if options.picture is not None:
        draw(options, nfes)


def read(folder: Path, model: str) -> dict[tuple[int, str], list[dict]]:
    """Return the measurements by number of calls and kind, one a training seed."""
    cells: dict[tuple[int, str], list[dict]] = {}
    for path in sorted(folder.glob(f"{model}-*.json")):
        parts = path.stem.removeprefix(f"{model}-").split("-")
        kind = "teacher" if parts == ["teacher"] else parts[1]
        figures = json.loads(path.read_text())
        cells.setdefault((figures["nfe"], kind), []).append(figures)
    if not cells:
        raise SystemExit(f"{folder} holds no measurements of {model}: run benchmarks/gas_seeds.py")
    return cells


def print_table(cells: dict[tuple[int, str], list[dict]], where: str) -> None:
    """Print distances to the teacher's samples or to real images."""
    whom = "the teacher" if where == "to_teacher" else "real images"
    print(f"| | calls | MSE to the teacher | Frechet to {whom} | kernel distance | {' | '.join(SHARES)} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (nfe, kind), runs in sorted(cells.items(), key=lambda c: (c[0][0], list(KINDS).index(c[0][1]))):
        if kind == "teacher" and where == "to_teacher":
            continue
        name = f"{KINDS[kind]} ({runs[0]['name']})" if kind in ("classical", "teacher") else KINDS[kind]
        error = "" if kind == "teacher" else spread([run["mse"] for run in runs], 4)
        distance = spread([run[where]["frechet"] for run in runs], 3)
        kernel = spread([run[where]["kernel"] for run in runs], 2)
        shares = " | ".join(spread([run[where]["prdc"][share] for run in runs], 3) for share in SHARES)
        print(f"| {name} | {nfe} | {error} | {distance} | {kernel} | {shares} |")
    print()


def print_differences(cells: dict[tuple[int, str], list[dict]], nfes: list[int]) -> None:
    """Print GAS less GS and less its control, seed by seed: all started from the same table on the same noise."""
    print("GAS less the other, training seed by training seed:\n")
    print("| calls | less | MSE x 1000 | Frechet to the teacher | Frechet to real images |")
    print("|---|---|---|---|---|")
    for nfe, kind in [(nfe, kind) for nfe in nfes for kind in ("gs", "control")]:
        pairs = list(zip(by_seed(cells, nfe, kind), by_seed(cells, nfe, "gas"), strict=False))
        error = ", ".join(f"{1000 * (b['mse'] - a['mse']):+.2f}" for a, b in pairs)
        columns = [
            ", ".join(f"{b[where]['frechet'] - a[where]['frechet']:+.3f}" for a, b in pairs)
            for where in ("to_teacher", "to_data")
        ]
        print(f"| {nfe} | {KINDS[kind]} | {error} | {' | '.join(columns)} |")
    print()


def by_seed(cells: dict[tuple[int, str], list[dict]], nfe: int, kind: str) -> list[dict]:
    """Return the runs of one cell in order of their training seed."""
    return sorted(cells.get((nfe, kind), []), key=lambda run: run["training_seed"])


def spread(values: list[float], digits: int) -> str:
    """Return mean ± standard deviation, or the number where there is one."""
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):.{digits}f}"


def draw(options: argparse.Namespace, nfes: list[int]) -> None:
    """Draw GS beside GAS beside the teacher on the seeds where the features of the first two differ most."""
    model = gas.zoo.load(options.model)
    unseen = gas.pairs.read_pairs(options.unseen, model=model)
    rows: list[tuple[str, Tensor]] = []
    for nfe in nfes:
        samples_by_kind = {
            kind: load_file(options.work / f"{options.model}-{nfe}-{kind}-0.safetensors")["samples"]
            for kind in ("gs", "gas")
        }
        features = {kind: extract(model.features, samples) for kind, samples in samples_by_kind.items()}
        most = (features["gs"] - features["gas"]).norm(dim=1).topk(COLUMNS).indices
        shown = {"GS": samples_by_kind["gs"], "GAS": samples_by_kind["gas"], "Teacher": unseen.target}
        rows += [
            (f"{name}\n{nfe if name != 'Teacher' else 20} calls", samples[most].clamp(-1, 1))
            for name, samples in shown.items()
        ]
    sample_grid(
        options.picture,
        rows,
        title="Where the critic changes most",
        note=f"{options.model}: for each number of calls the {COLUMNS} of {len(unseen)} unseen seeds where the "
        "classifier's features of GS and GAS lie farthest apart; training seed 0. Every three rows are of one noise.",
    )


if __name__ == "__main__":
    main()
