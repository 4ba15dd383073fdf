"""Files that must be refused without running anything, and files that must be read to the number."""

from __future__ import annotations

import collections
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gas.unpickle.loading
from gas.errors import explained
from gas.unpickle.allowed import Persistent
from gas.unpickle.loading import read_pickle, state_dict_of
from support.covering import thinned
from support.hostile_pickles import (
    REBUILD,
    STORAGE,
    Reduced,
    call,
    data,
    hostile,
    name,
    saved,
    storage,
    text,
    whole,
)

# ---------------------------------------------------------------- a small assembler of pickles


# ---------------------------------------------------------------- the hostile corpus


CASES = sorted(hostile("touch mark"))


@pytest.mark.parametrize("case", CASES)
def test_hostile_files_are_refused_and_run_nothing(case: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content, word = hostile(f"touch {mark}")[case]
    file = tmp_path / "weights.pkl"
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_pickle(file)
    answer = str(caught.value)
    assert not mark.exists()
    assert "\n" not in answer
    assert answer.startswith(f"{file}: refused ")
    assert word in answer
    assert "safetensors" in answer


def test_the_corpus_bites(tmp_path: Path) -> None:
    """An ordinary reader runs these files; without that the test above would prove nothing."""
    mark = tmp_path / "mark"
    content, _ = hostile(f"touch {mark}")["os.system, protocol 2"]
    subprocess.run(
        [sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"], input=content, check=True
    )
    assert mark.exists()


# ---------------------------------------------------------------- damage

GOOD = pickle.dumps({"a": torch.arange(6.0), "b": [1, "two", 3.5]}, protocol=4)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"\x80\x63.",
        b"<html>not here</html>",
        b"\xff\xff\xff",
        b"PK\x03\x04 and no more",
        b"N",
        b"h\x05.",
        whole(b"\x8e" + (1 << 62).to_bytes(8, "little")),
        *(whole(code) for code in (b"R", b"b", b"0", b"]K\x01s")),
        whole(call(name("builtins", "int"), text("x"))),
        saved([1], zipped=True)[:-30],
        saved([1], zipped=False)[:-9],
    ],
)
def test_damaged_files_give_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "weights.pkl"
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_pickle(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("protocol", thinned(range(6), 3))
def test_a_file_cut_anywhere_is_an_error(protocol: int, tmp_path: Path) -> None:
    whole_file = pickle.dumps({"a": torch.arange(2.0), "b": [1, "two", 3.5]}, protocol)
    file = tmp_path / "weights.pkl"
    for length in range(0, len(whole_file), 7):
        file.write_bytes(whole_file[:length])
        with pytest.raises(ValueError, match=r"cut short|refused"):
            read_pickle(file)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "denied"), MemoryError(), torch.OutOfMemoryError("full")]
)
def test_an_error_of_the_machine_is_no_damage(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "a.pkl").write_bytes(pickle.dumps([1], 2))
    monkeypatch.setattr(gas.unpickle.loading, "read_open", fail)
    for read in (lambda: read_pickle(tmp_path / "a.pkl"), lambda: foreign(fail)):
        with pytest.raises(type(error)) as raised:
            read()
        assert raised.value is error


def foreign(fail: Callable[[], None]) -> None:
    with explained("model folder is damaged", foreign=True):
        fail()


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "none.pkl")


