"""Several processes do what one does, to the same bits; what fails in one ends all, and says so."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gas
from gas import distributed
from gas.classical.registry import Classical, candidates
from gas.errors import Diverged
from gas.evaluation.evaluator import Evaluator
from gas.evaluation.sampler import sample_pairs, sample_seeds, teacher_pairs
from gas.evaluation.spaces import FeatureSpace
from gas.losses import l2
from gas.metrics.statistics import accumulate
from gas.pairs.fingerprint import PairsSpec
from gas.pairs.teacher import write_pairs
from gas.training.ranking import rank_classical
from gas.training.validation import evaluate
from support import shared_work
from support.doubles import MIXTURE, taught
from support.forks import fork
from support.small_zoo import write_small

pytestmark = pytest.mark.slow

# --- by torchrun ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same work done by one process and by two that torchrun started, and how torchrun ended."""
    folder_alone, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    model = write_small("digits", tmp_path_factory.mktemp("zoo"))
    program = [str(Path(shared_work.__file__)), str(two), str(model)]
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # More threads a process would round otherwise.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.Popen(
        [*starter, *program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shared_work.work(folder_alone, model)
    finally:
        torch.set_num_threads(threads)
    printed_text, _ = done.communicate(timeout=300)
    assert (two / "trouble.out").exists(), printed_text
    return folder_alone, two, done.returncode


def same(folders, name):
    folder_alone, two, _ = folders
    return (folder_alone / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.slow
def test_pairs_are_the_same_bytes(folders):
    folder_alone, two, _ = folders
    files = {path.name for path in (folder_alone / "pairs").iterdir()}
    assert (
        files
        == {path.name for path in (two / "pairs").iterdir()}
        == {"manifest.json", "shard-00000.safetensors"}
    )
    assert all(same(folders, f"pairs/{name}") for name in files)
    assert len(gas.read_pairs(two / "pairs")) == 72


def test_the_trained_solver_is_the_same_file_whatever_was_raced(folders):
    assert json.loads((folders[1] / "gs.json").read_text())["solvers"]
    assert same(folders, "gs.json")
    assert same(folders, "train.out")


@pytest.mark.parametrize(("name", "tolerance"), [("features", 0.0), ("adam", 1e-6)])
def test_solvers_trained_by_both_optimisers_are_the_same_in_all_processes(folders, name, tolerance):
    folder_alone, two, _ = folders
    alone, first, second = (
        torch.load(folder / f"{name}-{rank}.pt", weights_only=True)
        for folder, rank in ((folder_alone, 0), (two, 0), (two, 1))
    )
    assert all(torch.equal(value, second["solver"][key]) for key, value in first["solver"].items())
    assert first["losses"] == second["losses"]
    for key, value in alone["solver"].items():
        torch.testing.assert_close(first["solver"][key], value, rtol=0, atol=tolerance)
    start, best, evaluations = alone["losses"]
    assert best < 0.8 * start
    assert first["losses"][2] == evaluations


@pytest.mark.parametrize("pairing", ["independent", "paired"])
def test_a_solver_trained_against_a_discriminator_is_the_same_in_all_processes(folders, pairing):
    """And within a stated tolerance that of one process: relativistic losses compare fakes and reals row by row."""
    folder_alone, two, _ = folders
    alone, first, second = (
        torch.load(folder / f"{pairing}-{rank}.pt", weights_only=True)
        for folder, rank in ((folder_alone, 0), (two, 0), (two, 1))
    )
    for part in (lambda run: run["solver"], lambda run: run["critics"][0]):
        assert all(torch.equal(value, part(second)[key]) for key, value in part(first).items())
        for key, value in part(alone).items():
            torch.testing.assert_close(part(first)[key], value, rtol=0, atol=1e-6)
    assert first["logs"] == second["logs"]
    assert first["logs"] == pytest.approx(alone["logs"], rel=1e-5)
    assert {"c.discriminator", "c.generator", "c.r1", "c.r2", "c.real_above_fake"} == set(alone["logs"])
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], rel=1e-6)


