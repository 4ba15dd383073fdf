"""Write docs/benchmarks/speed.md from the JSON in docs/results: ``python benchmarks/page.py``."""

import argparse
import json
from pathlib import Path
from statistics import geometric_mean

import cost_table
import error_over_nfe
import family
import rows

PAGE = Path("docs/benchmarks/speed.md")
COST, FAMILY = Path("docs/results/cost"), Path("docs/results/family")
ERROR = Path("docs/results/digits-1-20.json")
HEAD = """# Cost, speed and memory

Written by `python benchmarks/page.py` from the JSON files in `docs/results`. `make bench` measures memory, speed,
precision, the sampler, the scheduler and several processes in a quarter of an hour, then rewrites this page. Where a
longer command stands below, it made the figures beside it. Cost to quality, the family and the error over NFE are
trainings of an hour and more. Every script runs alone (`--help`), most of them on CUDA too (`--device cuda`).
"""


def main() -> None:
    """Write the page from whatever has been measured."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    parts = [HEAD, _cost(), _plan(), _noise(), _family(), _error(), _processes(), _scheduler(), _passes()]
    for device in ("", "-cuda"):
        parts += [_memory(device), _throughput(device), _precision(device), _sampler(device)]
    PAGE.write_text("\n".join(filter(None, parts)))
    print(f"wrote {PAGE}")


def _memory(device: str) -> str:
    measurements = _read("memory" + device)
    if not measurements:
        return ""
    text = _section("Memory over NFE", measurements)
    over_nfe = [row for row in measurements if not {"pairs", "size"} & set(row) and row["batch"] == 24]
    for model in dict.fromkeys(row["model"] for row in over_nfe):
        of_model = [row for row in over_nfe if row["model"] == model]
        text += (
            f"\nPeak memory of training on `{model}`, batch 24, above the loaded model, in MB, and the time of a step: "
            "`fast` stores all activations, activation checkpointing those of three calls (`flat`) or one (`least`) "
            "and recomputes the others; Gauss-Newton stores none.\n\n"
        )
        text += _grid(of_model, "mode", "nfe", "calls", lambda peak, time: f"{peak:.0f} MB, {time:.2f} s")
    text += _ratio(over_nfe)
    return text + _growth(measurements)


def _ratio(measurements: list[dict]) -> str:
    """What the two promises of flat memory came to, where both ends were measured."""
    text = ""
    for model in dict.fromkeys(row["model"] for row in measurements):
        at = {(r["name"], r["mode"], r["nfe"]): r["value"] for r in measurements if r["model"] == model}
        try:
            peak = [
                at["peak training memory", mode, 10] / at["peak training memory", mode, 4]
                for mode in ("flat", "fast")
            ]
            time = at["training step", "flat", 10] / at["training step", "fast", 10]
        except KeyError:
            continue
        text += (
            f"\n`{model}`: the memory of `flat` at 10 calls is {peak[0]:.2f} times that at 4 (`fast`: {peak[1]:.2f}), "
            f"in {time:.2f} times the time of `fast`.\n"
        )
    return text


def _growth(measurements: list[dict]) -> str:
    """Memory over batch, resolution and the number of pairs."""
    text = ""
    for key, unit, intro in (
        ("size", "pixels a side", "the side of the image"),
        ("pairs", "pairs", "the number of pairs (3 x 32 x 32, no network)"),
    ):
        some = [row for row in measurements if key in row]
        if some:
            text += f"\nThe same over {intro}, 4 calls:\n\n"
            text += _grid(some, "mode", key, unit, lambda peak, time: f"{peak:.0f} MB")
    flat = [
        r
        for r in measurements
        if r.get("mode") == "flat" and not {"pairs", "size"} & set(r) and r["nfe"] == 4
    ]
    if len({row["batch"] for row in flat}) > 1:
        first = [row for row in flat if row["model"] == flat[0]["model"]]
        text += "\nAnd over the batch:\n\n" + _grid(
            first, "mode", "batch", "pairs", lambda peak, time: f"{peak:.0f} MB"
        )
    return text


def _throughput(device: str) -> str:
    measurements = _read("throughput" + device)
    if not measurements:
        return ""
    text = _section("Pairs and steps a second", measurements)
    if device:
        text += "\nSo small a network is bound by kernel launches: steps per second hardly depend on batch and size.\n"
    usual = {"nfe": 4, "batch": 24, "size": 32}
    for key, intro in (("nfe", "calls"), ("batch", "a batch"), ("size", "pixels a side")):
        others = {name: value for name, value in usual.items() if name != key}
        some = [row for row in measurements if all(row[name] == value for name, value in others.items())]
        columns = sorted({row[key] for row in some})
        lines = [
            "| |" + "".join(f" {column} {intro} |" for column in columns),
            "|---|" + "---|" * len(columns),
        ]
        for name in dict.fromkeys(row["name"] for row in some):
            at = {row[key]: row for row in some if row["name"] == name}
            if set(at) != set(columns):
                continue  # a teacher's calls are its own
            lines.append(f"| {name} |" + "".join(f" {at[c]['value']:.3g} {at[c]['unit']} |" for c in columns))
        details = ", ".join(f"{name} {value}" for name, value in others.items())
        text += f"\n`{measurements[0]['model']}` at {details}:\n\n" + "\n".join(lines) + "\n"
    return text


def _precision(device: str) -> str:
    measurements = _read("precision" + device)
    if not measurements:
        return ""
    first = measurements[0]
    text = _section("Precision", measurements)
    text += (
        f"\nSpeed at lower precision, and how far samples of `{first['model']}` (UniPC-3, {first['nfe']} calls, "
        f"{first['samples']} samples) deviate from float32's. A CPU without such arithmetic is slower.\n\n"
    )
    columns = list(dict.fromkeys(row["name"] for row in measurements))
    lines = ["| |" + "".join(f" {name} |" for name in columns), "|---|" + "---|" * len(columns)]
    for way in dict.fromkeys(row["way"] for row in measurements):
        at = {row["name"]: row for row in measurements if row["way"] == way}
        lines.append(f"| {way} |" + "".join(f" {_shown(at[n])} |" for n in columns))
    return text + "\n".join(lines) + "\n"


def _processes() -> str:
    measurements = _read("processes")
    if not measurements:
        return ""
    first = measurements[0]
    intro = f"\n{first['seeds']} teacher pairs of `{first['model']}`, {first['nfe']} calls each, to the same bytes "
    intro += "([several processes](../howto/processes.md)).\n\n"
    lines = ["| | |", "|---|---|"]
    for row in measurements:
        value = f"{row['value']:.1f} s" if row["unit"] else f"{row['value']:.2f} times as fast"
        lines.append(f"| {row['way']} | {value} |")
    return _section("Several processes", measurements) + intro + "\n".join(lines) + "\n"


def _sampler(device: str) -> str:
    measurements = _read("sampler" + device)
    if not measurements:
        return ""
    intro = "\nThe cost of sampling without the network: milliseconds per run, and tensor operations per step. *Read "
    intro += "once* is a lower bound: the time to read every tensor of the history once.\n"
    tables = []
    for size in dict.fromkeys(row["size"] for row in measurements):
        at = {(r["name"], r["way"], r["nfe"]): r["value"] for r in measurements if r["size"] == size}
        nfes = sorted({nfe for _, _, nfe in at})
        lines = [f"| {size} |" + "".join(f" {n} calls |" for n in nfes), "|---|" + "---|" * len(nfes)]
        for way in dict.fromkeys(way for _, way, _ in at):
            times = [f"{at['solver time', way, n]:.3g} ms" for n in nfes]
            counts = [at.get(("tensor operations a step", way, n)) for n in nfes]
            details = [t if c is None else f"{t}, {c:.3g}" for t, c in zip(times, counts, strict=True)]
            lines.append(f"| {way} | " + " | ".join(details) + " |")
        for other in ("diffusers' UniPC", "diffusers' DPM++ multistep", "GS's history read once"):
            shares = [at["solver time", "GS", n] / at["solver time", other, n] for n in nfes]
            lines.append(f"| GS / {other} | " + " | ".join(f"{share:.3g}" for share in shares) + " |")
        tables.append("\n".join(lines) + "\n")
    return _section("Sampler overhead", measurements) + intro + "\n" + "\n".join(tables)


def _scheduler() -> str:
    measurements = _read("scheduler")
    if not measurements:
        return ""
    at = {(r["size"], r["nfe"], r["way"]): r["value"] for r in measurements}
    lines = ["| latents | calls | GASScheduler | UniPC | ratio |", "|---|---|---|---|---|"]
    for size, nfe in dict.fromkeys((size, nfe) for size, nfe, _ in at):
        mine, theirs = at[size, nfe, "GASScheduler"], at[size, nfe, "UniPC"]
        lines.append(f"| {size} | {nfe} | {mine:.0f} us | {theirs:.0f} us | {mine / theirs:.3f} |")
    intro = "\nThe same in diffusers: time of one `step()`, median over interleaved runs.\n\n"
    return _section("Scheduler step", measurements) + intro + "\n".join(lines) + "\n"


def _passes() -> str:
    """The time of a pipeline's call over forward passes."""
    measurements = _read("pipeline-passes")
    if not measurements:
        return ""
    counts = sorted({row["forward_passes"] for row in measurements})
    lines = ["| batch | |" + "".join(f" {n} passes |" for n in counts), "|" + "---|" * (len(counts) + 2)]
    for batch, way in dict.fromkeys((row["batch"], row["name"]) for row in measurements):
        at = {
            r["forward_passes"]: r["value"] for r in measurements if (r["batch"], r["name"]) == (batch, way)
        }
        cells = [f"{at[n]:.1f} ms" if n in at else "" for n in counts]
        lines.append(f"| {batch} | {way} | {' | '.join(cells)} |")
    intro = "\nCalls of the pipelines of `mnist-flow` with guidance, prompts and decoding included, on one thread.\n\n"
    return _section("Forward passes of a pipeline", measurements) + intro + "\n".join(lines) + "\n"


