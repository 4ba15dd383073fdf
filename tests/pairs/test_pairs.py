"""Teacher pairs: the bytes follow from the settings, whatever kills the writer; damage is refused by name."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file

import gas
from gas.classical.registry import Classical
from gas.io import add_checksum, sha256
from gas.models.seeds import noise_of_seeds
from gas.pairs.dataset import Pairs, join_pairs, read_pairs
from gas.pairs.fingerprint import PairsSpec
from gas.pairs.shards import check_shard, read_manifest
from gas.pairs.teacher import PairsProgress, teach, write_pairs
from gas.sampling import sample
from gas.schedule import VPLinear
from gas.table import Table
from support.doubles import Mixture, guided_mixture
from support.forks import fork

SPEC = PairsSpec(range(3, 13), {"solver": "ddim", "nfe": 4}, shard=4)
SHARDS = [f"shard-0000{i}.safetensors" for i in range(3)]
MODEL = Mixture()


def ddim(nfe=4):
    t = torch.linspace(1, 1e-3, nfe + 1, dtype=torch.float64)
    alpha, sigma = MODEL.schedule(t)
    ratio = sigma[1:] / sigma[:-1]
    return Table(t[:-1], torch.diag(ratio), torch.diag(alpha[1:] - ratio * alpha[:-1]))


TABLE = ddim()


def write(folder, *, model=MODEL, table=TABLE, spec=SPEC, batch=3):
    return list(write_pairs(model, table, folder, spec, batch=batch))


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@functools.cache
def reference():
    """The files of an uninterrupted run."""
    with tempfile.TemporaryDirectory() as folder:
        write(folder)
        return contents(folder)


@pytest.fixture
def folder(tmp_path):
    """A finished folder."""
    root = tmp_path / "pairs"
    root.mkdir()
    for name, data in reference().items():
        (root / name).write_bytes(data)
    return root


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def edit(folder, change):
    """Change the manifest by hand, with its own checksum made right again."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    canonical = json.dumps(manifest["recipe"], sort_keys=True).encode()
    manifest["recipe_sha256"] = hashlib.sha256(canonical).hexdigest()
    path.write_text(json.dumps(add_checksum(manifest), indent=1) + "\n")


def forge(folder, change):
    """Change the tensors of the second shard by hand, with a checksum that the manifest believes."""
    path = folder / SHARDS[1]
    tensors = load_file(path)
    change(tensors)
    mark = json.loads((folder / "manifest.json").read_text())["recipe_sha256"]
    save_file(tensors, path, {"recipe": mark})
    edit(folder, lambda manifest: manifest["shards"][1].update(sha256=sha256(path)))


def test_answers_in_another_memory_layout_are_the_same_bytes(tmp_path):
    """A network may answer in channels-last, whose strides no file holds."""

    class Images(Mixture):
        layout = torch.contiguous_format

        def bind(self, labels, guidance=1.0):
            return lambda x, t: (x / 2).contiguous(memory_format=self.layout)

    class ChannelsLast(Images):
        layout = torch.channels_last

    # The answers' layout goes through.
    plain = Table(TABLE.times, torch.zeros_like(TABLE.states), TABLE.outputs)
    write(tmp_path / "plain", table=plain, model=Images(sample_shape=(2, 3, 3)))
    write(tmp_path / "last", table=plain, model=ChannelsLast(sample_shape=(2, 3, 3)))
    assert contents(tmp_path / "last") == contents(tmp_path / "plain")


# --- what the pairs are ---------------------------------------------------------------------------------


def test_a_pair_is_the_noise_of_its_seed_and_where_the_teacher_takes_it(folder):
    pairs = read_pairs(folder, model=MODEL)
    assert pairs.seeds.tolist() == list(SPEC.seeds)
    assert len(pairs) == 10
    assert pairs.labels.tolist() == [seed % 5 for seed in SPEC.seeds]
    for i, seed in enumerate(SPEC.seeds):
        assert torch.equal(pairs.noise[i : i + 1], noise_of_seeds((2,), [seed]))
        alone = sample(MODEL.bind(pairs.labels[i : i + 1]), pairs.noise[i : i + 1], TABLE)
        torch.testing.assert_close(pairs.target[i : i + 1], alone, rtol=0, atol=1e-6)
    assert pairs.target.dtype == pairs.noise.dtype == torch.float32
    assert pairs.manifest["recipe"]["teacher"] == SPEC.teacher


