"""A family of solvers in one training against a training for each: ``python benchmarks/family.py --help``.

Writes network evaluations and validation loss of every member. ``--alone`` trains each by itself on the same pairs,
in a file of its own; the second of the two runs prints both. Interrupted, it goes on.
"""

import argparse
import json
from pathlib import Path

import gas
from gas.cli.options import parse_nfes
from gas.training.distillation import Distilled, distill, distill_family

# What the official recipe spends on one NFE: 10,000 steps of 24 pairs, a gradient through each call counted as three.
OFFICIAL = 10_000 * 24 * 3


def main() -> None:
    """Train a family, or its members alone, and write what each cost and reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--nfe", default="3-10")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--validation", type=int, default=400)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("docs/results/family"))
    parser.add_argument("--solver", type=Path, help="Write the family's solver file here, member by member.")
    options = parser.parse_args()
    model, nfes = gas.zoo.load(options.model).to(options.device), parse_nfes(options.nfe)
    pairs, validation = gas.pairs.read_pairs(options.pairs, model=model).split(options.validation)
    name = f"{options.model}-{'alone' if options.alone else 'family'}"
    out, state = options.out / f"{name}.json", Path("runs/family") / name
    out.parent.mkdir(parents=True, exist_ok=True)
    state.mkdir(parents=True, exist_ok=True)
    if options.alone:
        reports = (r for n in nfes for r in distill(model, pairs, validation, n, state=state))
    else:
        reports = distill_family(model, pairs, validation, nfes, state=state)
    members: list[Distilled] = []
    for report in reports:
        if isinstance(report, Distilled):
            members.append(report)
            setting = {"model": options.model, "pairs": len(pairs), "validation": len(validation)}
            written = [
                {
                    "nfe": m.nfe,
                    "loss": m.loss,
                    "best_classical": m.best_classical.label,
                    "best_classical_loss": m.best_classical_loss,
                    "evaluations": m.evaluations,
                }
                for m in members
            ]
            out.write_text(json.dumps({**setting, "members": written}, indent=1))
            if options.solver is not None:
                gas.save(
                    options.solver, {m.nfe: m.solver for m in members}, model=model, teacher=pairs.teacher
                )
    print("\n".join(table(options.out, options.model)))


def table(folder: Path, model: str) -> list[str]:
    """The lines that show a family beside its members alone, as far as there are both."""
    runs = {}
    for kind in ("family", "alone"):
        path = folder / f"{model}-{kind}.json"
        members = json.loads(path.read_text())["members"] if path.exists() else []
        runs[kind] = {m["nfe"]: m for m in members}
    lines = ["| NFE | best classical | alone | family | family / alone | evaluations alone | in the family |"]
    lines.append("|---|---|---|---|---|---|---|")
    for nfe, member in sorted(runs["family"].items()):
        alone = runs["alone"].get(nfe)
        beside = f"{member['loss'] / alone['loss']:.3f}" if alone and alone["loss"] else ""
        cells = [
            nfe,
            f"{1000 * member['best_classical_loss']:.4g}",
            f"{1000 * alone['loss']:.4g}" if alone else "",
        ]
        cells += [f"{1000 * member['loss']:.4g}", beside, f"{alone['evaluations']:,}" if alone else ""]
        lines.append("| " + " | ".join(map(str, [*cells, f"{member['evaluations']:,}"])) + " |")
    total, least = sum(m["evaluations"] for m in runs["family"].values()), min(runs["family"], default=1)
    lines.append(
        "\nLosses x 1000 on the validation pairs, by which each best was also chosen. "
        f"The family took {total:,} network evaluations in all; the official recipe takes"
    )
    lines.append(f"{OFFICIAL * least:,} for NFE {least} alone and {OFFICIAL * 4:,} for NFE 4.")
    return lines


if __name__ == "__main__":
    main()