def _cost() -> str:
    """What our recipe takes to be as good as the official one."""
    both = cost_table.curves(sorted(COST.glob("*.json")))
    if not both:
        return ""
    intro = (
        "Network evaluations until the validation loss reaches the official final one (losses x 1000), and\n"
    )
    intro += (
        "the best loss within a tenth of its evaluations. The curves are in `docs/results/cost`.\n\n```sh\n"
    )
    command = "python benchmarks/cost_to_quality.py --model M --nfe N --pairs runs/M-paper --recipe"
    intro += f"{command} official  # M and N are those of a row\n{command} ours\n"
    intro += "python benchmarks/cost_table.py docs/results/cost/*.json --picture docs/cost.png\n```\n\n"
    intro += "![Loss over network evaluations](../cost.png)\n\n"
    chosen = (
        "These are losses on the 1,000 validation pairs by which the best of each recipe was also chosen, so part of\n"
        "the gain is that choice. Unseen seeds: [overview](index.md) and [baselines](baselines.md).\n"
    )
    budgets = (
        "\n### Loss over the budget\n\n`gas train --budget N`, everything counted, measured on 1,000 pairs that chose\n"
        "nothing (losses x 1000). In parentheses the orders of the training pairs, one for each `--orders`; last the\n"
        "official recipe, which chose its best on these pairs.\n\n```sh\n"
    )
    budgets += f"{command} budget --budgets B --orders 0 1 2 3 4\n```\n\n"
    budgets += "\n".join(cost_table.budget_table(sorted(COST.glob("*.json")))) + "\n"
    return "\n## Cost to quality\n\n" + intro + "\n".join(cost_table.table(both)) + "\n\n" + chosen + budgets


