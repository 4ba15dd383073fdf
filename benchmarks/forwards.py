"""Print the errors of guided solver files over forward passes: ``python benchmarks/forwards.py runs/guided-*.json``.

The files are of one model and guidance scale, several of other training seeds. Beside GS with guided predictions and
the tables with branches: GS guided in an interval of times only, the best contiguous one of every NFE on 64 seeds of
their own, and for models of images GS with other rules of guidance. Squared errors are to the guided teacher, times
1000; several files have the mean of their means or medians, and the least and the largest. "Of GS": ratios of mean and
median to GS with guided predictions of the same file at as many forward passes, for an odd number at one more; without
such a solver none. Exit code 1 if learned rows have a larger mean at as many passes.
"""

import argparse
import json
import math
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gas
from gas.cli.options import parse_seeds
from gas.denoise import Denoiser, GuidedNetwork, NoiseDenoiser, Rescale, ZeroStar
from gas.evaluation.sampler import teacher_pairs
from gas.models.protocol import classifier_of, images_of

RULES = {"GS, rescaled guidance": Rescale(), "GS, CFG-Zero*": ZeroStar()}

COLUMNS = (
    "forward passes",
    "method",
    "rows",
    "mean",
    "median",
    "of GS",
    "Fréchet to the teacher",
    "named",
    "CPU ms a sample",
)

# A method, its forward passes, its table, and what binds another denoiser than the model's own.
Method = tuple[str, int, gas.Table, Callable[[Tensor | None], Denoiser] | None]


