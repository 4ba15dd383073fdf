"""What ``benchmarks/forwards.py`` measured: ``python benchmarks/forwards_report.py [--picture FILE.png]``.

Prints Markdown: for every model a table of errors over forward passes, squared errors to the guided teacher x 1000, and
one of ratios, of learned rows to GS with guided predictions of the same training seeds. Several training seeds have
their mean, and the least and the largest.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from gas.plotting.style import ACCENT, GREY, GRIDLINE, MUTED, Sheet, matplotlib_module, text_width, wrap

RESULTS = Path("docs/results/forwards")
METHODS = ("GS, guided", "GS, guidance interval", "learned rows")
COLORS = dict(zip(METHODS, (MUTED[0], MUTED[3], ACCENT), strict=True))

# The measurements of one model and scale, by forward passes and method: a training seed each.
Cells = dict[tuple[int, str], list[dict[str, Any]]]


def main() -> None:
    """Print the tables; draw the picture where one is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    models = read(options.results)
    for model, scales in models.items():
        print("\n".join([f"`{model}`:\n", *text(scales), ""]))
    if options.picture is not None:
        draw(options.picture, models)


def read(folder: Path) -> dict[str, dict[float, Cells]]:
    """Return the measurements by model, guidance scale, forward passes and method."""
    models: dict[str, dict[float, Cells]] = {}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        cells = models.setdefault(document["model"], {}).setdefault(document["guidance"], {})
        for each in document["figures"]:
            cells.setdefault((each["forward_passes"], each["method"]), []).append(each)
    if not models:
        raise SystemExit(f"{folder} holds no measurements: run benchmarks/forwards.py --results {folder}")
    return {model: dict(sorted(models[model].items())) for model in models}


def text(scales: dict[float, Cells]) -> list[str]:
    """The lines of one model."""
    return [*table(scales), "", *ratios(scales), "", *remarks(scales)]