def test_a_preset_is_taught_and_trained_alike(folders):
    folder_alone, two, _ = folders
    files = {path.name for path in (folder_alone / "preset-pairs").iterdir()}
    assert "manifest.json" in files and all(same(folders, f"preset-pairs/{name}") for name in files)
    tables = [gas.load(folder / "preset.json").table(3) for folder in (folder_alone, two)]
    for part in ("times", "states", "outputs"):
        first, second = (getattr(table, part) for table in tables)
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    start = Classical("dpmpp-3m", "time_uniform", 3, 1e-3).table(gas.EDMasVP(1e-3, 0.002, 80.0))
    assert not torch.equal(tables[0].outputs, start.outputs)


def test_statistics_are_the_same_file(folders):
    assert int(load_file(folders[1] / "statistics.safetensors")["count"]) == 72
    assert same(folders, "statistics.safetensors")


def test_an_evaluation_says_the_same(folders):
    assert json.loads((folders[1] / "evaluate.out").read_text())["rows"]
    assert same(folders, "evaluate.out")


def test_what_cannot_be_shared_or_fails_in_one_process_is_one_clear_line(folders):
    _, two, code = folders
    few, zoo, failed = (two / "trouble.out").read_text().split("\n\n")
    assert few.splitlines()[-1].endswith(
        "a batch of 1 cannot be shared by 2 processes: make it larger, or start fewer processes"
    )
    assert zoo == "2 error: gas zoo runs in one process: leave torchrun out"
    assert failed.splitlines()[-1] == "error: process 1: the second machine's own trouble"
    assert code == 1
    assert not (two / "few.json").exists()
    assert [path.name for path in (two / "failed").iterdir()] == ["manifest.json"]


# --- by fork, which imports nothing again ---------------------------------------------------------------


def _forked(rank, port, function, answer):
    given = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in given.items()}
    try:
        with distributed.process_group():
            outcome = function()
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    answer.send(outcome)


