"""Random kills of workers that share a folder of pairs: ``python -m support.killed_workers --kills 1000``.

Every set must have the bytes of one process. A kill may cost the shard at work; no other may be made twice.
"""

import argparse
import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from gas.classical.registry import Classical
from gas.pairs import leases
from gas.pairs.fingerprint import PairsSpec
from gas.pairs.teacher import write_pairs
from support.doubles import Mixture

SHARD, SECONDS = 2, 0.02  # pairs a shard, and about how long it takes
STOPPED = 143


@dataclass(frozen=True)
class Logged(Mixture):
    """A slow model that logs who makes which shard."""

    log: str = ""

    def noise(self, seeds):
        if self.log and len(seeds) == SHARD:
            with open(self.log, "ab", 0) as file:
                file.write(f"{os.getpid()} {seeds[0]}\n".encode())  # short: appended in one piece
            time.sleep(SECONDS)
        return super().noise(seeds)


def write(folder, shards, log="", shared=False):
    model = Logged(log=str(log))
    table = Classical("ddim", "log_snr", 3, model.t_end)
    yield from write_pairs(model, table, folder, PairsSpec(range(shards * SHARD), shard=SHARD), shared=shared)


def worker(*args):
    """Start a worker; it ends with 0 when all pairs are there, and with 143 after SIGTERM, as the command does."""
    if pid := os.fork():
        return pid

    def stop(number, frame):
        raise KeyboardInterrupt

    code = 1
    try:
        signal.signal(signal.SIGTERM, stop)
        for _ in write(*args, shared=True):
            pass
        code = 0
    except KeyboardInterrupt:
        code = STOPPED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def kill_at_random(arguments, workers, kills, interval, source):
    """Keep workers at work until the set is finished; return the killed, and how long SIGTERM took, in seconds."""
    running, killed, grace = {worker(*arguments) for _ in range(workers)}, [], []
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        time.sleep(source.expovariate(1 / interval))
        while ended := os.waitpid(-1, os.WNOHANG)[0] if running else 0:
            running.remove(ended)
        if len(running) < workers:  # nothing is left to claim
            break
        if len(killed) < kills:
            victim, number = source.choice(sorted(running)), source.choice([signal.SIGKILL, signal.SIGTERM])
            start = time.monotonic()
            os.kill(victim, number)
            code = os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1])
            running.remove(victim)
            if code == 0:  # it was faster
                break
            assert code in (-number, STOPPED if number == signal.SIGTERM else None), (code, number)
            if number == signal.SIGTERM:
                grace.append(time.monotonic() - start)
            killed.append(victim)
            running.add(worker(*arguments))
    for pid in running:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "a worker failed"
    return killed, grace


def repeated(log, killed):
    """How many shards were made twice, those apart that a kill cost, and how many it cost."""
    starts = [tuple(map(int, line.split())) for line in Path(log).read_text().splitlines()]
    last = {pid: shard for pid, shard in starts if pid in killed}  # may have been at work
    counts = Counter(shard for _, shard in starts)
    lost = Counter(last.values())
    extra = {shard: count - 1 for shard, count in counts.items() if count > 1}
    return sum(max(0, n - lost[shard]) for shard, n in extra.items()), sum(extra.values())


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name[0] != "."}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--shards", type=int, default=400, help="of each set; as many sets as the kills need")
    parser.add_argument("--interval", type=float, default=0.2, help="mean seconds between kills")
    parser.add_argument("--expiry", type=float, default=2.0, help="seconds until a lease is dead")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # also because processes with threads do not fork well
    warnings.simplefilter("ignore")  # of leases that expired
    leases.RENEWAL, leases.EXPIRY, leases.POLL = options.expiry / 10, options.expiry, options.expiry / 20
    source, killed, grace, twice, lost = random.Random(options.seed), 0, [], 0, 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        for _ in write(Path(root) / "one", options.shards):
            pass
        expected = files(Path(root) / "one")
        for number in itertools.count(1):
            folder, log = Path(root) / str(number), Path(root) / f"{number}.log"
            arguments = (folder, options.shards, log)
            dead, waits = kill_at_random(
                arguments, options.workers, options.kills - killed, options.interval, source
            )
            if files(folder) != expected:
                raise SystemExit(f"set {number}, seed {options.seed}: other bytes than one process wrote")
            more = repeated(log, dead)
            killed, grace, twice, lost = killed + len(dead), grace + waits, twice + more[0], lost + more[1]
            sys.stderr.write(
                f"set {number}: {len(dead)} kills, {more[1]} shards lost, {more[0]} made twice\n"
            )
            if killed >= options.kills:
                break
    sys.stdout.write(
        f"{killed} kills of {options.workers} workers in {number} sets of {options.shards} shards, "
        f"{time.monotonic() - start:.0f} s: the bytes of one process; {lost} shards at work lost, {twice} others made "
        f"twice; SIGTERM to exit: median {statistics.median(grace):.3f} s, longest {max(grace):.3f} s\n"
    )
    sys.exit(1 if twice else 0)


if __name__ == "__main__":
    main()
