"""Peak memory of importing a teacher set over the file's size: ``python benchmarks/import_memory.py --help``.

Writes a synthetic ``dataset.pkl`` of the published layout into a temporary folder and imports it in a process of
its own, by rows from disk and, to compare, after reading the whole file first. Linux only: it reads VmHWM, since
``ru_maxrss`` of a new process begins at its parent's.
"""

import argparse
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

_COMMON = """
import sys
from gas.paper.teacher_set import import_pairs, read_teacher_set
from gas.unpickle.loading import read_pickle
def peak(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
data = {data}
for _ in import_pairs(read_teacher_set(sys.argv[1], data), sys.argv[2]): pass
print(peak() - before)
"""


def main() -> None:
    """Measure and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, count = Path(folder) / "dataset.pkl", options.megabytes * 1_000_000 // (2 * 4 * 3 * 32 * 32)
        noise, images = torch.randn(count, 3, 32, 32), torch.randn(count, 3, 32, 32)
        nothing = [None] * count
        data = {"noise": noise, "images": images, "latents": nothing, "condition": nothing}
        with open(file, "wb") as out:
            pickle.dump(data, out)
        print(f"file: {file.stat().st_size / 1e6:.0f} MB, {count} pairs of 3x32x32")
        for name, expression in (("by rows", "None"), ("whole", "read_pickle(sys.argv[1])")):
            words = [sys.executable, "-c", _COMMON.format(data=expression), str(file), f"{folder}/{name}"]
            grown = int(subprocess.run(words, check=True, capture_output=True).stdout)
            print(f"{name}: peak memory grew by {grown / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
