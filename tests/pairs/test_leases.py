"""Processes that share a folder of pairs make each shard once, whatever lies in the folder and whoever is killed."""

import dataclasses
import errno
import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_pairs import SHARDS, SPEC, TABLE, contents, flip, reference, write

from gas import distributed, workspace
from gas.errors import UserError
from gas.pairs import leases, shards
from gas.pairs.leases import Lease, Leases
from gas.pairs.teacher import PairsProgress, write_pairs
from support.doubles import Mixture

FIRST = f".{SHARDS[0]}.lease-1"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "RENEWAL", 0.02)
    monkeypatch.setattr(leases, "EXPIRY", 0.2)
    monkeypatch.setattr(leases, "POLL", 0.01)


class Recording(Mixture):
    """Counts the batches that it makes; ``act`` is called before each, with their number."""

    def __init__(self, act=lambda number: None):
        super().__init__()
        object.__setattr__(self, "first_seeds", [])
        object.__setattr__(self, "act", act)

    def noise(self, seeds):
        if len(seeds) > 1 or seeds[0] != SPEC.seeds[0]:  # not the check of the noise
            self.act(len(self.first_seeds))
            self.first_seeds.append(seeds[0])
        return super().noise(seeds)


BATCHES = [3, 6, 7, 10, 11]  # first seeds


def share(folder, model=None, spec=SPEC):
    return write_pairs(model or Mixture(), TABLE, folder, spec, batch=3, shared=True)


# --- together -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4])
def test_workers_make_every_shard_once_and_the_bytes_of_one_process(tmp_path, size):
    model = Recording(lambda number: time.sleep(0.01))
    with ThreadPoolExecutor(size) as pool:
        ends = list(pool.map(lambda _: list(share(tmp_path, model))[-1], range(size)))
    assert all((end.done, end.total) == (10, 10) for end in ends)
    assert sorted(model.first_seeds) == BATCHES
    assert contents(tmp_path) == reference()


def test_progress_counts_the_shards_of_all_and_ends_when_they_are_listed(tmp_path):
    first, second = share(tmp_path), share(tmp_path)
    assert [next(first), next(second), next(first)] == [PairsProgress(i, 10, 0) for i in (0, 0, 4)]
    assert [step.done for step in second] == [4, 8, 10]  # the shard that it would have claimed is there
    assert contents(tmp_path) == reference()
    assert list(first)[-1] == PairsProgress(10, 10, 0)
    assert list(share(tmp_path)) == [PairsProgress(10, 10, 10)]
    assert contents(tmp_path) == reference()


def test_a_worker_with_other_settings_is_refused_and_another_batch_counts_for_nothing(tmp_path):
    next(share(tmp_path))
    with pytest.raises(
        UserError, match=r"holds pairs of other settings \(guidance: 1.0 stored, 2.0 expected\)"
    ):
        next(share(tmp_path, spec=dataclasses.replace(SPEC, guidance=2.0)))
    list(write_pairs(Mixture(), TABLE, tmp_path, SPEC, batch=64, shared=True))
    assert contents(tmp_path) == reference()


def test_one_process_goes_on_with_shared_work_and_the_other_way_around(tmp_path):
    steps = share(tmp_path)
    assert [next(steps).done for _ in range(3)] == [0, 4, 8]
    assert write(tmp_path)[0].resumed == 8
    assert contents(tmp_path) == reference()
    list(itertools.islice(write_pairs(Mixture(), TABLE, tmp_path / "b", SPEC, batch=3), 2))
    assert next(share(tmp_path / "b")).resumed == 4
    list(share(tmp_path / "b"))
    assert contents(tmp_path / "b") == reference()


def test_it_needs_no_process_group(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed._state, "world_size", 2)
    with pytest.raises(UserError, match="independent processes: start them without torchrun"):
        next(share(tmp_path))


