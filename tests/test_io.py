"""Foreign files: what is read, under which budget, and that damage never passes for content."""

import json
import os
import random
import signal
import socket
import threading
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import gas
from gas import io
from gas.checkpoint import read_checkpoint, write_checkpoint
from gas.display import brief
from gas.metrics.frechet import feature_statistics
from gas.metrics.statistics import read_statistics, save_statistics
from gas.pairs.shards import manifest_of, read_manifest, write_manifest
from gas.paper.edm import Weights, read_weights, write_weights
from gas.schedule import EDMasVP
from gas.zoo import weights_file
from support.doubles import Mixture


def refusal(read, *args):
    """Return the one line of a refusal."""
    with pytest.raises(ValueError) as caught:
        read(*args)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 300, line
    return line


@pytest.fixture
def solver_file(tmp_path):
    model = Mixture(EDMasVP(1e-3))
    manifest_content = {
        "teacher": {"solver": "unipc-3-bh2", "nfe": 40},
        "training": {"rates": [1.0, 2e-3], "seeds": [0, 1]},
    }
    gas.save(
        tmp_path / "s.json",
        [gas.GeneralizedSolver(model.schedule, n, 1e-3) for n in (1, 3)],
        model=model,
        **manifest_content,
    )
    return tmp_path / "s.json"


# --- checksums ------------------------------------------------------------------------------------------