def table(scales: dict[float, Cells]) -> list[str]:
    """The errors of one model: a cell is mean, median, and Fréchet distance to the teacher's samples."""
    head = ["guidance", "forward passes", *METHODS, "rows"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for scale, cells in scales.items():
        for passes in sorted({passes for passes, method in cells if method in METHODS}):
            columns = [cell(cells.get((passes, method), [])) for method in METHODS]
            rows = dict.fromkeys(
                each["rows"].replace(" ", "") for each in cells.get((passes, METHODS[-1]), [])
            )
            line = [f"{scale:g}", str(passes), *columns, ", ".join(rows)]
            lines.append(f"| {' | '.join(line)} |")
    return lines


def cell(runs: list[dict[str, Any]]) -> str:
    """Mean with its spread over training seeds, or the half width of one seed's interval; median; Fréchet distance."""
    if not runs:
        return ""
    mean = spread([each["mse"] for each in runs], ".3g")
    if len(runs) == 1:
        mean += f" ± {runs[0]['half_width']:.2g}"
    return (
        f"{mean}, {fmean(each['median'] for each in runs):.3g}; {fmean(each['frechet'] for each in runs):.3g}"
    )


def spread(values: list[float], form: str) -> str:
    """The mean over training seeds, with the least and the largest."""
    mean = f"{fmean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


# Learned rows of so many forward passes beside guided predictions of so many.
COMPARED = ((4, 4), (5, 6), (6, 6), (6, 8), (7, 8), (8, 8))
ERRORS = ("mse", "median")


def ratios(scales: dict[float, Cells]) -> list[str]:
    """The ratios of means (least to largest), and of medians."""
    head = ["guidance", *(f"{learned} passes to {guided} guided" for learned, guided in COMPARED)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for scale, cells in scales.items():
        columns = []
        for learned, guided in COMPARED:
            means, medians = (quotients(cells, "learned rows", learned, guided, name) for name in ERRORS)
            columns.append(f"{spread(means, '.2f')}, {fmean(medians):.2f}" if means else "")
        lines.append(f"| {scale:g} | {' | '.join(columns)} |")
    return lines


def quotients(cells: Cells, method: str, passes: int, guided: int, name: str = "mse") -> list[float]:
    """The ratios of a method's error to that of so many guided passes, training seed by training seed."""
    theirs = {each["file"]: each[name] for each in cells.get((guided, "GS, guided"), [])}
    return [
        each[name] / theirs[each["file"]]
        for each in cells.get((passes, method), [])
        if each["file"] in theirs
    ]


def remarks(scales: dict[float, Cells]) -> list[str]:
    """Where learned rows lose at as many passes, what other rules come to, and who is named as prompted."""
    lines = []
    for scale, cells in scales.items():
        for passes, method in sorted(cells):
            ratio = quotients(cells, method, passes, passes)
            if method == "learned rows" and ratio and max(ratio) > 1:
                ratios = spread(ratio, ".2f")
                lines.append(f"- Above GS at as many passes: guidance {scale:g}, {passes} passes, {ratios}.")
    every = [(cells, *key) for cells in scales.values() for key in cells]
    for rule in sorted({method for *_, method in every} - {*METHODS}):
        of_rule = [quotients(cells, rule, n, n) for cells, n, method in every if method == rule]
        ratio = [each for ratios in of_rule for each in ratios]
        lines.append(f"- {rule}: {min(ratio):.2f} to {max(ratio):.2f} times the mean of plain guidance.")
    for method in METHODS:
        shares = [run["named"] for cells, n, name in every if name == method for run in cells[n, name]]
        if shares and None not in shares:
            lines.append(f"- Named as prompted, {method}: {min(shares):.1%} to {max(shares):.1%}.")
    return lines


def draw(path: Path, models: dict[str, dict[float, Cells]]) -> None:
    """Mean error over forward passes, logarithmic: a panel for each model and scale."""
    across = max(len(scales) for scales in models.values())
    width, height, gap, left, top = 900, 150, 44, 66, 96
    each = (width - left - 22 - gap * (across - 1)) / across
    note = (
        "Squared error to the guided teacher of 20 evaluations, x 1000, mean over training seeds. A guided "
    )
    note += "prediction is two forward passes; an interval leaves out unconditional ones; learned rows are one each."
    small = wrap(note, width - 44, 11)
    sheet = Sheet(width, top + (height + 66) * len(models) + 16 * len(small))
    sheet.text(22, 26, "Error over forward passes", size=17, bold=True)
    x = 22.0
    for method, color in COLORS.items():
        sheet.text(x, 50, method, size=12, color=color, bold=True)
        x += text_width(method, 12, bold=True) + 22
    for line, (model, scales) in enumerate(models.items()):
        means = [mean(runs) for cells in scales.values() for key, runs in cells.items() if key[1] in METHODS]
        limits = 0.8 * min(means), 1.25 * max(means)
        y = top + line * (height + 66)
        for place, (scale, cells) in enumerate(scales.items()):
            x = left + place * (each + gap)
            sheet.text(x, y - 14, f"{model}, guidance {scale:g}", size=11, color=GREY)
            panel(sheet.axes(x, y, each, height), cells, limits)
    sheet.text(left, sheet.height - 16 * len(small) - 24, "forward passes a sample", size=11, color=GREY)
    sheet.small_print(22, sheet.height - 16 * len(small), small)
    sheet.save(path)


def mean(runs: list[dict[str, Any]]) -> float:
    """The mean error over training seeds."""
    return fmean(each["mse"] for each in runs)


def panel(axes: Any, cells: Cells, limits: tuple[float, float]) -> None:
    """The curves of one model and scale."""
    ticker = matplotlib_module("ticker")
    axes.set(yscale="log", ylim=limits)
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(axis="y", color=GRIDLINE, linewidth=1)
    shown = set()
    for method, color in COLORS.items():
        runs = {passes: some for (passes, name), some in sorted(cells.items()) if name == method}
        axes.plot(
            [*runs],
            [mean(some) for some in runs.values()],
            color=color,
            marker="o",
            markersize=3.5,
            linewidth=2,
        )
        shown |= runs.keys()
    axes.set_xticks(sorted(shown))


if __name__ == "__main__":
    main()
