"""Print the errors of a guided solver file over forward passes: ``python benchmarks/forwards.py runs/guided.json``."""

import argparse
from pathlib import Path

import gas
from gas.cli.options import parse_seeds
from gas.evaluation import sample_pairs
from gas.evaluation.sampler import teacher_pairs
from gas.metrics import paired


def main() -> None:
    """Print a Markdown table of squared errors to the guided teacher: the file's NFE, and its tables with branches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("solver", type=Path)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--seeds", type=parse_seeds, default=range(50_000, 50_512))
    options = parser.parse_args()
    artefact, model = gas.load(options.solver), gas.zoo.load(options.model)
    guidance = artefact.document.guidance
    artefact.check(model, guidance)
    described = artefact.document.teacher
    teacher = gas.Classical(**{name: described[name] for name in ("solver", "grid", "nfe", "t_end")})
    pairs = teacher_pairs(model, teacher, options.seeds, guidance=guidance)
    tables = [artefact.table(nfe) for nfe in artefact.nfes]
    tables += [artefact.table(forwards=count) for count in artefact.forwards]
    print(
        f"`{model.name}`, guidance {guidance:g}, {len(pairs)} samples, seeds {options.seeds.start} to",
        end=" ",
    )
    print(f"{options.seeds.stop - 1}\n\n| forward passes | rows | mean | median |\n|---|---|---|---|")
    for table in sorted(tables, key=lambda table: table.forward_passes(guidance)):
        errors = 1000 * paired.mse(sample_pairs(model, pairs, table), pairs.target)
        cells = [
            str(table.forward_passes(guidance)),
            rows_of(table),
            f"{errors.mean():.2f}",
            f"{errors.median():.2f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def rows_of(table: gas.Table) -> str:
    """The branches of the rows by their initials, as ``u c c``, or how many predictions are guided."""
    if table.branches is None:
        return f"{table.nfe} guided predictions"
    return " ".join(name[0] for name in table.branches)


if __name__ == "__main__":
    main()