def test_they_share_the_lock_that_one_process_has_alone(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "lock"
    handles = [workspace._locked(path, tmp_path, True) for _ in range(2)]
    with pytest.raises(UserError, match="is at work on"):
        workspace._locked(path, tmp_path, False)
    for handle in handles:
        os.close(handle)
    alone = workspace._locked(path, tmp_path, False)
    with pytest.raises(UserError, match="is at work on"):
        workspace._locked(path, tmp_path, True)
    os.close(alone)


def test_a_refused_process_leaves_no_folder_unless_another_is_at_work_there(tmp_path):
    pytest.importorskip("fcntl")
    folder = tmp_path / "a" / "b"
    with pytest.raises(UserError), workspace.hold(folder, "pairs", folder=True, shared=True):
        raise UserError("refused")
    assert not os.listdir(tmp_path)
    with workspace.hold(folder, "pairs", folder=True, shared=True):
        other = workspace._locked(folder / workspace.LOCK, folder, True)
    assert os.listdir(folder) == [workspace.LOCK]
    os.close(other)


# --- leases ---------------------------------------------------------------------------------------------


def file(path):
    path.write_text("process 1 on elsewhere\n")


def unreadable(path):
    file(path)
    path.chmod(0)


def huge(path):
    file(path)
    os.truncate(path, 1 << 40)


def of_time(seconds):
    def create(path):
        file(path)
        os.utime(path, (seconds, seconds))

    return create


@pytest.mark.parametrize(
    "create",
    [
        of_time(0), of_time(time.time() - 1e6), of_time(time.time() + 1e6), unreadable, huge, os.mkfifo,
        lambda path: path.mkdir(), lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("none"),
    ],
)  # fmt: skip
def test_a_lease_that_nobody_renews_expires_whatever_it_is(tmp_path, create):
    next(share(tmp_path))
    create(tmp_path / FIRST)
    start = time.monotonic()
    with pytest.warns(UserWarning, match=rf"{FIRST} was not renewed for 0 seconds: its work is done again"):
        list(share(tmp_path))
    assert time.monotonic() - start > leases.EXPIRY
    is_folder = (tmp_path / FIRST).is_dir()
    (tmp_path / FIRST).rmdir() if is_folder else None  # a user's, perhaps
    assert contents(tmp_path) == reference()


@pytest.mark.parametrize("step", [-1000, 1000])
def test_a_lease_is_alive_while_its_time_changes_whatever_the_clocks_say(tmp_path, step):
    watcher = Leases(tmp_path)
    file(tmp_path / ".x.lease-1")
    now = time.time()
    end = time.monotonic() + 3 * leases.EXPIRY
    for number in itertools.count():
        os.utime(tmp_path / ".x.lease-1", (now + number * step,) * 2)
        with watcher.claim(["x"]) as lease:
            assert lease is None
        if time.monotonic() > end:
            break
    time.sleep(1.5 * leases.EXPIRY)
    with pytest.warns(UserWarning, match="not renewed"), watcher.claim(["x"]) as lease:
        assert lease.generation == 2
    assert not os.listdir(tmp_path)


def test_a_live_worker_keeps_its_lease_and_another_takes_the_next(tmp_path):
    watcher = Leases(tmp_path)
    with Leases(tmp_path).claim(["a", "b"]) as first:
        assert first.name == "a"
        end = time.monotonic() + 3 * leases.EXPIRY
        while time.monotonic() < end:
            with watcher.claim(["a"]) as lease:
                assert lease is None
        with watcher.claim(["a", "b"]) as lease:
            assert lease.name == "b"
        assert not first.is_superseded()
    with watcher.claim(["a"]) as lease:
        assert (lease.name, lease.generation) == ("a", 1)


def test_a_suspended_worker_neither_renews_nor_deletes_the_lease_of_its_successor(tmp_path):
    old = Lease(tmp_path, "a", 1)
    (tmp_path / ".a.lease-1").unlink()
    new = Lease(tmp_path, "a", 1)
    new._released.set()
    os.utime(tmp_path / ".a.lease-1", (1, 1))
    time.sleep(5 * leases.RENEWAL)
    old.release()
    assert os.stat(tmp_path / ".a.lease-1").st_mtime == 1
    new.release()
    assert not os.listdir(tmp_path)


def test_a_suspended_worker_gives_up_the_shard_that_another_took(tmp_path):
    def act(number):
        if number == 0:
            file(tmp_path / f".{SHARDS[0]}.lease-2")
            threading.Timer(0.1, (tmp_path / f".{SHARDS[0]}.lease-2").unlink).start()

    model = Recording(act)
    list(share(tmp_path, model))
    assert model.first_seeds == [3, 7, 10, 11, 3, 6] or sorted(model.first_seeds) == [3, *BATCHES]
    assert contents(tmp_path) == reference()


def test_the_first_writer_of_a_shard_counts(tmp_path):
    def act(number):
        if number == 1:  # another was faster, and has rounded differently
            (tmp_path / SHARDS[0]).write_bytes(b"of another")

    steps = share(tmp_path, Recording(act))
    assert next(steps).done + 4 == next(steps).done
    assert (tmp_path / SHARDS[0]).read_bytes() == b"of another"
    list(steps)  # the end finds it damaged
    assert contents(tmp_path) == reference()


# --- interrupts and damage ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("batch", range(5))
def test_an_interrupt_or_error_gives_the_shard_back(tmp_path, batch, error):
    def act(number):
        if number == batch:
            raise error

    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        list(share(tmp_path, Recording(act)))
    assert set(contents(tmp_path)) == {"manifest.json", *SHARDS[: (batch + batch // 4) // 2]}
    list(share(tmp_path))
    assert contents(tmp_path) == reference()


@pytest.mark.parametrize("name", ["fsync", "link", "open", "replace"])
def test_whichever_write_fails_nothing_is_lost(tmp_path, monkeypatch, name):
    """The disk is full at the k-th call, for every k that a run comes to."""
    real, failed = getattr(os, name), 0
    for k in itertools.count():
        root, calls = tmp_path / str(k), []

        def full(*args, k=k, calls=calls, root=root, **kwargs):
            if name != "open" or ".lease-" in str(args[0]):
                calls.append(args)
                if len(calls) == k + 1:
                    raise OSError(errno.ENOSPC, "No space left on device", str(args[0]))
            return real(*args, **kwargs)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, name, full)
                list(share(root))
        except OSError as error:
            failed += "No space left on device" in str(error)
        if len(calls) <= k:
            break
        assert not list(root.glob(".*"))
        list(share(root))
        assert contents(root) == reference()
    # A link that fails is a rename instead.
    assert failed == {"fsync": 5, "link": 0, "open": 4, "replace": 1}[name]


def complete(folder):
    """Write all shards, and list none."""
    write(folder)
    manifest = shards.read_manifest(folder)
    for entry in manifest["shards"]:
        entry["sha256"] = None
    shards.write_manifest(folder, manifest)


def test_a_worker_that_is_stopped_at_the_end_leaves_the_rest_to_read(tmp_path, monkeypatch):
    complete(tmp_path)
    monkeypatch.setattr(shards, "_LISTING", -1.0)
    real, read = shards.sha256, []

    def stop(path):
        read.append(path.name)
        if len(read) == 3:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(shards, "sha256", stop)
    with pytest.raises(KeyboardInterrupt):
        list(share(tmp_path))
    assert read == SHARDS and not leases.has_leases(tmp_path)
    assert [step.done for step in share(tmp_path)] == [10]
    assert read[3:] == SHARDS[2:]
    assert contents(tmp_path) == reference()


def test_a_worker_that_joins_reads_no_listed_shard(tmp_path, monkeypatch):
    list(itertools.islice(write_pairs(Mixture(), TABLE, tmp_path, SPEC, batch=3), 2))
    read = []
    monkeypatch.setattr(shards, "sha256", read.append)
    assert next(share(tmp_path)) == PairsProgress(4, 10, 4)
    assert not read


@pytest.mark.parametrize("successor", ["at work", "gone"])
def test_a_suspended_worker_deletes_and_lists_nothing_that_is_its_successors(
    tmp_path, monkeypatch, successor
):
    complete(tmp_path)
    real = shards._checksum

    def suspended(folder, entry, manifest):
        if entry["first_seed"] == SPEC.seeds[0]:
            file(folder / ".manifest.json.lease-2")
            if successor == "gone":
                leases.discard_leases(folder)
        monkeypatch.setattr(shards, "_checksum", real)
        return None  # damaged at that time

    before, lease = contents(tmp_path), Lease(tmp_path, "manifest.json", 1)
    monkeypatch.setattr(shards, "_checksum", suspended)
    assert not shards.finish_folder(tmp_path, {}, lease)
    lease.release()
    leases.discard_leases(tmp_path)
    assert contents(tmp_path) == before
    list(share(tmp_path))
    assert contents(tmp_path) == reference()


def test_damage_is_made_again_before_the_end_and_after_it(tmp_path):
    steps = share(tmp_path)
    assert [next(steps).done for _ in range(3)] == [0, 4, 8]
    os.truncate(tmp_path / SHARDS[0], 300)
    list(steps)
    assert contents(tmp_path) == reference()
    flip(tmp_path / SHARDS[1], 200)
    list(share(tmp_path))
    assert contents(tmp_path) == reference()
    (tmp_path / SHARDS[2]).unlink()
    assert [step.done for step in share(tmp_path)] == [8, 10]
    assert contents(tmp_path) == reference()


@pytest.mark.parametrize("finish", [write, lambda folder: list(share(folder))])
@pytest.mark.filterwarnings("ignore:.*not renewed")
def test_what_killed_workers_left_is_swept_up(tmp_path, finish):
    next(share(tmp_path))
    for name in (f".{SHARDS[0]}.x.tmp", ".manifest.json.y.tmp", f".{SHARDS[2]}.lease-1", ".mine"):
        file(tmp_path / name)
    finish(tmp_path)
    assert contents(tmp_path) == {**reference(), ".mine": b"process 1 on elsewhere\n"}


@pytest.mark.slow
def test_random_kills(tmp_path):
    """1,000 kills: ``python -m support.killed_workers``; under load no worker may count as dead that is only slow."""
    command = [
        sys.executable,
        "-m",
        "support.killed_workers",
        "--kills",
        "12",
        "--shards",
        "60",
        "--expiry",
        "3",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 others made twice" in done.stdout