def in_two(function):
    """What a function returns, or fails with, in each of two processes that share its work; None where one died."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(2):
        answer, question = multiprocessing.Pipe(duplex=False)
        running.append((fork(_forked, rank, port, function, question), answer))
        question.close()
    replies = []
    for process, answer in running:
        process.join(60)
        assert not process.is_alive()
        try:
            replies.append(answer.recv())
        except EOFError:
            replies.append(None)
    return replies


def test_alone_all_of_it_is_nothing_at_all():
    items = iter(range(3))
    mapped = distributed.map_sharded(lambda i: -i, items)
    assert next(mapped) == 0
    assert next(items) == 1  # nothing was asked for in advance
    assert distributed.broadcast(lambda: "x") == "x"
    assert distributed.all_gather(3) == [3]
    assert (distributed.world_size(), distributed.rank(), distributed.is_first(), distributed.launched()) == (
        1,
        0,
        True,
        1,
    )
    assert distributed.shard_slices(5) == [slice(0, 5)]
    assert distributed.local_device("cuda") == "cuda"
    with distributed.process_group():
        assert distributed.world_size() == 1


def test_answers_come_in_order_and_whole_to_all():
    values = [
        torch.arange(3, dtype=torch.bfloat16),
        torch.zeros(0, 4),
        torch.tensor([1e-300], dtype=torch.float64),
    ]

    def work():
        results = list(
            distributed.map_sharded(
                lambda x: x, [*values, {"a": values[0].T, "b": values[2]}, {"a": [1.5, None]}]
            )
        )
        whole = all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(results, values, strict=False))
        whole = whole and torch.equal(results[3]["b"], values[2]) and results[4] == {"a": [1.5, None]}
        who = list(distributed.map_sharded(lambda _: os.getpid(), range(5)))
        return [whole, who, distributed.all_gather(os.getpid()), distributed.broadcast(os.getpid)]

    first, second = in_two(work)
    assert first == second
    assert first[0]
    folder_alone, two = first[2]
    assert folder_alone != two
    assert first[1] == [folder_alone, two, folder_alone, two, folder_alone]
    assert first[3] == folder_alone


def test_sums_and_shares_are_the_same_for_all():
    def work():
        value = torch.tensor([1.0, 1e-9]) * (1 + distributed.rank())
        parts = [(s.start, s.stop) for s in distributed.shard_slices(7)]
        return [
            distributed.all_reduce_sum(value).tolist(),
            parts,
            distributed.local_device("cuda"),
            distributed.local_device("cpu"),
        ]

    first, second = in_two(work)
    assert first == second
    assert first == [[3.0, pytest.approx(3e-9, rel=1e-6)], [(0, 4), (4, 7)], "cuda:0", "cpu"]
    assert in_two(lambda: distributed.shard_slices(1))[0] == (
        "UserError: a batch of 1 cannot be shared by 2 processes: make it larger, or start fewer processes"
    )


def test_work_within_work_is_ones_own():
    def inner(i):
        return [*distributed.map_sharded(lambda j: 10 * i + j, range(3)), distributed.world_size()]

    outcomes = in_two(lambda: list(distributed.map_sharded(inner, range(3))))
    assert outcomes == [[[10 * i, 10 * i + 1, 10 * i + 2, 1] for i in range(3)]] * 2


def test_samples_losses_and_statistics_are_those_of_one():
    teacher, student = (Classical("ddim", "log_snr", nfe, MIXTURE.t_end) for nfe in (6, 2))
    table = student.table(MIXTURE.schedule)

    def work():
        pairs = teacher_pairs(MIXTURE, teacher, range(7, 157))
        summed = accumulate(lambda x: x, (part.target for part in pairs.batches(32)))
        results = [pairs.seeds, pairs.noise, pairs.target, pairs.labels, summed.mean, summed.cov]
        results += [
            sample_pairs(MIXTURE, pairs, table),
            sample_seeds(MIXTURE, table, range(100)),
            evaluate(MIXTURE, pairs, table, l2),
        ]
        entries = candidates(MIXTURE.schedule, 2, MIXTURE.t_end, solvers=["ddim", "ipndm-2"])
        measured = rank_classical(MIXTURE, pairs, 2, l2, entries=entries, rounds=((None, 64), (3, None)))
        ranked = [(m.classical.label, m.loss) for m in measured]
        return [*(x.tolist() for x in results), *map(list, ranked)]

    assert in_two(work) == [work()] * 2


def test_features_of_what_is_measured_are_taken_once_among_all():
    pairs = taught(range(600))

    def work():
        ranges = []
        space = FeatureSpace(lambda x: ranges.append(len(x)) or x.sin())
        measures = Evaluator(pairs, space).measure("its own", pairs.target.flip(0), 4).to_teacher
        return ranges, [measures.frechet, measures.kernel, measures.prdc.coverage]

    (first, fit_a), (second, other) = in_two(work)
    alone, expected = work()
    assert alone == 2 * [256, 256, 88]
    assert sorted(first + second) == sorted(alone) and first and second
    assert fit_a == other == expected


TABLE = Classical("ddim", "log_snr", 3, MIXTURE.t_end).table(MIXTURE.schedule)
SPEC = PairsSpec(range(3, 24), {"solver": "ddim"}, shard=8)


def write(folder, **changed):
    return [
        progress.done for progress in write_pairs(MIXTURE, TABLE, folder, SPEC, **{"batch": 3, **changed})
    ]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pairs_are_those_of_one_resumed_and_damaged_ones_too(tmp_path):
    folder_alone, two = tmp_path / "one", tmp_path / "two"
    assert write(folder_alone) == [0, 8, 16, 21]
    assert in_two(lambda: write(two)) == [[0, 8, 16, 21]] * 2
    assert contents(two) == contents(folder_alone)
    (two / "shard-00001.safetensors").unlink()
    (two / "shard-00002.safetensors").write_bytes(b"not a shard")
    assert in_two(lambda: write(two, batch=5)) == [[8, 16, 21]] * 2  # in the first run's batches
    assert contents(two) == contents(folder_alone)
    other = in_two(lambda: list(write_pairs(MIXTURE, TABLE.detach(), two, PairsSpec(range(9), {}))))
    assert "holds pairs of other settings" in other[0]
    assert other[1].startswith("UserError: process 0: ")
    assert contents(two) == contents(folder_alone)


def test_none_has_made_pairs_before_all_are_written(tmp_path, monkeypatch):
    real = gas.io.write_bytes
    monkeypatch.setattr(
        gas.pairs.shards, "write_bytes", lambda *arguments: (time.sleep(0.2), real(*arguments))
    )
    assert in_two(lambda: [write(tmp_path)[-1], len(gas.read_pairs(tmp_path))]) == [[21, 21]] * 2


def test_a_full_disk_of_the_first_process_stops_all_and_room_lets_them_go_on(tmp_path, monkeypatch):
    folder, real = tmp_path / "pairs", gas.io.write_bytes

    def full(path, data):
        if path.name == "shard-00001.safetensors":
            raise OSError(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(gas.pairs.shards, "write_bytes", full)
    outcomes = in_two(lambda: write(folder))
    assert all("8 of 21 pairs safe: make room" in text for text in outcomes)
    assert outcomes[1].startswith("OSError: process 0: ")
    assert set(contents(folder)) == {"manifest.json", "shard-00000.safetensors"}
    monkeypatch.undo()
    assert in_two(lambda: write(folder)) == [[8, 16, 21]] * 2
    write(tmp_path / "one")
    assert contents(folder) == contents(tmp_path / "one")


def test_an_error_in_one_is_raised_in_all_whether_at_shared_work_or_not():
    def at_work():
        return list(distributed.map_sharded(lambda i: 1 // (i - 3), range(6)))

    def beside():
        if distributed.rank() == 1:
            raise ModuleNotFoundError("no such extra")
        return distributed.all_gather(1)

    def at_the_end():
        if distributed.rank() == 0:
            raise KeyError("a defect")

    def caught():
        with pytest.raises(ZeroDivisionError if distributed.rank() else ArithmeticError):
            at_work()
        return distributed.all_gather(distributed.rank())  # still in step

    def diverges():
        return distributed.broadcast(lambda: (_ for _ in ()).throw(Diverged("not finite")))

    assert in_two(diverges) == ["Diverged: not finite", "Diverged: process 0: not finite"]
    assert in_two(at_work) == [
        "ArithmeticError: process 1: integer division or modulo by zero",
        "ZeroDivisionError: integer division or modulo by zero",
    ]
    assert in_two(beside) == [
        "ModuleNotFoundError: process 1: no such extra",
        "ModuleNotFoundError: no such extra",
    ]
    assert in_two(at_the_end) == ["KeyError: 'a defect'", "RuntimeError: process 0: 'a defect'"]
    assert in_two(caught) == [[0, 1]] * 2


def test_processes_at_different_work_say_so():
    def work():
        return list(distributed.map_sharded(lambda i: i, range(2 + distributed.rank())))

    first, second = in_two(work)
    assert first == [0, 1]
    assert second.startswith("RuntimeError: the processes are not at the same work")


def test_a_killed_process_does_not_leave_the_other_waiting():
    def work():
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return distributed.all_gather(1)

    began = time.monotonic()
    first, second = in_two(work)
    assert second is None
    assert first.startswith(
        "ConnectionError: process 0 of 2 lost the others, one of which was killed or left"
    )
    assert time.monotonic() - began < 30
