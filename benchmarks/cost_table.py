"""What reaching a loss costs, by recipe: ``python benchmarks/cost_table.py docs/results/cost/*.json``.

Reads the curves of ``benchmarks/cost_to_quality.py`` and prints, where a model and NFE has both recipes, the final loss
of the official one and the network evaluations that ours takes to reach it; ``--picture docs/cost.png`` draws them.
Curves over budgets have a table of their own.
"""

import argparse
import json
import math
from pathlib import Path
from statistics import fmean

from gas.plotting.style import ACCENT, GREY, GRIDLINE, MUTED, Sheet, wrap
from gas.training.adam import PAPER


def main() -> None:
    """Print the table; draw the picture where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("curves", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path, help="A .png of loss over network evaluations.")
    options = parser.parse_args()
    both = curves(options.curves)
    print("\n".join([*table(both), "", *budget_table(options.curves)]))
    if options.picture is not None:
        draw(options.picture, both)


def curves(paths: list[Path]) -> dict:
    """Read the curves of every model and NFE that has both recipes."""
    curves_by_model: dict = {}
    for path in paths:
        read = json.loads(path.read_text())
        curves_by_model.setdefault((read["model"], read["nfe"]), {})[read["recipe"]] = read["curve"]
    return {
        key: curves_by_recipe
        for key, curves_by_recipe in sorted(curves_by_model.items())
        if {"official", "ours"} <= set(curves_by_recipe)
    }


def table(both: dict) -> list[str]:
    """The lines of the table; losses are x 1000."""
    head = ["model, NFE", "official: evaluations", "its loss", "ours: evaluations to that", "share"]
    lines = ["| " + " | ".join([*head, "best within 1/10"]) + " |", "|---|---|---|---|---|---|"]
    return lines + [
        "| "
        + " | ".join([f"`{model}`, {nfe}", *row(curves_by_recipe["official"], curves_by_recipe["ours"])])
        + " |"
        for (model, nfe), curves_by_recipe in both.items()
    ]


def row(official: list[dict], ours: list[dict]) -> list[str]:
    """The cells of one comparison; the official recipe's loss is that at its end, which its average is at best too."""
    spent, loss = official[-1]["evaluations"], official[-1]["loss"]
    if len(official) <= PAPER.iterations // PAPER.validate_every:
        return [f"{spent:,} so far", f"{1000 * loss:.4g} so far", "", "", ""]
    reached = next((point["evaluations"] for point in ours if point["best"] <= loss), None)
    within = [point["best"] for point in ours if point["evaluations"] <= spent / 10]
    return [
        f"{spent:,}",
        f"{1000 * loss:.4g}",
        "not reached" if reached is None else f"{reached:,}",
        "" if reached is None else f"1/{spent / reached:.0f}",
        "" if not within else f"{1000 * min(within):.4g} ({100 * (min(within) / loss - 1):+.1f} %)",
    ]


def budget_table(paths: list[Path]) -> list[str]:
    """The lines of the table of losses over budgets, x 1000 on unseen seeds, over the orders of the pairs."""
    lines = [
        "| model, NFE | budget | spent | best classical | loss | median | official, after |",
        "|" + "---|" * 7,
    ]
    documents = {path.stem: json.loads(path.read_text()) for path in paths}
    for document in documents.values():
        if document["recipe"] != "budget":
            continue
        official = documents.get(f"{document['model']}-{document['nfe']}-official", {"curve": []})["curve"]
        reference = f"{1000 * official[-1]['loss']:.4g}, {official[-1]['evaluations']:,}" if official else ""
        for budget in sorted({point["budget"] for point in document["curve"]}):
            points = [point for point in document["curve"] if point["budget"] == budget]
            losses = [1000 * point["loss"] for point in points]
            cells = [
                f"`{document['model']}`, {document['nfe']}",
                f"{budget:,}",
                f"{max(point['evaluations'] for point in points):,}",
                f"{1000 * fmean(point['classical'] for point in points):.4g}",
                f"{fmean(losses):.4g} ({', '.join(f'{loss:.3g}' for loss in losses)})",
                f"{1000 * fmean(point['median'] for point in points):.4g}",
                reference,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(path: Path, both: dict) -> None:
    """Best loss so far over evaluations, both logarithmic: a panel for each model and NFE."""
    width, height, gap, top, left = 860, 300, 60, 70, 66
    each = (width - left - 22 - gap * (len(both) - 1)) / max(len(both), 1)
    note = "The same 1,400 training pairs, loss on 1,000 others. A gradient through a call counts as three. "
    note += "Ours begins behind the ranking and the start search, whose evaluations are counted."
    small = wrap(note, width - 44, 11)
    sheet = Sheet(width, top + height + 60 + 16 * len(small))
    sheet.text(22, 26, "Loss over network evaluations", size=17, bold=True)
    for place, ((model, nfe), curves_by_recipe) in enumerate(both.items()):
        x = left + place * (each + gap)
        sheet.text(x, 54, f"{model}, NFE {nfe}", size=12, color=GREY)
        axes = sheet.axes(x, top, each, height)
        axes.set(xscale="log", yscale="log")
        axes.grid(axis="y", color=GRIDLINE, linewidth=1)
        for recipe, color in (("official", MUTED[0]), ("ours", ACCENT)):
            points = [p for p in curves_by_recipe[recipe] if p["evaluations"] and math.isfinite(p["best"])]
            line = [[p[name] for p in points] for name in ("evaluations", "best")]
            axes.plot(*line, color=color, marker="o", markersize=3.5, linewidth=2)
            place, beside = (0, (8, -3)) if recipe == "official" else (-1, (6, -13))
            end = line[0][place], line[1][place]
            axes.annotate(recipe, end, beside, textcoords="offset points", color=color, fontsize=9)
        axes.axhline(curves_by_recipe["official"][-1]["loss"], color=MUTED[0], linewidth=1, linestyle=":")
    sheet.text(left, top + height + 38, "network evaluations", size=11, color=GREY)
    for i, text in enumerate(small):
        sheet.text(22, top + height + 62 + 16 * i, text, size=11, color=GREY)
    sheet.save(path)


if __name__ == "__main__":
    main()
