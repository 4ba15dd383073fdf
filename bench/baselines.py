"""Classical, scheduled and learned baselines on unseen seeds, under one budget: ``python bench/baselines.py --help``.

Every learned solver starts at the same classical one and takes the same steps on the same pairs; grids and classical
solvers are chosen on the validation pairs. Interrupted, it goes on.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import rows
import torch

import gas
from gas.catalogue import Classical, candidates
from gas.error_bound import dmn
from gas.gits import gits
from gas.learned import SOLVERS as KINDS
from gas.losses import l2
from gas.metrics.paired import mean_interval
from gas.start import Measured, evaluate, finite_loss, rank_classical

FIRST = 64  # validation pairs that classical solvers are compared on
GUIDES = 256  # training pairs that GITS follows
BUDGET = gas.GaussNewton(iterations=12, batch=48, growth=1.0)
SLOW = gas.Adam(iterations=200, validate_every=20)
RADIUS = 0.05
NAMES = {
    "ddim": "DDIM",
    "dpmpp-2m": "DPM-Solver++(2M)",
    "dpmpp-3m": "DPM-Solver++(3M)",
    "unipc-2-bh2": "UniPC-2",
    "unipc-3-bh2": "UniPC-3",
    "ipndm-2": "iPNDM-2",
    "ipndm-3": "iPNDM-3",
    "ipndm-4": "iPNDM-4",
    "deis-2": "DEIS-2",
    "deis-3": "DEIS-3",
}
LEARNED = {
    "ld3": "LD3",
    "s4s": "S4S",
    "s4s-pc": "S4S + PC",
    "s4s-alt": "S4S-Alt",
    "bns": "BNS",
    "gs-free": "GS without theory",
    "gs": "GS",
}


@dataclass
class Setting:
    """One model, its pairs for learning, choosing and measuring, and one NFE."""

    model: gas.model.Model
    train: gas.Pairs
    validation: gas.Pairs
    test: gas.Pairs
    nfe: int

    def ranked(self, grid: torch.Tensor | None = None) -> list[Measured]:
        """Classical solvers on the first validation pairs, best first; on one grid, or on all."""
        entries = candidates(self.model.schedule, self.nfe, self.model.t_end, own=grid)
        some = self.validation.subset(slice(0, FIRST))
        measured = rank_classical(self.model, some, self.nfe, l2, entries=entries, first=FIRST, kept=0)
        return sorted(measured, key=finite_loss)


def main() -> None:
    """Measure what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 6])
    parser.add_argument("--pairs", type=Path, required=True, help="folder of at least 1024 teacher pairs")
    parser.add_argument(
        "--test", type=int, default=512, help="pairs, from the end, that are only measured on"
    )
    parser.add_argument("--validation", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("docs/results/baselines"))
    options = parser.parse_args()
    model = gas.zoo.load(options.model)
    rest, test = gas.pairs.read_pairs(options.pairs, model=model).split(options.test)
    train, validation = rest.split(options.validation)
    path = options.out / f"{options.model}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(path.read_text()) if path.exists() else {"rows": []}
    report |= {"model": options.model, "pairs": len(train), "validation": len(validation), "test": len(test)}
    report |= {"command": rows.command(), "machine": rows.machine(), "gauss_newton": asdict(BUDGET)}
    report |= {"adam": asdict(SLOW), "radius": RADIUS}
    for nfe in options.nfe:
        setting = Setting(model, train, validation, test, nfe)
        known = [row for row in report["rows"] if row["nfe"] == nfe]
        for row in _rows(setting, known):
            report["rows"].append(row)
            path.write_text(json.dumps(report, indent=1))
            print(row, flush=True)
    path.with_suffix(".md").write_text(_markdown(report))


