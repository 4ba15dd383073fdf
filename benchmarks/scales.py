"""Print the errors of one solver for a range of guidance scales: ``python benchmarks/scales.py runs/scales``.

Beside it, at every scale: a solver of its own, which has the same start and as many steps on pairs of that scale, and
the start itself, the solver of guidance 2. The folder keeps pairs and solvers; what it has is not made again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import gas
from gas.evaluation import sample_pairs
from gas.metrics import paired
from gas.training.initialization import StartSearch
from gas.training.scales import distill_scales

TRAINED, UNSEEN = (1.0, 2.0, 4.0, 8.0), (1.5, 3.0, 5.0, 6.5)
REFERENCE, NFE, VALIDATION = 2.0, 4, 64
STEPS = gas.GaussNewton(iterations=12, batch=16, validate_every=4)
SEARCH = StartSearch("unipc-2-bh2/time_quadratic")


class Benchmark:
    """Pairs and solvers of one model, stored in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.model = folder, gas.zoo.load(name)
        self.teacher = gas.Classical("unipc-3-bh2", "log_snr", 20, self.model.t_end)

    def pairs(self, scale: float, kind: str, seeds: range) -> gas.Pairs:
        """Teacher pairs of a scale."""
        folder = self.folder / f"{kind}-{scale:g}"
        for _ in gas.write_pairs(self.model, self.teacher, folder, gas.PairsSpec(seeds, guidance=scale)):
            pass
        return gas.read_pairs(folder, model=self.model)

    def sets(self, scale: float) -> tuple[gas.Pairs, gas.Pairs]:
        """Pairs to train on and to choose by."""
        return self.pairs(scale, "train", range(320)).split(VALIDATION)

    def start(self) -> gas.Artefact:
        """The solver of the reference scale."""
        path = self.folder / "start.json"
        if not path.exists():
            *_, result = gas.distill(self.model, *self.sets(REFERENCE), NFE, config=STEPS, search=SEARCH)
            gas.save(path, result, model=self.model)
        return gas.load(path)

    def ranged(self, seed: int) -> gas.Artefact:
        """The solver of the whole range; a step has twice the pairs, of four scales."""
        path = self.folder / f"range-{seed}.json"
        if not path.exists():
            start = self.start().table(NFE)
            member = gas.Distilled(
                nfe=NFE,
                solver=start,
                start=SEARCH.start,
                best_classical=self.teacher,
                best_classical_loss=0.0,
                loss=0.0,
                evaluations=0,
                provenance={"guidance": REFERENCE, "loss": "l2", "training": {}},
            )
            pairs, validation = zip(*map(self.sets, TRAINED), strict=True)
            config = replace(STEPS, batch=2 * STEPS.batch, seed=seed)
            *_, result = distill_scales(self.model, pairs, validation, [NFE], members=[member], config=config)
            gas.save(path, result, model=self.model)
        return gas.load(path)

    def dedicated(self, scale: float, seed: int) -> gas.Table:
        """The solver of one scale."""
        path = self.folder / f"dedicated-{scale:g}-{seed}.json"
        if not path.exists():
            start = self.start().table(NFE)
            solver = gas.BNS.from_table(self.model.schedule, start, self.model.t_end)
            pairs, validation = self.sets(scale)
            for _ in gas.fit(
                solver, self.model, pairs, validation=validation, config=replace(STEPS, seed=seed)
            ):
                pass
            gas.save(path, solver, model=self.model, guidance=scale)
        return gas.load(path).table(NFE)

    def errors(self, scale: float, table: gas.Table) -> torch.Tensor:
        """Squared errors of a table on unseen pairs of a scale, times 1000."""
        pairs = self.pairs(scale, "test", range(50_000, 50_256))
        return 1000 * paired.mse(sample_pairs(self.model, pairs, table), pairs.target)


def main() -> None:
    """Print a Markdown table, ``mean (median)``: means over training seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of the range's solver")
    options = parser.parse_args()
    benchmark = Benchmark(options.folder, options.model)
    ranged = [benchmark.ranged(seed) for seed in range(options.seeds)]
    print("| guidance | one file | its own solver | ratio of means | guidance 2's solver |")
    print("|---|---|---|---|---|")
    for scale in sorted(TRAINED + UNSEEN):
        several = [benchmark.errors(scale, each.at(scale).table(NFE)) for each in ranged]
        alone = benchmark.errors(scale, benchmark.dedicated(scale, 0))
        start = benchmark.errors(scale, benchmark.start().table(NFE))
        ratios = [float(each.mean() / alone.mean()) for each in several]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        label = f"{scale:g}" if scale in TRAINED else f"{scale:g}, not trained"
        cells = [label, shown(torch.stack(several)), shown(alone[None]), spread, shown(start[None])]
        print(f"| {' | '.join(cells)} |", flush=True)


def shown(errors: torch.Tensor) -> str:
    """The mean and the median of errors ``(seeds, S)``, both means over seeds."""
    return f"{errors.mean():.3g} ({errors.median(dim=1).values.mean():.3g})"


if __name__ == "__main__":
    main()
