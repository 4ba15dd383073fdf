"""Measure guided solver files over forward passes: ``python benchmarks/forwards.py runs/guided-*.json``.

The files are of one model and guidance scale, several of other training seeds. Beside GS with guided predictions and
the tables with branches: GS guided in an interval of times only, the best contiguous one of every NFE on 64 seeds of
their own, and for models of images GS with other rules of guidance. Writes a file of one model and scale;
``benchmarks/forwards_report.py`` makes the tables and the picture of all.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forwards_report
import rows
import torch
from torch import Tensor

import gas
from gas.cli.options import parse_seeds
from gas.denoise import Denoiser, GuidedNetwork, NoiseDenoiser, Rescale, ZeroStar
from gas.evaluation.sampler import teacher_pairs
from gas.models.protocol import classifier_of, images_of

RULES = {"GS, rescaled guidance": Rescale(), "GS, CFG-Zero*": ZeroStar()}

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
        figures = self.evaluator.measure(name, samples, table.nfe)
        logits = classifier_of(self.model)(images_of(self.model, samples))
        is_of_labels = logits.shape[1] == self.model.classes  # that of emoji knows categories, not names
        named = float((logits.argmax(1) == self.unseen.labels).double().mean()) if is_of_labels else None
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
        }


def rows_of(table: gas.Table, guidance: float) -> str:
    """The branches of the rows by their initials, as ``u c c``; of guided predictions both for every call."""
    branches = table.branches or table.guided(guidance).branches or ()
    return " ".join(name[0] for name in branches)


def pairs_of(solver: gas.Artefact, model: gas.models.Model, seeds: range) -> gas.Pairs:
    """Pairs of the teacher and guidance scale that a solver was learned from."""
    teacher = gas.Classical.from_config(solver.document.teacher or {})
    return teacher_pairs(model, teacher, seeds, guidance=solver.document.guidance)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("solvers", type=Path, nargs="+")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--seeds", type=parse_seeds, default=range(50_000, 50_512))
    parser.add_argument("--results", type=Path, default=forwards_report.RESULTS)
    options = parser.parse_args()
    solvers = [gas.load(path) for path in options.solvers]
    benchmark = Benchmark(solvers, options.model, options.seeds)
    figures = [
        benchmark.measure(method) | {"file": path.name}
        for path, solver in zip(options.solvers, solvers, strict=True)
        for method in benchmark.methods(solver)
    ]
    content = {
        "model": options.model,
        "guidance": benchmark.guidance,
        "samples": len(benchmark.unseen),
    }
    out = options.results / f"{options.model}-{benchmark.guidance:g}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f'{json.dumps(content)[:-1]}, "figures": {rows.as_lines(figures)}}}\n')
    scales = forwards_report.read(options.results)[options.model]
    scales = {benchmark.guidance: scales[benchmark.guidance]}
    print("\n".join(forwards_report.text(scales)))


if __name__ == "__main__":
    main()