@pytest.mark.parametrize(
    ("offset", "size", "stride"), [(0, 9, 1), (3, 2, 1), (0, 2, 9), (-1, 1, 1), (0, 1 << 40, 1)]
)
def test_a_tensor_beyond_its_storage_is_an_error(offset: int, size: int, stride: int, tmp_path: Path) -> None:
    """No memory of the process may be read through a file's sizes."""
    numbers = [f"I{n}\n".encode() for n in (offset, size, stride)]
    view = call(
        REBUILD,
        call(STORAGE, data(storage(torch.ones(4)))),
        numbers[0],
        numbers[1] + b"\x85",
        numbers[2] + b"\x85",
    )
    file = tmp_path / "weights.pkl"
    file.write_bytes(whole(view))
    with pytest.raises(ValueError, match=r"damaged|refused a tensor"):
        read_pickle(file)


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("protocol", range(2, 5))
def test_plain_data_is_read_to_the_number(protocol: int, tmp_path: Path) -> None:
    value = {
        "tensor": torch.arange(6.0).reshape(2, 3).T,
        "parameter": nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "empty": torch.empty(0, 3),
        "long": torch.tensor([1 << 40]),
        "array": np.arange(4, dtype=">f4").reshape(2, 2),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "plain": [
            1,
            1 << 80,
            2.5,
            None,
            True,
            "é",
            b"a\xff",
            b"",
            {1, 2},
        ],
        "scalar": np.float32(2.5),
        "ordered": collections.OrderedDict(b=1, a=2),
        "default": collections.defaultdict(list, {1: [2]}),
        "torch": [torch.bfloat16, torch.device("cpu"), torch.Size([1, 2])],
    }
    file = tmp_path / "data.pkl"
    file.write_bytes(pickle.dumps(value, protocol))
    read = read_pickle(file)
    assert list(read) == list(value)
    for key in ("tensor", "parameter", "empty", "long"):
        assert read[key].dtype == value[key].dtype and torch.equal(read[key], value[key].detach())
    for key in ("array", "columns"):
        assert read[key].dtype.newbyteorder("=") == value[key].dtype.newbyteorder("=") and np.array_equal(
            read[key], value[key]
        )
    for key in ("plain", "scalar", "ordered", "default", "torch"):
        assert read[key] == value[key]
    assert type(read["default"]) is type(read["ordered"]) is dict
    assert np.dtype("f4").isnative  # reading a foreign byte order leaves numpy's own types alone


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save(zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / "student.pt"
    file.write_bytes(saved({"step": 3, "ema": {"shadow_params": [torch.ones(2)]}}, zipped))
    read = read_pickle(file)
    assert read["step"] == 3 and torch.equal(read["ema"]["shadow_params"][0], torch.ones(2))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_modules_give_torchs_own_state_dict(protocol: int, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Linear(2, 2, bias=False)))
    network[0].register_buffer("hidden", torch.ones(1), persistent=False)
    file = tmp_path / "network.pkl"
    file.write_bytes(pickle.dumps({"ema": network, "state": network.state_dict()}, protocol))
    read = read_pickle(file)
    assert read["ema"].class_name == "torch.nn.modules.container.Sequential"
    expected = network.state_dict()
    for weights in (state_dict_of(read["ema"]), read["state"]):
        assert list(weights) == list(expected)
        assert all(torch.equal(weights[key], expected[key]) for key in expected)


@pytest.fixture
def persistence(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The modules that a published file names, with the names alone."""

    def _reconstruct_persistent_obj(meta: object) -> None:
        raise AssertionError("the file's own function was called")

    class EasyDict(dict[str, object]):
        pass

    for module, thing in (
        ("torch_utils.persistence", _reconstruct_persistent_obj),
        ("dnnlib.util", EasyDict),
    ):
        parent, fake = types.ModuleType(module.split(".")[0]), types.ModuleType(module)
        thing.__module__, thing.__qualname__ = module, thing.__name__
        setattr(fake, thing.__name__, thing)
        monkeypatch.setitem(sys.modules, parent.__name__, parent)
        monkeypatch.setitem(sys.modules, module, fake)
    return sys.modules["torch_utils.persistence"]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_the_published_layout_of_edm(protocol: int, persistence: types.ModuleType, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    easy = sys.modules["dnnlib.util"].EasyDict

    def published(kind: str, **state: object) -> Reduced:
        empty: dict[str, object] = {"_parameters": {}, "_buffers": {}, "_modules": {}}
        meta = {"type": "class", "version": 6, "module_src": f"open({str(mark)!r}, 'w')", "class_name": kind}
        return Reduced(persistence._reconstruct_persistent_obj, ({**meta, "state": empty | state},))

    weight, filters = torch.randn(2, 3, requires_grad=True), torch.randn(4)
    conv = published(
        "Conv2d", _parameters={"weight": nn.Parameter(weight), "bias": None}, _buffers={"f": filters}
    )
    kwargs = easy(img_resolution=32, label_dim=0)
    network = published(
        "EDMPrecond", _modules={"model": conv, "none": None}, _init_kwargs=kwargs, _init_args=(1,)
    )
    file = tmp_path / "edm.pkl"
    file.write_bytes(pickle.dumps({"ema": network}, protocol))
    read = read_pickle(file)["ema"]
    assert isinstance(read, Persistent) and not mark.exists()
    assert (read.class_name, read.init_args, read.init_kwargs) == (
        "EDMPrecond",
        (1,),
        {"img_resolution": 32, "label_dim": 0},
    )
    tensors = state_dict_of(read)
    assert list(tensors) == ["model.weight", "model.f"]
    assert torch.equal(tensors["model.weight"], weight.detach()) and torch.equal(tensors["model.f"], filters)


def test_state_dict_of_refuses_what_is_no_tree_of_modules() -> None:
    empty: dict[str, object] = {"_parameters": {}, "_buffers": {}}
    loop = Persistent("Loop", state={**empty, "_modules": {}})
    loop.state["_modules"]["again"] = loop
    with pytest.raises(ValueError, match=r"submodule 'again' \('Loop'\) occurs twice"):
        state_dict_of(loop)
    with pytest.raises(ValueError, match=r"submodule 'x' is a 'int', not a torch module"):
        state_dict_of(Persistent("Odd", state={**empty, "_modules": {"x": 3}}))
    with pytest.raises(ValueError, match=r"the object is a 'Loss', not a torch module"):
        state_dict_of(Persistent("Loss", state={"gamma": 1.0}))