@pytest.mark.parametrize(("shard", "batch"), [(1, 1), (4, 64), (10, 3), (256, 7)])
def test_noise_and_targets_depend_neither_on_shards_nor_on_batches(tmp_path, folder, shard, batch):
    write(tmp_path / "other", spec=dataclasses.replace(SPEC, shard=shard), batch=batch)
    ours, theirs = read_pairs(folder), read_pairs(tmp_path / "other")
    for name in ("seeds", "noise", "labels"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    torch.testing.assert_close(ours.target, theirs.target, rtol=0, atol=1e-6)


def test_a_window_of_seeds_is_a_window_of_the_pairs(tmp_path, folder):
    write(tmp_path / "part", spec=dataclasses.replace(SPEC, seeds=range(7, 11)))
    part, whole = read_pairs(tmp_path / "part"), read_pairs(folder).subset(slice(4, 8))
    assert torch.equal(part.noise, whole.noise)
    assert torch.equal(part.labels, whole.labels)
    torch.testing.assert_close(part.target, whole.target, rtol=0, atol=1e-6)


def test_only_pairs_of_one_teacher_and_of_different_seeds_are_joined():
    model = gas.zoo.load("digits")
    table = Classical("ddim", "time_uniform", 2, model.t_end)
    parts = [teach(model, table, range(2), guidance=scale) for scale in (1.0, 5.0)]
    with pytest.raises(ValueError, match=r"^join_pairs needs pairs of one teacher and model \(guidance: 1.0"):
        join_pairs(parts)
    with pytest.raises(ValueError, match="some seeds twice"):
        join_pairs([parts[0], parts[0]])
    joined = join_pairs([parts[0], teach(model, table, range(2, 4))])
    assert joined.seeds.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"^seeds must be at least one, got none$"):
        teach(model, table, [])
    with pytest.raises(ValueError, match=r"^seeds must be at least two, whose samples are compared, got 1$"):
        gas.check_model(model, [0])


def test_sets_with_and_without_labels_or_of_several_scales_are_not_joined():
    parts = [
        Pairs(torch.arange(2), torch.zeros(2, 3), torch.zeros(2, 3), labels)
        for labels in (None, torch.zeros(2, dtype=torch.int64))
    ]
    with pytest.raises(ValueError, match="all of them with labels or none"):
        join_pairs(parts)
    scaled = dataclasses.replace(parts[0], scales=torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="one guidance scale each"):
        join_pairs([parts[0], scaled])


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        (MODEL, dataclasses.replace(SPEC, labelled=False)),
        (dataclasses.replace(MODEL, name="other"), dataclasses.replace(SPEC, labelled=False)),
    ],
)
def test_without_labels_the_unconditional_model_teaches(tmp_path, model, spec):
    write(tmp_path, model=model, spec=spec)
    pairs = read_pairs(tmp_path, model=model)
    assert pairs.labels is None
    assert pairs.subset(slice(0, 2)).labels is None
    expected = sample(model.denoise, pairs.noise, TABLE)
    torch.testing.assert_close(pairs.target, expected, rtol=0, atol=1e-6)


