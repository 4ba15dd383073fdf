"""Training against a discriminator by one process and by several: ``python benchmarks/shared_gas.py --help``.

Both train the same solver on the same batches, of which processes share the rows. A third run, of one process whose
solver starts off by one part in ten million, shows what such training makes of any rounding.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import gas
from gas import distributed
from gas.training.adversarial.setup import GAS


def main() -> None:
    """Run every way and print the table; as torchrun's program, train in one way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--nfe", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--moved", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.into:
        with distributed.process_group():
            _train(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            _run(Path(folder) / f"{count}-{moved}.pt", count, moved)
            for count, moved in ((1, 0.0), (options.processes, 0.0), (1, 1e-7))
        ]
    _print(runs, options.processes)


def _run(path: Path, count: int, moved: float) -> list[dict]:
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), __file__]
    command = [sys.executable, *starter, *sys.argv[1:], "--into", str(path), "--moved", str(moved)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return list(torch.load(path, weights_only=True))


def _train(options: argparse.Namespace) -> None:
    """One run: the numbers of solver and discriminator at every report."""
    model, unpaired = gas.zoo.load(options.model), (range(192), range(1_000, 1_128))
    teacher = gas.Classical("unipc-3-bh2", "log_snr", 20, model.t_end)
    pairs, validation = (gas.evaluation.teacher_pairs(model, teacher, seeds) for seeds in unpaired)
    config = replace(GAS, iterations=options.iterations, validate_every=options.every)
    adversary = gas.adversary_for(model, pairs, config=config, weight=0.02)
    solver = gas.GeneralizedSolver(model.schedule, options.nfe, model.t_end)
    with torch.no_grad():
        for parameter in solver.parameters():
            parameter.add_(options.moved)
    discriminators, start, reports = adversary.weighted(1.0), time.perf_counter(), []
    settings = {"validation": validation, "config": config, "discriminators": discriminators}
    for record in gas.fit(solver, model, pairs, keep="last", **settings):
        network = torch.cat([p.detach().flatten() for p in discriminators[0].network.parameters()])
        report = {"iteration": record.iteration, "loss": record.validation_loss, "network": network.clone()}
        report |= {"outputs": record.best_table.outputs, "times": record.best_table.times}
        reports.append({**report, "seconds": time.perf_counter() - start})
    if distributed.is_first():
        torch.save(reports, options.into)


def _print(runs: list[list[dict]], processes: int) -> None:
    title = f"{processes} processes"
    print(
        f"| steps | loss | {title} | table: {title} | moved by 1e-7 | discriminator: {title} | moved by 1e-7 |"
    )
    print("|---|---|---|---|---|---|---|")
    for one, *others in zip(*runs, strict=True):
        cells = [str(one["iteration"]), *(f"{1000 * each['loss']:.6g}" for each in (one, others[0]))]
        for name in ("outputs", "network"):
            cells += [f"{float((each[name] - one[name]).abs().max()):.1e}" for each in others]
        print("| " + " | ".join(cells) + " |")
    seconds = [run[-1]["seconds"] - run[0]["seconds"] for run in runs]
    print(f"\n{seconds[0]:.1f} s by one process, {seconds[1]:.1f} s by {processes}")


if __name__ == "__main__":
    main()
