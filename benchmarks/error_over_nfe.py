"""Error over the number of calls: ``python benchmarks/error_over_nfe.py docs/results/digits-1-20.json``.

Reads what ``gas evaluate --every --json`` wrote, prints every NFE's GS beside the best of all classical solvers, and
draws both with ``--picture docs/error-over-nfe.png``. Where GS is not surely better its file holds the classical table
that validated best, which another classical solver may beat on these seeds by chance.
"""

import argparse
import json
from pathlib import Path

from matplotlib.axes import Axes

from gas.plotting.style import ACCENT, GREY, GRIDLINE, MUTED, Sheet, wrap

LINES = {"dpmpp-3m": "DPM-Solver++(3M)", "unipc-3-bh2": "UniPC-3", "ipndm-3": "iPNDM-3"}
BEST = "best of all classical"


def main() -> None:
    """Print the table; draw the picture where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--picture", type=Path, help="A .png of error over NFE.")
    options = parser.parse_args()
    report = json.loads(options.report.read_text())
    print("\n".join(table(report)))
    if options.picture is not None:
        first, stop = report["seeds"]
        draw(options.picture, report["model"], read(report), f"{stop - first} unseen seeds")


def table(report: dict) -> list[str]:
    """The lines that show GS beside the best of all classical solvers."""
    lines, (first, stop) = read(report), report["seeds"]
    page = [f"`{report['model']}`, seeds {first} to {stop - 1}, mean squared error to the teacher x 1000:\n"]
    page += [f"| NFE | {BEST} | GS | GS / best classical |", "|---|---|---|---|"]
    for nfe, row in sorted(lines["GS"].items()):
        best = lines[BEST][nfe]
        share = f"{row['mse'] / best['mse']:.2g}" if best["mse"] > 0 else ""
        name = best["name"].removesuffix(" (best of all)")
        page.append(f"| {nfe} | {1000 * best['mse']:.4g} ({name}) | {1000 * row['mse']:.4g} | {share} |")
    return page


def classical_nfes(report: dict) -> list[int]:
    """NFE whose learned table is a classical one: GS makes no other sample than some classical solver does."""
    classical = {(row["nfe"], row["mse"]) for row in report["rows"] if " / " in row["name"]}
    return sorted(nfe for nfe, row in read(report)["GS"].items() if (nfe, row["mse"]) in classical)


def read(report: dict) -> dict[str, dict[int, dict]]:
    """Return the rows by line and NFE; the best classical row is the least of all that are shown."""
    lines: dict[str, dict[int, dict]] = {BEST: {}}
    for row in report["rows"]:
        if row["name"].endswith("(teacher)"):
            continue
        name = row["name"].split(" / ")[0]
        if name in (*LINES, "GS"):
            lines.setdefault(name, {})[row["nfe"]] = row
        if " / " in row["name"]:
            known = lines[BEST].get(row["nfe"])
            lines[BEST][row["nfe"]] = row if known is None or row["mse"] < known["mse"] else known
    return lines


def draw(path: Path, model: str, lines: dict[str, dict[int, dict]], samples: str) -> None:
    """Draw mean squared error over NFE on a logarithmic axis; the bars of GS are 95 % intervals."""
    width, height, left, top = 860, 380, 70, 64
    note = (
        f"{model}, {samples}. Each classical solver on the best of its grids, chosen on these very seeds; "
        "dotted: the best of all. Bars of GS: 95% intervals."
    )
    small = wrap(note, width - 44, 11)
    sheet = Sheet(width, top + height + 58 + 16 * len(small))
    sheet.text(22, 28, "Error to the teacher over network evaluations", size=17, bold=True)
    axes = sheet.axes(left, top, width - left - 150, height)
    axes.set(yscale="log")
    axes.grid(axis="y", color=GRIDLINE, linewidth=1)
    styles = {**dict(zip(LINES, MUTED, strict=False)), BEST: GREY, "GS": ACCENT}
    ends: list[tuple[int, float, str, str]] = []
    for name, color in styles.items():
        shown = sorted((n, row) for n, row in lines.get(name, {}).items() if row["mse"] > 0)
        nfes, errors = [n for n, _ in shown], [row["mse"] for _, row in shown]
        width_of = 2.4 if name == "GS" else 1.4
        axes.plot(nfes, errors, color=color, linewidth=width_of, linestyle=":" if name == BEST else "-")
        if name == "GS":
            bars = [row["mse_half_width"] for _, row in shown]
            axes.errorbar(nfes, errors, bars, color=color, fmt="o", markersize=4, linewidth=1.2)
        if name != BEST:
            ends.append((nfes[-1], errors[-1], LINES.get(name, name), color))
    _name(axes, ends)
    axes.set_xticks(sorted(lines["GS"]))
    sheet.text(left, top + height + 40, "network evaluations", size=11, color=GREY)
    for i, text in enumerate(small):
        sheet.text(22, top + height + 60 + 16 * i, text, size=11, color=GREY)
    sheet.save(path)


def _name(axes: Axes, ends: list[tuple[int, float, str, str]]) -> None:
    """Write the name of each line behind its end, and below the one before where two would meet."""
    axes.figure.canvas.draw()  # scales are known from then on
    points, last = 72 / axes.figure.dpi, float("inf")
    for x, y, name, color in sorted(ends, key=lambda end: -end[1]):
        level = axes.transData.transform((x, y))[1] * points
        place = min(level - 3, last - 12)
        last = place
        axes.annotate(name, (x, y), (10, place - level), textcoords="offset points", color=color, fontsize=9)


if __name__ == "__main__":
    main()