def test_the_caller_keeps_its_random_state_and_its_gradients(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    steps = write_pairs(MODEL, TABLE, tmp_path, SPEC)
    next(steps)
    assert torch.is_grad_enabled()
    list(steps)
    read_pairs(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_teaching_spends_no_memory_on_gradients(tmp_path):
    class Watched(Mixture):
        def bind(self, labels, guidance=1.0):
            def denoise(x, t):
                modes.append(torch.is_grad_enabled() or t.requires_grad or x.requires_grad)
                return super(Watched, self).bind(labels)(x, t)

            return denoise

    modes: list[bool] = []
    learned = Table(*(x.clone().requires_grad_() for x in (TABLE.times, TABLE.states, TABLE.outputs)))
    write(tmp_path, model=Watched(), table=learned)
    assert len(modes) == 5 * 4
    assert not any(modes)
    assert contents(tmp_path) == reference()


def test_pairs_of_several_guidance_scales_are_those_of_each():
    model = guided_mixture()
    teacher = Classical("ddim", "log_snr", 4, model.t_end)
    parts = [gas.pairs.teach(model, teacher, range(5), guidance=scale) for scale in (3.0, 1.0)]
    joint = gas.pairs.join_scales(parts)
    assert joint.scales.tolist() == [1.0] * 5 + [3.0] * 5
    for part, expected in zip(joint.by_scale(), reversed(parts), strict=True):
        assert part.guidance == expected.guidance and part.teacher == expected.teacher
        assert torch.equal(part.target, expected.target) and torch.equal(part.labels, expected.labels)
    mixed = joint.subset(torch.tensor([7, 2, 5]))
    assert [(part.guidance, part.seeds.tolist()) for part in mixed.by_scale()] == [(1.0, [2]), (3.0, [2, 0])]
    assert parts[0].by_scale() == [parts[0]]
    with pytest.raises(
        gas.UserError, match=r"pairs have the guidance scales 1, 3: take one, by_scale\(\)\[0\]"
    ):
        _ = joint.guidance
    with pytest.raises(gas.UserError, match=r"one guidance scale each, got those of 3, 3"):
        gas.pairs.join_scales([parts[0], parts[0]])


def test_subset_and_split(folder):
    pairs = read_pairs(folder)
    train, validation = pairs.split(3)
    assert train.seeds.tolist() == list(range(3, 10))
    assert validation.seeds.tolist() == [10, 11, 12]
    picked = pairs.subset(torch.tensor([5, 0]))
    assert picked.seeds.tolist() == [8, 3]
    assert torch.equal(picked.target, pairs.target[[5, 0]])
    assert pairs.subset(pairs.labels == 2).labels.tolist() == [2, 2]
    assert len(pairs.split(0)[1]) == 0
    for bad in (-1, 10):
        with pytest.raises(ValueError, match=f"validation must be .* 10 pairs, got {bad}"):
            pairs.split(bad)


# --- the same bytes, whatever kills the writer ----------------------------------------------------------


def test_the_bytes_follow_from_the_settings(tmp_path):
    write(tmp_path)
    assert contents(tmp_path) == reference()
    assert sorted(reference()) == ["manifest.json", *SHARDS]


@pytest.mark.parametrize("kills", [[1], [2], [3], [1, 1, 1], [2, 1, 2]])
def test_stopped_between_shards_it_continues(tmp_path, kills):
    written = 0
    for steps in kills:
        records = list(itertools.islice(write_pairs(MODEL, TABLE, tmp_path, SPEC, batch=3), steps))
        assert records[0] == PairsProgress(written, 10, written)
        written = records[-1].done
        with pytest.raises(ValueError, match=f"unfinished, {written} of 10 pairs; run `gas pairs` again"):
            read_pairs(tmp_path)
    records = write(tmp_path)
    assert records[0].resumed == written
    assert records[-1] == PairsProgress(10, 10, written)
    assert contents(tmp_path) == reference()


def test_a_resumed_run_keeps_the_batches_of_the_first(tmp_path):
    """Here the rounding of a real network is writ large: the answer depends on the size of its batch."""

    class Rounding(Mixture):
        def bind(self, labels, guidance=1.0):
            return lambda x, t: x * (1 - len(x) / 1000)

    write(tmp_path / "whole", model=Rounding(), batch=3)
    for shards, batch in [(2, 3), (2, 64), (9, 1)]:
        list(itertools.islice(write_pairs(Rounding(), TABLE, tmp_path / "cut", SPEC, batch=batch), shards))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    write(tmp_path / "other", model=Rounding(), batch=64)
    assert not torch.equal(read_pairs(tmp_path / "other").target, read_pairs(tmp_path / "whole").target)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_whichever_write_fails_nothing_half_written_stays_and_it_continues(tmp_path, monkeypatch, name):
    """The disk is full at the k-th fsync or rename, for every k that a run comes to."""
    real, failed = getattr(os, name), 0
    for k in itertools.count():
        root, calls = tmp_path / str(k), []

        def full(*args, k=k, calls=calls):
            calls.append(args)
            if len(calls) == k + 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, name, full)
                write(root)
        except OSError:
            failed += 1
        if len(calls) <= k:
            break
        assert not list(root.glob(".*.tmp"))
        assert all(reference()[path.name] == path.read_bytes() for path in root.glob("shard*"))
        write(root)
        assert contents(root) == reference()
    assert failed == 7  # a manifest, then three shards with a manifest each


def test_a_shard_whole_on_disk_but_not_yet_in_the_manifest_is_made_again(tmp_path, folder):
    list(itertools.islice(write_pairs(MODEL, TABLE, tmp_path / "half", SPEC, batch=3), 2))
    (tmp_path / "half" / SHARDS[1]).write_bytes(b"half a shard")
    records = write(tmp_path / "half")
    assert records[0].resumed == 4
    assert contents(tmp_path / "half") == reference()


def test_what_a_killed_run_left_lying_is_swept_up_and_nothing_else(folder):
    for name in (".shard-00001.safetensors.x1.tmp", ".manifest.json.x2.tmp", "notes.txt", ".mine.tmp"):
        (folder / name).write_text("?")
    write(folder)
    assert contents(folder) == {**reference(), "notes.txt": b"?", ".mine.tmp": b"?"}


def test_a_finished_folder_is_left_alone(folder):
    class Idle(Mixture):
        def bind(self, labels, guidance=1.0):
            raise AssertionError("a finished folder asks nothing of the model")

    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write(folder, model=Idle()) == [PairsProgress(10, 10, 10)]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("harm", [
    lambda path: flip(path, 200), lambda path: path.unlink(), lambda path: os.truncate(path, 300)
])  # fmt: skip
def test_a_damaged_shard_is_made_again_by_the_writer(folder, harm):
    harm(folder / SHARDS[1])
    assert [record.done for record in write(folder)] == [6, 10]
    assert contents(folder) == reference()


TALL = dataclasses.replace(SPEC, seeds=range(500), shard=200)


def _write_or_hang(say, folder, call, hang, limit, spec):
    real, left = getattr(os, call), hang

    def hanging(*args):
        nonlocal left
        left -= 1
        if left == 0:
            say.send("now")
            time.sleep(600)
        return real(*args)

    setattr(os, call, hanging)  # in this process alone
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        list(write_pairs(MODEL, TABLE, folder, spec, batch=3))
    except OSError as error:
        say.send(str(error))
        sys.exit(7)


@contextlib.contextmanager
def writer(folder, *, call="fsync", hang=0, limit=-1, spec=SPEC):
    """A writer in a process of its own, that says "now" and hangs at the given system call."""
    answer, say = multiprocessing.Pipe(duplex=False)
    with say, answer:
        process = fork(_write_or_hang, say, folder, call, hang, limit, spec)
        yield process, answer
        process.join(60)


@pytest.mark.slow
def test_killed_for_real_in_the_middle_of_a_write_it_ends_with_the_same_bytes(tmp_path):
    """SIGKILL before a shard is flushed; then between a shard and the manifest that lists it."""
    for call, hang, left in [("fsync", 3, set()), ("replace", 2, {SHARDS[0]})]:
        with writer(tmp_path, call=call, hang=hang) as (process, answer):
            assert answer.recv() == "now"
            process.kill()
        assert process.exitcode == -signal.SIGKILL
        assert len(list(tmp_path.glob(".*.tmp"))) == 1
        files = {name: data for name, data in contents(tmp_path).items() if name.startswith("shard")}
        assert set(files) == left
        assert files.items() <= reference().items()
        with pytest.raises(ValueError, match="unfinished, 0 of 10 pairs"):
            read_pairs(tmp_path)
    assert write(tmp_path)[-1].done == 10
    assert contents(tmp_path) == reference()


@pytest.mark.slow
def test_a_write_that_the_system_cuts_short_leaves_nothing_half_written(tmp_path):
    """RLIMIT_FSIZE fails the write of a shard half way with EFBIG, as a full disk does with ENOSPC."""
    with writer(tmp_path / "cut", limit=4096, spec=TALL) as (process, answer):
        message = answer.recv()
    assert process.exitcode == 7
    assert "File too large, with 0 of 500 pairs safe: make room" in message
    assert set(contents(tmp_path / "cut")) == {"manifest.json"}
    write(tmp_path / "cut", spec=TALL)
    write(tmp_path / "whole", spec=TALL)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "cut")[SHARDS[0]]) > 4096


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_full_disk_leaves_nothing_half_written_and_room_lets_it_continue(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(48 << 10))  # of 16 pages, 4 left: manifest, its successor, two shards
        with pytest.raises(
            OSError, match=r"No space .* of 10 pairs safe: make room.*(shard-0000|manifest)"
        ) as raised:
            write(disk)
        assert raised.value.errno == errno.ENOSPC
        whole = {name: data for name, data in contents(disk).items() if name.startswith("shard")}
        assert whole.items() <= reference().items()
        assert not list(disk.glob(".*.tmp"))
        with pytest.raises(ValueError, match=r"unfinished, \d of 10 pairs"):
            read_pairs(disk)
        ballast.unlink()
        assert write(disk)[-1].done == 10
        assert contents(disk) == reference()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seeds": range(0)}, r"seeds must be a non-empty range with step 1.*got range\(0, 0\)"),
        ({"seeds": range(0, 9, 2)}, "seeds must be"),
        ({"seeds": range(-1, 3)}, "seeds must be"),
        ({"seeds": [0, 1]}, "seeds must be"),
        ({"shard": 0}, "shard must be from 1 to"),
        ({"guidance": math.inf}, "guidance must lie in"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(change, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(SPEC, **change)


def test_arguments_of_the_writer_are_refused_before_anything_is_written(tmp_path):
    class Loud(Mixture):
        def noise(self, seeds):
            return 2 * super().noise(seeds)

    with pytest.raises(ValueError, match="batch must be from 1 to"):
        write(tmp_path / "new", batch=0)
    with pytest.raises(ValueError, match=r"model.noise\(\[3\]\) must be gas.models.noise_of_seeds"):
        write(tmp_path / "new", model=Loud())
    with pytest.raises(TypeError, match="not JSON serializable"):
        write(tmp_path / "new", spec=dataclasses.replace(SPEC, teacher={"solver": {1}}))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"spec": dataclasses.replace(SPEC, seeds=range(3, 14))},
            r"seeds: \[3, 13\] stored, \[3, 14\] expected",
        ),
        ({"spec": dataclasses.replace(SPEC, guidance=2.0)}, "guidance: 1.0 stored, 2.0 expected"),
        ({"spec": dataclasses.replace(SPEC, shard=5)}, "shard: 4 stored, 5 expected"),
        ({"spec": dataclasses.replace(SPEC, labelled=False)}, "classes: 5 stored, 0 expected"),
        ({"spec": dataclasses.replace(SPEC, teacher={"solver": "heun"})}, "teacher.solver: 'ddim' stored"),
        ({"table": ddim(5)}, "table: '"),
        ({"model": dataclasses.replace(MODEL, name="twin")}, "model.name: 'mixture' stored, 'twin' expected"),
        ({"model": dataclasses.replace(MODEL, schedule=VPLinear(0.2, 20.0))}, "schedule.beta_0: 0.1"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_alone(folder, change, text):
    with pytest.raises(ValueError, match=rf"holds pairs of other settings \({text}.*choose another folder"):
        write(folder, **change)
    assert contents(folder) == reference()


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (dataclasses.replace(MODEL, name="twin"), "model.name: 'mixture' stored, 'twin' expected"),
        (
            dataclasses.replace(MODEL, schedule=VPLinear(0.2, 20.0)),
            "schedule.beta_0: 0.1 stored, 0.2 expected",
        ),
    ],
)
def test_pairs_of_another_model_are_refused(folder, model, text):
    with pytest.raises(ValueError, match=f"made with another model or schedule.*{text}"):
        read_pairs(folder, model=model)


