"""Pairs read from disk on demand are the pairs in memory, to the bit; shards that change in use are refused."""

import itertools
import os

import pytest
import torch

from gas.classical.registry import Classical
from gas.learned.generalized import GeneralizedSolver
from gas.pairs.dataset import read_pairs
from gas.pairs.fingerprint import PairsSpec
from gas.pairs.teacher import write_pairs
from gas.training.adam import Adam
from gas.training.gauss_newton import GaussNewton
from gas.training.loop import fit
from support.doubles import Mixture

pytestmark = pytest.mark.usefixtures("quick_gauss_newton")

MODEL = Mixture()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    table = Classical("unipc-3-bh2", "log_snr", 8, MODEL.t_end).table(MODEL.schedule)
    for _ in write_pairs(MODEL, table, root, PairsSpec(range(5, 75), {}, shard=16)):
        pass
    return root


def both(folder):
    return read_pairs(folder, model=MODEL), read_pairs(folder, model=MODEL, hold=False)


def same(a, b):
    assert len(a) == len(b) and repr(a) == repr(b) and a.manifest == b.manifest
    a, b = a.load(), b.load()
    for name in ("seeds", "noise", "target", "labels"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)


def test_rows_are_those_in_memory_however_they_are_taken(folder):
    held, read = both(folder)
    same(held, read)
    mask = torch.arange(70) % 3 == 1
    for index in (
        slice(0, 0),
        slice(10, 40),
        slice(None, None, 7),
        mask,
        torch.tensor([69, 0, 33, 33, 16, 15]),
    ):
        same(held.subset(index), read.subset(index))
        same(held.view(index), read.view(index))
        same(held.subset(slice(3, 60)).subset(slice(1, 20)), read.view(slice(3, 60)).subset(slice(1, 20)))
    for left, right in zip(held.split(20), read.split(20), strict=True):
        same(left, right)
    for left, right in itertools.zip_longest(held.batches(32), read.batches(32)):
        same(left, right)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "loss"),
    [
        (GaussNewton(iterations=3, batch=12, validate_every=1), "l2"),
        (Adam(iterations=4, batch=12, validate_every=2), "l1"),
    ],
)
def test_training_from_disk_has_the_bits_of_training_from_memory(folder, tmp_path, config, loss):
    ends = []
    for number, pairs in enumerate(both(folder)):
        training, held = pairs.split(20)
        for state in (tmp_path / "state", None):  # the second set takes up the state that the first one left
            solver = GeneralizedSolver(MODEL.schedule, 3, MODEL.t_end)
            given = {"validation": held, "loss": loss, "config": config, "checkpoint": state}
            records = list(fit(solver, MODEL, training, **given))
            ends.append((solver.state_dict(), records[-1]))
            assert (len(records) > 1) == (number == 0 or state is None)
    for numbers, record in ends[1:]:
        assert record.best_loss == ends[0][1].best_loss
        assert all(torch.equal(value, ends[0][0][name]) for name, value in numbers.items())


def test_a_shard_that_changes_in_use_is_named(folder):
    pairs = read_pairs(folder, hold=False)
    path = folder / "shard-00001.safetensors"
    data, status = path.read_bytes(), path.stat()
    pairs.subset(slice(0, 40))
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"shard .*00001.* changed while it was in use .*`gas pairs` again"):
        pairs.subset(slice(20, 21))
    pairs.subset(slice(0, 16))  # the other shards are as they were
    path.unlink()
    with pytest.raises(ValueError, match=r"shard .*00001.* changed while it was in use"):
        pairs.load()
    assert repr(pairs) == "<70 pairs of shape 2>"  # reads nothing
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert torch.equal(pairs.load().target, read_pairs(folder).target)
