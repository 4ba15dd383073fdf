"""Teacher pairs by one process and by several that share them: ``python benchmarks/processes.py --help``."""

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rows
import torch

import gas
from gas import distributed

# Each run times itself, so that starting Python and loading the model does not count.
TIMED = "seconds.txt"


def main() -> None:
    """Measure, print and write the rows; as torchrun's program, make the pairs of one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--seeds", type=int, default=512)
    parser.add_argument("--nfe", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--into", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.into:
        _make(options, Path(options.into))
        return
    torch.set_num_threads(1)  # which the rows tell of every process but the one that has all threads
    n = options.processes
    ways = {(1, 1): "one process", (1, n): f"one process of {n} threads", (n, 1): f"{n} processes"}
    with tempfile.TemporaryDirectory() as folder:
        # In turn, so that a machine that slows down slows all; the best of each counts.
        runs = [
            [_run(*way, Path(folder) / f"{i}-{way[0]}-{way[1]}") for way in ways]
            for i in range(options.repeats)
        ]
        if not _same(*(Path(folder) / f"0-{count}-1/pairs" for count in (1, n))):
            raise SystemExit("the processes made other files than one process")
    settings = {"model": options.model, "seeds": options.seeds, "nfe": options.nfe, "batch": options.batch}
    best = dict(zip(ways.values(), map(min, zip(*runs, strict=True)), strict=True))
    measurements = [
        rows.row("teacher pairs", seconds, "s", way=way, **settings) for way, seconds in best.items()
    ]
    *others, shared = best
    for way in others:
        measurements.append(
            rows.row("speed-up", best[way] / best[shared], "", way=f"{shared} / {way}", **settings)
        )
    for row in measurements:
        print(f"{row['name']}, {row['way']}: {row['value']:.3g} {row['unit']}")
    rows.write("processes", measurements)


def _run(count: int, threads: int, folder: Path) -> float:
    """Seconds that the pairs took ``count`` processes of so many threads each."""
    folder.mkdir()
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, *starter, __file__, *sys.argv[1:], "--into", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    return float((folder / TIMED).read_text())


def _make(options: argparse.Namespace, folder: Path) -> None:
    """One process of a run: its share of the pairs, and, of the first, the time that all of them took."""
    model = gas.zoo.load(options.model)
    teacher = gas.Classical("unipc-3-bh2", "log_snr", options.nfe, model.t_end)
    table, spec = teacher.table(model.schedule), gas.PairsSpec(range(options.seeds), teacher.config())
    with distributed.process_group():
        gas.pairs.teach(model, table, range(2))  # warm
        distributed.all_gather(0)  # all are ready
        start = time.perf_counter()
        for _ in gas.write_pairs(model, table, folder / "pairs", spec, batch=options.batch):
            pass
        if distributed.is_first():
            (folder / TIMED).write_text(str(time.perf_counter() - start))


def _same(first: Path, other: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    names = [sorted(path.name for path in folder.iterdir()) for folder in (first, other)]
    return names[0] == names[1] and not any(filecmp.cmpfiles(first, other, names[0], shallow=False)[1:])


if __name__ == "__main__":
    main()