def test_a_folder_without_a_manifest(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"has no manifest.json, so no pairs; make some with `gas"):
        read_pairs(tmp_path / "nowhere")
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"safetensors files but no manifest.json; choose another"):
        write(folder)


def first_byte(data):
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged: its checksum is not the manifest's"),
        (lambda data: data[:-1], "is missing, truncated or damaged"),
        (lambda data: data[:5], "is missing, truncated or damaged"),
        (lambda data: b"", "is missing, truncated or damaged"),
        (lambda data: data + b"\0", "damaged"),
        (first_byte, "damaged"),
        (lambda data: None, "is missing, truncated or damaged"),
    ],
)
@pytest.mark.parametrize("hold", [True, False])
def test_a_damaged_shard_is_named(folder, harm, text, hold):
    path = folder / SHARDS[1]
    data = harm(path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(ValueError, match=f"shard .*{SHARDS[1]} .*{text}.*run `gas pairs` again"):
        read_pairs(folder, hold=hold)


def test_a_foreign_shard_is_named(tmp_path, folder):
    write(tmp_path / "other", spec=dataclasses.replace(SPEC, guidance=2.0))
    shutil.copy(tmp_path / "other" / SHARDS[1], folder / SHARDS[1])
    with pytest.raises(ValueError, match=f"{SHARDS[1]} is foreign, from a folder of other settings"):
        read_pairs(folder)
    # Not even with a manifest that vouches for it.
    edit(folder, lambda manifest: manifest["shards"][1].update(sha256=sha256(folder / SHARDS[1])))
    with pytest.raises(ValueError, match=f"{SHARDS[1]} is foreign"):
        read_pairs(folder)


def test_shards_in_each_others_place_are_refused(folder):
    shutil.copy(folder / SHARDS[0], folder / SHARDS[1])
    with pytest.raises(ValueError, match=f"{SHARDS[1]} is damaged"):
        read_pairs(folder)


@pytest.mark.parametrize("act", [read_pairs, write])
def test_a_shard_that_no_manifest_lists_is_named(folder, act):
    shutil.copy(folder / SHARDS[0], folder / "shard-00003.safetensors")
    with pytest.raises(ValueError, match=r"shard-00003.safetensors is foreign, not in the manifest"):
        act(folder)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: x.update(target=x["target"][:, :1].contiguous()), r"must hold .*\(torch.float32, 4, 2\)"),
        (lambda x: x.update(target=x["target"][:3].contiguous()), "must hold"),
        (lambda x: x.update(target=x["target"].double()), "must hold"),
        (lambda x: x.pop("target"), "must hold"),
        (lambda x: x.pop("labels"), "must hold"),
        (lambda x: x.update(noise=x["target"].clone()), "must hold"),
        (lambda x: x.update(seeds=x["seeds"] + 1), "must hold .* from seed 7 on"),
        (lambda x: x.update(labels=x["labels"] * 0), "must hold .* from seed 7 on"),
        (lambda x: x["target"][2].fill_(math.nan), "not finite for seed 9"),
        (lambda x: x["target"][0, 1].fill_(-math.inf), "not finite for seed 7"),
    ],
)
@pytest.mark.parametrize("hold", [True, False])
def test_a_forged_shard_is_refused(folder, change, text, hold):
    forge(folder, change)
    with pytest.raises(ValueError, match=f"{SHARDS[1]} .*{text}"):
        read_pairs(folder, hold=hold)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.update(version=2), "has version 2, but this gas-solver reads version 1"),
        (lambda m: m.update(colour="red"), "unknown fields .colour: 'red' stored"),
        (lambda m: m.update(colour=None), "unknown fields .colour: None stored"),
        (lambda m: m["recipe"].update(noise="sde"), "unknown fields .recipe.noise: 'sde' stored"),
        (lambda m: m["shards"][0].update(size=3), "damaged or has unknown fields .shards"),
        (lambda m: m["shards"][0].update(file="../secret"), "damaged or has unknown fields .shards"),
        (lambda m: m["shards"].pop(), "is damaged"),
        (lambda m: m["recipe"].pop("batch"), "is damaged .*'batch'"),
        (lambda m: m.pop("version"), "is damaged .*'version'"),
        (lambda m: m["recipe"].update(seeds="3 to 13"), "is damaged"),
        (
            lambda m: m["recipe"].update(stored=["x"]),
            r"is damaged \(stored \['x'\] is no list of noise and labels",
        ),
        (lambda m: m["recipe"].update(stored=None), "is damaged .stored None is no list"),
        (lambda m: m["recipe"].update(stored=[[]]), "is damaged .stored .* is no list"),
        (lambda m: m["recipe"].update(model=0), "is damaged .model must be an object, got 0"),
        (lambda m: m["recipe"].update(model=None), "is damaged .model must be an object, got None"),
        (lambda m: m["recipe"].update(schedule=0), "is damaged .schedule must be an object, got 0"),
        (lambda m: m["recipe"].update(teacher=None), "is damaged .teacher must be an object, got None"),
        (lambda m: m["recipe"].update(conditions=0), "is damaged .conditions must be an object, got 0"),
        (lambda m: m["recipe"].update(conditions={"prompts": [1]}), r"is damaged .prompts \[1\] are no list"),
    ],
)
@pytest.mark.parametrize("act", [read_pairs, write])
def test_a_manifest_of_another_make_is_refused(folder, act, change, text):
    edit(folder, change)
    with pytest.raises(ValueError, match=f"manifest.json .*{text}"):
        act(folder)


