"""Every reader refuses what wants its time or memory, in one line, in under 2 s and with less than 300 MB."""

import hashlib
import os
import signal
import sys
import time

import diffusers
import pytest
import torch

import gas
from gas.checkpoint import read_checkpoint, write_checkpoint
from gas.features.inception import Inception
from gas.features.lpips import LPIPS
from gas.features.real import RealImages
from gas.metrics.statistics import read_images, read_statistics
from gas.paper import edm, ldm
from gas.paper.convert import recognize
from gas.paper.edm import read_weights
from gas.paper.reproduction import read_results
from gas.paper.student import read_student
from gas.paper.teacher_set import read_teacher_set
from gas.pipelines.prompts import read_prompts
from gas.schedule import VPLinear
from gas.training.adversarial.r3gan import load_discriminator
from gas.unpickle.loading import read_pickle, read_state
from gas.zoo.data import read_idx
from support import bombs

SECONDS, BYTES = 2, 300 << 20
# Imported before anything is measured: what a library takes to load is no reader's time.
IMPORTED = gas.GASScheduler, diffusers.UNet2DModel, diffusers.VQModel, diffusers.SD3Transformer2DModel


def scheduler(path):
    return gas.GASScheduler.from_pretrained(path)


def student(path):
    return read_student(path, VPLinear())


def results(path):
    return read_results(path.parent)


def pairs(path):
    return gas.read_pairs(path.parent)


def pictures(path):
    return list(RealImages(path.parent).batches(8))


def inception(path):
    return Inception(read_state(path))


def lpips(path):
    return LPIPS.read(path, path)


def checkpoint_of(data):
    """Write a checkpoint whose checksum holds around hostile data."""

    def write(path):
        write_checkpoint(path, {})
        head = path.read_bytes().split(b":")[0] + b":" + hashlib.sha256(data).hexdigest().encode() + b"\n"
        path.write_bytes(head + data)

    return write


def pickles(cases):
    return {name: bombs.written(data) for name, data in cases.items()}


SEALED = {f"sealed: {name}": checkpoint_of(bombs.PICKLE[name]) for name in list(bombs.PICKLE)[:6]}
STATE = {
    "1e6 channels": bombs.state(**{"Conv2d_1a_3x3.conv.weight": torch.zeros(1_000_000, 3, 1, 1)}),
    "a tensor of text": bombs.written(b"\x80\x02}(X\x01\x00\x00\x00aX\x01\x00\x00\x00bu."),
}

# Reader, the name that its file has, the files of its own, and those of a form that another reader has as its own.
READERS = {
    "solver": (gas.load, "s.json", bombs.JSON | bombs.SOLVER, {}),
    "scheduler": (scheduler, "scheduler_config.json", {}, bombs.JSON),
    "results": (results, "r.json", {}, bombs.JSON),
    "manifest": (pairs, "manifest.json", bombs.MANIFEST, bombs.JSON),
    "statistics": (read_statistics, "s.safetensors", bombs.SAFETENSORS | bombs.STATISTICS, {}),
    "npz": (read_statistics, "s.npz", bombs.NPZ, {}),
    "images": (read_images, "s.npz", {}, bombs.NPZ),
    "idx": (read_idx, "t10k-images-idx3-ubyte.gz", bombs.IDX, {}),
    "pictures": (pictures, "a.png", bombs.PICTURE, {}),
    "prompts": (read_prompts, "p.txt", {"30 MB": bombs.written(b"x" * (30 << 20))}, {}),
    "pickle": (read_pickle, "w.pkl", pickles(bombs.PICKLE), bombs.ZIPPED | bombs.TORCH),
    "lazy": (recognize, "w.pkl", {}, pickles(bombs.PICKLE) | bombs.ZIPPED | bombs.TORCH),
    "network": (edm.load, "n.pkl", pickles(bombs.NETWORK), {}),
    "network, safetensors": (read_weights, "n.safetensors", {}, bombs.SAFETENSORS),
    "latent": (ldm.load, "n.safetensors", bombs.LDM, bombs.SAFETENSORS),
    "critic": (load_discriminator, "n.safetensors", bombs.CRITIC, bombs.SAFETENSORS),
    "student": (student, "s.pt", {"NFE 20,000": bombs.student(20_000), "NFE 1,001": bombs.student(1001)}, {}),
    "teacher set": (read_teacher_set, "d.pkl", {}, {}),
    "zoo": (gas.zoo.load, "z.safetensors", bombs.ZOO, bombs.SAFETENSORS),
    "checkpoint": (read_checkpoint, "c.pt", bombs.TORCH | SEALED, bombs.ZIPPED),
    "state": (read_state, "w.pth", {}, bombs.ZIPPED | bombs.TORCH),
    "state, safetensors": (read_state, "w.safetensors", {}, bombs.SAFETENSORS),
    "inception": (inception, "w.safetensors", STATE, {}),
    "lpips": (lpips, "w.safetensors", STATE, {}),
}


def memory(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field))


def measured(read, path):
    """Return the refusal, the processor's seconds and the bytes at the peak beyond those before."""

    def late(*_):
        raise TimeoutError("still at it")

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, began = memory("VmRSS"), time.process_time()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(60)  # of any clock: a reader that waits for a pipe uses no processor
    try:
        with pytest.raises((ValueError, OSError)) as caught:
            read(path)
    finally:
        signal.alarm(0)
    return str(caught.value), time.process_time() - began, memory("VmHWM") - before


def offenders(form, cases, folder):
    """Return the cases whose refusal is long, slow or large, each with what was measured."""
    read, name, *_ = READERS[form]
    findings = {}
    for number, (case, write) in enumerate(cases.items()):
        path = folder / f"{form} {number}" / name
        path.parent.mkdir()
        write(path)
        line, seconds, size = measured(read, path)
        path.unlink()
        width = len(line) - line.count(str(path)) * len(str(path))
        if "\n" in line or width > 300 or seconds > SECONDS or size > BYTES:
            findings[case] = (line[:300], width, round(seconds, 2), size >> 20)
    return findings


def test_the_corpus_is_as_large_as_it_says():
    names = {(form, name) for form, (_, _, required, _) in READERS.items() for name in required}
    assert len(names) > 150


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="measures memory as Linux says it")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", READERS)
def test_every_refusal_is_short_quick_and_small(form, tmp_path):
    assert not offenders(form, bombs.ANY | READERS[form][2], tmp_path)


# Every file to every reader of its form: `PYTHONPATH=src:tests python tests/test_budgets.py`.
if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    for form, (_, _, required, others) in READERS.items():
        with tempfile.TemporaryDirectory() as folder:
            count, bad = (
                len(bombs.ANY | required | others),
                offenders(form, bombs.ANY | required | others, Path(folder)),
            )
            sys.stdout.write(
                f"{form}: {count} files, {len(bad)} beyond {SECONDS} s or {BYTES >> 20} MB {bad or ''}\n"
            )