class Benchmark:
    """The pairs of one model and scale, and what is measured on them."""

    def __init__(self, solvers: list[gas.Artefact], name: str, seeds: range) -> None:
        self.model, self.guidance = gas.zoo.load(name), solvers[0].document.guidance
        for solver in solvers:
            solver.check(self.model, self.guidance)
        self.unseen, self.validation = (
            pairs_of(solvers[0], self.model, part) for part in (seeds, range(100_000, 100_064))
        )
        self.evaluator = gas.Evaluator.for_model(self.model, self.unseen)

    def methods(self, solver: gas.Artefact) -> Iterator[Method]:
        """Everything that a file is compared as."""
        guided = [solver.table(nfe) for nfe in solver.nfes]
        for table in guided:
            yield "GS, guided", 2 * table.nfe, table, None
            for name, rule in RULES.items() if hasattr(self.model, "conditional") else ():
                yield name, 2 * table.nfe, table, lambda labels, rule=rule: self.ruled(labels, rule)
        for forwards in solver.forwards:
            yield "learned rows", forwards, solver.table(forwards=forwards), None
            intervals = [each for table in guided for each in self.intervals(table, forwards)]
            if intervals:
                yield "GS, guidance interval", forwards, min(intervals, key=self.loss), None

    def intervals(self, table: gas.Table, forwards: int) -> Iterator[gas.Table]:
        """All tables of so many forward passes that guide some consecutive calls, not all."""
        count, ends = forwards - table.nfe, [math.inf, *table.times.tolist(), -math.inf]
        for first in range(1, table.nfe - count + 2) if 0 < count < table.nfe else ():
            yield table.guided(self.guidance, interval=(ends[first + count], ends[first]))

    def loss(self, table: gas.Table) -> float:
        """The mean loss on the validation pairs."""
        return float(gas.evaluate(self.model, self.validation, table, gas.losses.l2).mean())

    def ruled(self, labels: Tensor | None, rule: Callable[..., Tensor]) -> Denoiser:
        """The denoiser guided by a rule on noise predictions."""
        model, null = self.model, torch.tensor([self.model.classes])

        def noise(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            alpha, sigma = model.schedule(t[0])
            return (x - alpha * model.conditional(x, t[0], condition)) / sigma

        return NoiseDenoiser(GuidedNetwork(noise, labels, null, self.guidance, rule), model.schedule)

    @torch.no_grad()
    def measure(self, method: Method) -> dict[str, Any]:
        """The figures of one method."""
        name, passes, table, bind = method
        bound = bind or (lambda labels: self.model.bind(labels, self.guidance))

        def sampled(part: gas.Pairs) -> Tensor:
            return gas.sample(bound(part.labels), part.noise, table)

        parts = list(self.unseen.batches(64))
        samples = torch.cat([sampled(part) for part in parts])
        seconds = min(timeit.repeat(lambda: sampled(parts[0]), timer=time.process_time, number=1, repeat=3))
        figures = self.evaluator.measure(name, samples, table.nfe)
        logits = classifier_of(self.model)(images_of(self.model, samples))
        is_of_labels = logits.shape[1] == self.model.classes  # that of emoji knows categories, not names
        named = float((logits.argmax(1) == self.unseen.labels).double().mean()) if is_of_labels else math.nan
        return {
            "method": name,
            "forward_passes": passes,
            "rows": rows_of(table, self.guidance),
            "mse": 1000 * figures.mse,
            "half_width": 1000 * figures.mse_half_width,
            "median": 1000 * (figures.mse_median or math.nan),
            "median_interval": [1000 * end for end in figures.mse_median_interval or ()],
            "frechet": figures.to_teacher.frechet if figures.to_teacher else math.nan,
            "named": named,
            "milliseconds": 1000 * seconds / len(parts[0]),
        }


def rows_of(table: gas.Table, guidance: float) -> str:
    """The branches of the rows by their initials, as ``u c c``; of guided predictions both for every call."""
    branches = table.branches or table.guided(guidance).branches or ()
    return " ".join(name[0] for name in branches)


def with_ratios(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of one file, with ``of_gs``: ratios of mean and median to GS of as many passes, or one more."""
    guided = {each["forward_passes"]: each for each in figures if each["method"] == "GS, guided"}
    equal = [guided.get(each["forward_passes"] + each["forward_passes"] % 2) for each in figures]
    return [
        each | {"of_gs": [each[key] / gs[key] for key in ("mse", "median")] if gs else None}
        for each, gs in zip(figures, equal, strict=True)
    ]


def pairs_of(solver: gas.Artefact, model: gas.models.Model, seeds: range) -> gas.Pairs:
    """Pairs of the teacher and guidance scale that a solver was learned from."""
    teacher = gas.Classical.from_config(solver.document.teacher or {})
    return teacher_pairs(model, teacher, seeds, guidance=solver.document.guidance)


def spread(values: list[float], form: str = ".2f") -> str:
    """The mean of several files, with the least and the largest."""
    mean = f"{sum(values) / len(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


def printed(figures: list[dict[str, Any]]) -> str:
    """A row of the table, of one method and number of forward passes: a file each."""
    first = figures[0]
    mean, median = (spread([each[key] for each in figures]) for key in ("mse", "median"))
    if len(figures) == 1:
        mean += f" ± {first['half_width']:.2f}"
        median += f" [{', '.join(f'{end:.2f}' for end in first['median_interval'])}]"
    ratios = [each["of_gs"] for each in figures if each["of_gs"]]
    frechet, named, ms = (
        sum(each[key] for each in figures) / len(figures) for key in ("frechet", "named", "milliseconds")
    )
    rows = " / ".join(dict.fromkeys(each["rows"] for each in figures))
    cells = [
        str(first["forward_passes"]),
        first["method"],
        rows,
        mean,
        median,
        ", ".join(spread(list(values)) for values in zip(*ratios, strict=True)) or "-",
        f"{frechet:.3g}",
        f"{named:.1%}",
        f"{ms:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print a Markdown table, and write the figures if ``--out`` names a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("solvers", type=Path, nargs="+")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--seeds", type=parse_seeds, default=range(50_000, 50_512))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    solvers = [gas.load(path) for path in options.solvers]
    benchmark = Benchmark(solvers, options.model, options.seeds)
    figures = [
        each | {"file": path.name}
        for path, solver in zip(options.solvers, solvers, strict=True)
        for each in with_ratios([benchmark.measure(method) for method in benchmark.methods(solver)])
    ]
    print(f"`{options.model}`, guidance {benchmark.guidance:g}, {len(benchmark.unseen)} samples\n")
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for key in sorted({(each["forward_passes"], each["method"]) for each in figures}):
        print(printed([each for each in figures if (each["forward_passes"], each["method"]) == key]))
    if options.out:
        content = {"model": options.model, "guidance": benchmark.guidance, "figures": figures}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    above = [
        f"{each['forward_passes']} of {each['file']}"
        for each in figures
        if each["method"] == "learned rows"
        and each["forward_passes"] % 2 == 0
        and each["of_gs"] is not None
        and each["of_gs"][0] > 1
    ]
    if above:
        raise SystemExit(f"above GS, guided, at as many forward passes: {', '.join(above)}")


if __name__ == "__main__":
    main()