@pytest.mark.parametrize("label", [1, -1])
def test_a_label_without_a_prompt_is_refused(folder, label):
    manifest = read_manifest(folder)
    recipe = {**manifest["recipe"], "conditions": {"prompts": ["a"]}, "stored": ["labels"]}
    tensors, entry = load_file(folder / SHARDS[1]), manifest["shards"][1]
    tensors["labels"] = tensors["labels"] * 0
    check_shard("it", tensors, recipe, entry)
    tensors["labels"][2] = label
    with pytest.raises(gas.UserError, match=r"it has labels .* but there are 1 prompts"):
        check_shard("it", tensors, recipe, entry)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"version": 1}'])
def test_a_manifest_that_is_none_is_refused(folder, data):
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"manifest.json is damaged \(.*choose another folder"):
        read_pairs(folder)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            lambda x: x.masked_fill(torch.arange(len(x))[:, None] == 1, math.nan),
            "not finite for seed 4; check",
        ),
        (lambda x: x[:, :1], "the network's prediction must be of the shape of x"),
    ],
)
def test_a_teacher_that_fails_is_refused_and_leaves_no_shard(tmp_path, wrong, text):
    class Broken(Mixture):
        def bind(self, labels, guidance=1.0):
            return lambda x, t: wrong(x) if wrong(x).shape == x.shape else x.new_zeros(len(x), 3, 2)

    with pytest.raises(ValueError, match=text):
        write(tmp_path, model=Broken())
    assert list(contents(tmp_path)) == ["manifest.json"]


SIZES = {name: len(data) for name, data in reference().items()}
OFFSETS = list(zip(SIZES, itertools.accumulate(SIZES.values(), initial=0), strict=False))[::-1]
PLACES = st.integers(0, sum(SIZES.values()) - 1)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=PLACES, bit=st.integers(0, 7))
def test_any_flipped_bit_is_refused_or_harmless(folder, place, bit):
    name, place = next((name, place - at) for name, at in OFFSETS if place >= at)
    clean = read_pairs(folder)
    flip(folder / name, place, bit)
    try:
        pairs, message = read_pairs(folder), ""
    except ValueError as error:
        pairs, message = clean, str(error)
    finally:
        flip(folder / name, place, bit)
    # A digit of a checksum cannot be told from damage to the shard that it is the checksum of.
    blamed = name in message or (name == "manifest.json" and "its checksum is not" in message)
    assert blamed or (name == "manifest.json" and not message)
    assert pairs.manifest == clean.manifest
    assert torch.equal(pairs.target, clean.target)
    assert torch.equal(pairs.noise, clean.noise)