def _rows(setting: Setting, known: list[dict]) -> Iterator[dict]:
    """Yield a row for whatever is not known yet: classical solvers, then schedules, then learned ones."""
    have = {(row["name"], row["start"]) for row in known}
    if not known:
        yield from _classical(setting)
    best = Classical(**next(row for row in known if row["best"])["classical"]) if known else None
    best = best or setting.ranked()[0].classical
    for name, grid in _schedules(setting).items():
        if (name, "") not in have:
            chosen = setting.ranked(grid())[0]
            yield _row(setting, name, chosen.table, what=chosen.classical.solver)
    starts = {"best": best, "uniform": Classical("dpmpp-3m", "time_uniform", setting.nfe, best.t_end)}
    for label, start in starts.items():
        for kind, name in LEARNED.items():
            if (name, label) not in have:
                yield _learned(setting, name, kind, label, start, BUDGET)
    for kind in ("ld3", "s4s"):
        for name, radius in ((f"{LEARNED[kind]}, Adam", 0.0), (f"{LEARNED[kind]}, Adam, relaxed", RADIUS)):
            if (name, "best") not in have:
                yield _learned(setting, name, kind, "best", best, replace(SLOW, relax=radius))


def _classical(setting: Setting) -> Iterator[dict]:
    ranked = [
        m for m in setting.ranked() if m.classical.solver != "heun"
    ]  # which not every kind can start at
    for place, measured in enumerate(ranked):
        solver = measured.classical.solver
        first = solver not in {m.classical.solver for m in ranked[:place]}
        if first and (solver in NAMES or not place):
            row = _row(setting, NAMES.get(solver, solver), measured.table, what=measured.classical.grid)
            yield {**row, "best": not place, "classical": measured.classical.config()}


def _schedules(setting: Setting) -> dict[str, Callable[[], torch.Tensor]]:
    model, guides = setting.model, setting.train.subset(slice(0, GUIDES))
    return {
        "DMN": lambda: dmn(model.schedule, setting.nfe, model.t_end),
        "GITS, distance": lambda: gits(model, guides, setting.nfe, measure="distance"),
        "GITS, deviation": lambda: gits(model, guides, setting.nfe, measure="deviation"),
    }


def _learned(
    setting: Setting, name: str, kind: str, label: str, start: Classical, config: gas.GaussNewton | gas.Adam
) -> dict:
    solver = KINDS[kind].build(setting.model.schedule, start)
    for record in gas.fit(
        solver,
        setting.model,
        setting.train,
        validation=setting.validation,
        loss="l2",
        config=KINDS[kind].training(config),
    ):
        spent, began, best = record.evaluations, record.start_loss, record.best_loss
    with torch.no_grad():
        row = _row(setting, name, solver().detach(), what=start.spec, start=label)
    return {**row, "evaluations": spent, "start_loss": began, "validation_loss": best}


def _row(setting: Setting, name: str, table: gas.Table, *, what: str, start: str = "") -> dict:
    mse, half = mean_interval(evaluate(setting.model, setting.test, table, l2))
    return {
        "nfe": setting.nfe,
        "name": name,
        "what": what,
        "start": start,
        "mse": mse,
        "half": half,
        "best": False,
    }


def _markdown(report: dict) -> str:
    lines = [f"# Baselines on `{report['model']}`", ""]
    lines += [
        f"Mean squared error to the teacher x 1000, with 95% intervals, on {report['test']} unseen seeds; "
    ]
    lines += [f"{report['pairs']} pairs to learn from, {report['validation']} to choose by.", ""]
    lines += [f"    {report['command']}", "", f"{report['machine']}."]
    for nfe in sorted({row["nfe"] for row in report["rows"]}):
        rows = [row for row in report["rows"] if row["nfe"] == nfe]
        lines += [
            "",
            f"## {nfe} network evaluations",
            "",
            "| solver | start, grid or solver | MSE | calls to train |",
        ]
        lines += ["|---|---|---|---|"]
        for row in rows:
            spent = f"{row['evaluations']:,}" if "evaluations" in row else ""
            what = f"{row['start']}: {row['what']}" if row["start"] else row["what"]
            lines += [
                f"| {row['name']} | {what} | {1e3 * row['mse']:.3f} ± {1e3 * row['half']:.3f} | {spent} |"
            ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
