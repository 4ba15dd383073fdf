"""What ``benchmarks/gas_seeds.py`` measured: ``python benchmarks/gas_report.py [--picture FILE.png]``.

Prints Markdown: one table of distances to the teacher's samples, one of those to real images. Of several training seeds
it gives mean ± standard deviation.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev

from safetensors.torch import load_file
from torch import Tensor

import gas
from gas.plotting.samples import sample_grid

KINDS = {
    "classical": "best classical",
    "gs": "GS",
    "control": "GS, control",
    "gas": "GAS",
    "lifted": "GS, lifted",
    "lifted_control": "GS, lifted, control",
    "lifted_gas": "**GS, lifted, critic**",
    "teacher": "teacher",
}
SHOWN = ("classical", "gs", "gas", "lifted", "lifted_gas")
SHARES = ("precision", "recall", "density", "coverage")
COLUMNS = 10


def main() -> None:
    """Print the tables; draw the picture where one is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--results", type=Path, default=Path("docs/results/few-calls"))
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
    print(f"| | NFE | MSE x 1000 | median | Fréchet to {whom} | kernel distance | {' | '.join(SHARES)} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (nfe, kind), runs in sorted(cells.items(), key=lambda c: (c[0][0], list(KINDS).index(c[0][1]))):
        if kind == "teacher" and where == "to_teacher":
            continue
        name = f"{KINDS[kind]} ({runs[0]['name']})" if kind in ("classical", "teacher") else KINDS[kind]
        # Files of an earlier library have no median.
        errors = [
            spread([1000 * run[name] for run in runs if name in run], 2) for name in ("mse", "mse_median")
        ]
        error = " | " if kind == "teacher" else " | ".join(errors)
        distance = spread([run[where]["frechet"] for run in runs], 3)
        kernel = spread([run[where]["kernel"] for run in runs], 2)
        shares = " | ".join(spread([run[where]["prdc"][share] for run in runs], 3) for share in SHARES)
        print(f"| {name} | {nfe} | {error} | {distance} | {kernel} | {shares} |")
    print()


# Each kind with the one that it has to beat.
COMPARED = (("gas", "gs"), ("lifted", "gs"), ("lifted_gas", "gas"), ("lifted_gas", "lifted_control"))


def print_differences(cells: dict[tuple[int, str], list[dict]], nfes: list[int]) -> None:
    """Print one kind less another, seed by seed: all started from the same table on the same noise."""
    print("Differences, training seed by training seed:\n")
    print("| NFE | | less | MSE x 1000 | Fréchet to the teacher | Fréchet to real images |")
    print("|---|---|---|---|---|---|")
    for nfe, (kind, other) in [(nfe, both) for nfe in nfes for both in COMPARED]:
        pairs = list(zip(by_seed(cells, nfe, other), by_seed(cells, nfe, kind), strict=False))
        if not pairs:
            continue
        error = ", ".join(f"{1000 * (b['mse'] - a['mse']):+.2f}" for a, b in pairs)
        columns = [
            ", ".join(f"{b[where]['frechet'] - a[where]['frechet']:+.3f}" for a, b in pairs)
            for where in ("to_teacher", "to_data")
        ]
        print(f"| {nfe} | {KINDS[kind]} | {KINDS[other]} | {error} | {' | '.join(columns)} |")
    print()


def by_seed(cells: dict[tuple[int, str], list[dict]], nfe: int, kind: str) -> list[dict]:
    """Return the runs of one cell in order of their training seed."""
    return sorted(cells.get((nfe, kind), []), key=lambda run: run["training_seed"])


def spread(values: list[float], digits: int) -> str:
    """Return mean ± standard deviation, or the number where there is one; nothing of none."""
    if not values:
        return ""
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):.{digits}f}"


def draw(options: argparse.Namespace, nfes: list[int]) -> None:
    """Draw every kind of solver beside the teacher on the first unseen seeds."""
    model = gas.zoo.load(options.model)
    unseen = gas.pairs.read_pairs(options.unseen, model=model)
    rows: list[tuple[str, Tensor]] = []
    for nfe in nfes:
        for kind in SHOWN:
            path = options.work / f"{options.model}-{nfe}-{kind}-0.safetensors"
            path = path if kind != "classical" else path.with_stem(f"{options.model}-{nfe}-{kind}")
            if path.exists():
                samples = load_file(path)["samples"]
                rows.append((f"{KINDS[kind].strip('*')}\nNFE {nfe}", samples[:COLUMNS].clamp(-1, 1)))
    rows.append(("teacher\nNFE 20", unseen.target[:COLUMNS].clamp(-1, 1)))
    sample_grid(
        options.picture,
        rows,
        title="Few evaluations of one network",
        note=f"{options.model}: the first {COLUMNS} unseen seeds; training seed 0. A column is of one noise.",
    )


if __name__ == "__main__":
    main()