def damaged(data, seed, digits):
    """Yield the bytes with one bit flipped 700 times, then with one digit changed 100 times."""
    chance = random.Random(seed)
    for _ in range(700):
        changed = bytearray(data)
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        yield bytes(changed)
    places = [i for i in digits if chr(data[i]).isdigit()]
    for _ in range(100):
        changed, place = bytearray(data), chance.choice(places)
        changed[place] = ord(chance.choice([d for d in "0123456789" if d != chr(data[place])]))
        yield bytes(changed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*has no checksum")  # where the word itself was hit
def test_no_damaged_solver_file_passes_for_another(solver_file):
    data, whole, passed = solver_file.read_bytes(), gas.load(solver_file).document, 0
    for changed in damaged(data, 0, range(len(data))):
        solver_file.write_bytes(changed)
        try:
            assert gas.load(solver_file).document == whole
            passed += 1
        except ValueError:
            continue
    assert passed < 35  # spaces, and the word "checksum"


def reformatted(value):
    """Write numbers as JavaScript does: whole ones without a point."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: reformatted(part) for name, part in reversed(value.items())}
    return [reformatted(part) for part in value] if isinstance(value, list) else value


def test_a_reformatted_file_passes_and_an_edited_one_does_not(solver_file):
    content, whole = json.loads(solver_file.read_text()), gas.load(solver_file).document
    for text in (json.dumps(reformatted(content), indent=4), json.dumps(content, separators=(",", ":"))):
        solver_file.write_text(text)
        assert gas.load(solver_file).document == whole
    content["guidance"] = 1.5
    solver_file.write_text(json.dumps(content))
    assert refusal(gas.load, solver_file).endswith("is intended")
    content.pop("checksum")
    solver_file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="has no checksum"):
        assert gas.load(solver_file).document.guidance == 1.5


@pytest.mark.parametrize(
    "number", [0.0, -0.0, 1.0, 1e22, 1e300, -3.0, 5e-324, 0.1, 2.0**53, 2**63 - 1, 1, True, None]
)
def test_a_checksum_is_of_values_not_of_their_spelling(number):
    whole = io.add_checksum({"x": [number, {"y": number}]})
    assert io.verify_checksum(json.loads(json.dumps(reformatted(whole))), "it") == {
        "x": [number, {"y": number}]
    }
    assert io.add_checksum(whole) == whole
    for other in (0.5375, "1", False, 2, []):
        if other != number:
            assert "checksum" in refusal(io.verify_checksum, {**whole, "x": [number, {"y": other}]}, "it")


@pytest.mark.parametrize(
    "number", [10**19, 10**20, 10**23, 2**64 + 1, -(10**40), 10**300 + 1], ids=lambda n: f"{n:.0e}"
)
def test_a_file_with_long_whole_numbers_is_not_called_damaged(number, tmp_path):
    solver = gas.GeneralizedSolver(EDMasVP(1e-3), 2, 1e-3)
    gas.save(tmp_path / "s.json", solver, training={"x": number})
    assert gas.load(tmp_path / "s.json").document.training["x"] == pytest.approx(number)


def test_what_no_reader_takes_is_not_sealed():
    deep = []
    for _ in range(40):
        deep = [deep]
    for content in ({"x": deep}, {"x": 10**1001}, {1: 0, "1": 0}):
        refusal(io.add_checksum, content)


def test_a_mark_that_an_editor_put_before_the_text_is_no_matter(solver_file):
    whole = gas.load(solver_file).document
    solver_file.write_bytes(b"\xef\xbb\xbf" + solver_file.read_bytes())
    assert gas.load(solver_file).document == whole


@pytest.mark.parametrize(
    "name", ["sha256", "modelspec.hash_sha256", "checksums", "model_checksum", "sshs_hash"]
)
def test_a_foreign_file_may_have_checksums_of_another_kind(name, tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors", {name: f"sha256:{'0' * 64}"})
    assert io.read_safetensors(tmp_path / "x.safetensors")[1] == {name: f"sha256:{'0' * 64}"}


# --- JSON -----------------------------------------------------------------------------------------------

HOSTILE_JSON = {
    "deep": (b"[" * 1_000_000, "levels deep"),
    "deep and closed": (b"[" * 100_000 + b"]" * 100_000, "levels deep"),
    "deep objects": (b'{"a":' * 100_000, "levels deep"),
    "deep behind a string of brackets": (b'["]]]]]]]]",' + b"[" * 50, "levels deep"),
    "many values": (b"[" + b"0," * 3_000_000 + b"0]", "more than 2,000,000 values"),
    "many objects": (b"[" + b"{}," * 3_000_000 + b"{}]", "more than 2,000,000 values"),
    "large": (b"[" + b" " * (24 << 20) + b"]", "bytes, more than"),
    "one name twice": (b'{"a": 1, "b": 2, "a": 3}', "the name 'a' occurs twice"),
    "one long name twice": (b'{"%b": 1, "%b": 2}' % (b"a" * 9999, b"a" * 9999), "occurs twice"),
    "a name twice within": (b'[{"x": {"a": 1, "a": 1}}]', "the name 'a' occurs twice"),
    "NaN": (b"[NaN]", "NaN is not a number"),
    "minus infinity": (b'{"a": -Infinity}', "-Infinity is not a number"),
    "larger than a double": (b"[1e999]", "not a finite number"),
    "very long whole number": (b"[" + b"9" * 1_000_000 + b"]", "not a finite number"),
    "very long fraction": (b"[0." + b"1" * 1_000_000 + b"]", "not a finite number"),
    "open string of quotes": (b'"' + b'\\"' * 1_000_000, "Unterminated string"),
    "open string that ends in a backslash": (b'"' + b'\\"' * 1_000_000 + b"\\", "Unterminated string"),
    "other bytes": (bytes(range(256)), "not UTF-8"),
    "UTF-16": ("[1]".encode("utf-16"), "not UTF-8"),
    "empty": (b"", "Expecting value"),
}


@pytest.mark.parametrize("case", HOSTILE_JSON)
def test_hostile_json_is_refused(case, tmp_path):
    data, message = HOSTILE_JSON[case]
    (tmp_path / "f.json").write_bytes(data)
    assert message in refusal(io.read_json, tmp_path / "f.json")
    assert str(tmp_path / "f.json") in refusal(gas.load, tmp_path / "f.json")


# --- what is no file ------------------------------------------------------------------------------------


def test_only_regular_files_are_opened_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    for name, damage in {
        "pipe": "named pipe",
        "folder": "folder",
        "link": "named pipe",
        "socket": "socket",
    }.items():
        assert f"is a {damage}, not a file" in refusal(io.read_bytes, tmp_path / name, 100)
        assert f"is a {damage}, not a file" in refusal(gas.load, tmp_path / name)
    assert "is a device, not a file" in refusal(io.read_bytes, "/dev/zero", 100)
    listening.close()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("/proc/self/status")  # which says that it has no bytes
    assert "more than the 10 bytes" in refusal(io.read_bytes, tmp_path / "link", 10)


def test_what_a_message_shows_of_a_value_is_short_however_it_is_nested():
    nested, shared = [], ()
    for _ in range(100):
        nested, shared = [nested, nested], (shared, shared)
    for value in (
        nested,
        shared,
        {1: nested},
        "x" * 10**6,
        10**5000,
        torch.zeros(10**6),
        {"a" * 999: 1},
        b"\0" * 10**6,
    ):
        assert len(brief(value)) <= 80


# --- statistics -----------------------------------------------------------------------------------------


@pytest.fixture
def statistics():
    features = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return feature_statistics(features)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "npz"])
@pytest.mark.filterwarnings("ignore:.*has no checksum")
def test_no_damaged_statistics_pass_for_others(kind, statistics, tmp_path):
    description = {"features": "inception", "weights_sha256": "0123456789abcdef" * 4}
    path = save_statistics(tmp_path / f"s.{kind}", statistics, description)
    data, passed, whole = path.read_bytes(), 0, read_statistics(path, description)
    for changed in damaged(data, 1, range(len(data))):
        path.write_bytes(changed)
        try:
            read_back = read_statistics(path, description)
        except ValueError:
            continue
        assert torch.equal(read_back.mean, whole.mean) and torch.equal(read_back.cov, whole.cov)
        assert read_back.count == whole.count
        passed += 1
    assert passed < 800 / 3  # of a zip archive, in fields that nobody reads


def test_one_digit_of_the_text_in_statistics(statistics, tmp_path):
    path = save_statistics(tmp_path / "s.safetensors", statistics, {"weights_sha256": "12345"})
    path.write_bytes(path.read_bytes().replace(b"12345", b"12346"))
    assert "checksum" in refusal(read_statistics, path)


def test_statistics_without_a_checksum_are_read_with_a_warning_where_they_are_ours(statistics, tmp_path):
    tensors = {"mean": statistics.mean, "cov": statistics.cov, "count": torch.tensor(20)}
    arrays = {"mu": statistics.mean.numpy(), "sigma": statistics.cov.numpy()}
    save_file(tensors, tmp_path / "ours.safetensors")
    np.savez(tmp_path / "ours.npz", **arrays, count=20)
    for name in ("ours.safetensors", "ours.npz"):
        with pytest.warns(UserWarning, match="has no checksum"):
            assert torch.equal(read_statistics(tmp_path / name).mean, statistics.mean)
    np.savez(tmp_path / "published.npz", **arrays)
    assert read_statistics(tmp_path / "published.npz").count == 2


# --- every other file that is written -------------------------------------------------------------------


def written(kind, path):
    """Write a small file of a kind; return what reads it."""
    tensors = {"network.a": torch.arange(4.0)}
    if kind == "checkpoint":
        write_checkpoint(path, {"step": 3, "rates": [0.25, 0.5], "weights": torch.arange(4.0)})
        return read_checkpoint
    if kind == "zoo":
        weights_file.write_weights(path, tensors, {"name": "x", "accuracy": 0.25})
        return weights_file.read_weights
    if kind == "network":
        weights = Weights(
            kind="EDMPrecond",
            init={"img_resolution": 8},
            tensors=tensors,
            source="none",
            card={"source": "edm-0123.pkl"},
        )
        write_weights(weights, path)
        return read_weights
    write_manifest(path.parent, manifest_of(RECIPE_OF_FOUR, ["0" * 64]))
    return lambda _: read_manifest(path.parent)


RECIPE_OF_FOUR = {
    "model": {"name": "x"}, "schedule": {}, "shape": [2], "table": "x", "teacher": {"nfe": 40}, "guidance": 1.5,
    "classes": 0, "seeds": [0, 4], "shard": 4, "batch": 4,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["checkpoint", "zoo", "network", "manifest"])
@pytest.mark.filterwarnings("ignore:.*has no checksum")
def test_no_file_that_is_written_is_read_with_another_digit(kind, tmp_path):
    path = tmp_path / ("manifest.json" if kind == "manifest" else f"{kind}.safetensors")
    read = written(kind, path)
    data, whole = path.read_bytes(), str(read(path))
    for changed in list(damaged(data, 2, range(len(data))))[::8]:
        path.write_bytes(changed)
        try:
            assert str(read(path)) == whole
        except ValueError:
            continue


def test_a_listed_file_of_the_zoo_is_held_against_the_list(tmp_path):
    source = Path(gas.zoo.__file__).parent / "weights" / "digits.safetensors"
    (tmp_path / "digits.safetensors").write_bytes(source.read_bytes())
    with pytest.warns(UserWarning, match="has no checksum"):
        gas.zoo.load(tmp_path / "digits.safetensors")
    (tmp_path / "SHA256SUMS").write_text((source.parent / "SHA256SUMS").read_text())
    assert gas.zoo.load(tmp_path / "digits.safetensors").name == "digits"
    data = bytearray(source.read_bytes())
    data[-1] ^= 1
    (tmp_path / "digits.safetensors").write_bytes(data)
    assert "SHA256SUMS" in refusal(gas.zoo.load, tmp_path / "digits.safetensors")


def test_complex_tensors_are_refused(tmp_path):
    save_file({"mean": torch.ones(2, dtype=torch.complex64)}, tmp_path / "x.safetensors")
    with pytest.raises(gas.UserError, match=r"'mean' .*not a tensor of a known type"):
        io.read_safetensors(tmp_path / "x.safetensors")


def test_a_file_that_becomes_a_pipe_as_it_is_opened_is_refused_without_waiting(tmp_path, monkeypatch):
    path, regular = tmp_path / "x.json", os.stat(__file__)
    os.mkfifo(path)
    monkeypatch.setattr("gas.io.os.stat", lambda *args, **more: regular)
    monkeypatch.setattr("gas.io.os.path.exists", lambda path: True)
    with pytest.raises(ValueError, match="is a named pipe, not a file"):
        io.open_regular(path)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("<U0", (10**15,)), ("<f8", (10**9, 10**3)), ("|V0", (10**15,))]
)
def test_an_array_that_claims_more_than_its_bytes_is_refused_before_it_is_made(tmp_path, dtype, shape):
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
        for name in ("mu", "sigma"):
            archive.writestr(f"{name}.npy", header.getvalue())
    assert "s.npz" in refusal(read_statistics, tmp_path / "s.npz")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_within_a_reader_waits_until_it_is_done(tmp_path, number):
    """A signal that arrives while a tensor is read, as torch's reader would swallow it, still ends what reads it."""

    def interrupted(stopped, frame):
        raise KeyboardInterrupt(stopped)

    save_file({"x": torch.arange(3.0)}, tmp_path / "x.safetensors")
    read = []

    def reading():
        with io.open_safetensors(tmp_path / "x.safetensors") as file:
            signal.raise_signal(number)
            read.append(file.get_tensor("x"))

    before = signal.signal(number, interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            reading()
        assert signal.getsignal(number) is interrupted
    finally:
        signal.signal(number, before)
    assert torch.equal(read[0], torch.arange(3.0))


def test_an_ignored_interrupt_stays_ignored_and_other_threads_read_as_ever(tmp_path):
    save_file({"x": torch.arange(3.0)}, tmp_path / "x.safetensors")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with io.deferred_interrupts():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    read = []
    thread = threading.Thread(
        target=lambda: read.append(io.read_safetensors(tmp_path / "x.safetensors")[0]["x"])
    )
    thread.start()
    thread.join()
    assert torch.equal(read[0], torch.arange(3.0))