def _plan() -> str:
    """What was foreseen of trainings, beside what they took."""
    measurements = _read("plan")
    if not measurements:
        return ""
    lines = [
        "| model | work | evaluations, planned | counted | seconds, planned | real | real / planned |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, work in dict.fromkeys((row["model"], row["work"]) for row in measurements):
        at = {
            row["name"]: row["value"] for row in measurements if (row["model"], row["work"]) == (model, work)
        }
        counts = [f"{at[name + ' evaluations']:,.0f}" for name in ("planned", "counted")]
        seconds = [at[name + " seconds"] for name in ("planned", "real")]
        cells = [*counts, *(f"{x:.1f}" for x in seconds), f"{seconds[1] / seconds[0]:.2f}"]
        lines.append(f"| `{model}` | {work} | {' | '.join(cells)} |")
    intro = "\nEstimates of `gas plan` beside the trainings themselves, without the seconds of loading a network.\n\n"
    return _section("Planned and real cost", measurements) + intro + "\n".join(lines) + "\n"


def _noise() -> str:
    """Losses of solvers that were learned from rounded predictions, over those of float32."""
    files = [_read(path.stem) for path in sorted(rows.RESULTS.glob("noise-*.json"))]
    if not files:
        return ""
    text = "\n## Precision of predictions in training\n\n```sh\n"
    text += "\n".join(dict.fromkeys(row["command"] for file in files for row in file)) + "\n```\n\n"
    text += (
        "Learned with predictions in each dtype from one start, measured by the float32 network on the same\n"
    )
    text += "unseen seeds, x 1000: the geometric mean over training seeds (least to largest) of float32's means and\n"
    text += "medians, and of the ratios to them, seed by seed.\n\n"
    text += "| model, NFE | | float32 | fp16 / float32 | bf16 / float32 |\n|---|---|---|---|---|\n"
    for model, nfe in dict.fromkeys((row["model"], row["nfe"]) for file in files for row in file):
        some = [row for file in files for row in file if (row["model"], row["nfe"]) == (model, nfe)]
        for name in ("mean", "median"):
            at = {(r["dtype"], r["seed"]): r["value"] for r in some if r["name"] == name}
            if {dtype for dtype, _ in at} != {"float32", "fp16", "bf16"}:
                continue  # measured with other --dtypes or --quantize
            base = [1000 * value for (dtype, _), value in at.items() if dtype == "float32"]
            ratios = [
                [at[dtype, seed] / at["float32", seed] for seed in range(len(base))]
                for dtype in ("fp16", "bf16")
            ]
            cells = [f"{geometric_mean(x):.3g} ({min(x):.3g} to {max(x):.3g})" for x in (base, *ratios)]
            text += f"| `{model}`, {nfe} | {name} | {' | '.join(cells)} |\n"
    return text


def _family() -> str:
    """Members of one training beside their own."""
    if not (FAMILY / "digits-family.json").exists():
        return ""
    intro = "```sh\npython benchmarks/family.py --model digits --pairs runs/digits-paper --validation 1000\n"
    intro += "python benchmarks/family.py --model digits --pairs runs/digits-paper --validation 1000 --alone\n```\n\n"
    counted = "\nEvaluations of this table leave out those of validation.\n"
    return (
        "\n## A family in one training\n\n"
        + intro
        + "\n".join(family.table(FAMILY, "digits"))
        + "\n"
        + counted
    )


def _error() -> str:
    """GS beside the best classical solver, over NFE."""
    if not ERROR.exists():
        return ""
    report = json.loads(ERROR.read_text())
    same = " and ".join(map(str, error_over_nfe.classical_nfes(report)))
    intro = "Where the learned table is not surely better on validation pairs, the file has the best classical table"
    intro += f" (here at NFE {same})" if same else " (nowhere here)"
    intro += ". One training of twenty NFE.\n\n```sh\n"
    intro += "gas train --model digits --pairs runs/digits-pairs --nfe 1-20 --out runs/digits-1-20.json\n"
    intro += f"gas evaluate --model digits --solver runs/digits-1-20.json --every --json > {ERROR}\n"
    intro += f"python benchmarks/error_over_nfe.py {ERROR} --picture docs/error-over-nfe.png\n```\n\n"
    picture = "![Error over network evaluations](../error-over-nfe.png)\n\n"
    return "\n## Error over NFE\n\n" + intro + picture + "\n".join(error_over_nfe.table(report)) + "\n"


def _grid(measurements: list[dict], row: str, column: str, unit: str, cell: object) -> str:
    """A table of peak and time, one row a ``row`` and one column a ``column``."""
    at = {(r["name"], r[row], r[column]): r["value"] for r in measurements}
    columns = sorted({r[column] for r in measurements})
    lines = ["| |" + "".join(f" {c} {unit} |" for c in columns), "|---|" + "---|" * len(columns)]
    for name in dict.fromkeys(r[row] for r in measurements):
        keys = [(name, c) for c in columns]
        cells = [cell(at["peak training memory", *key], at["training step", *key]) for key in keys]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _shown(row: dict) -> str:
    """Three digits and the unit, if it has one."""
    value = f"{row['value']:,.0f}" if row["value"] >= 1000 else f"{row['value']:.3g}"
    return f"{value} {row['unit']}".strip()


def _section(title: str, measurements: list[dict]) -> str:
    """A heading, and what was run where and when."""
    first = measurements[0]
    title += " on CUDA" if "--device cuda" in first["command"] else ""
    return f"\n## {title}\n\n`{first['command']}`, {first['machine']}, {first['date']}\n"


def _read(name: str) -> list[dict]:
    path = rows.RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


if __name__ == "__main__":
    main()
