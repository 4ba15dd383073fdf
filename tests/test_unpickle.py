"""Files that must be refused without running anything, and files that must be read to the number."""

from __future__ import annotations

import collections
import functools
import io
import operator
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gas.unpickle.loading import read_pickle, state_dict_of
from gas.unpickle.plain import Persistent

# ---------------------------------------------------------------- a small assembler of pickles


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def data(value: bytes) -> bytes:
    return b"B" + len(value).to_bytes(4, "little") + value


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def mapping(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def whole(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


STORAGE = name("torch.storage", "_load_from_bytes")
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
PERSISTENT = name("torch_utils.persistence", "_reconstruct_persistent_obj")
CONV = name("torch.nn.modules.conv", "Conv2d")
SYSTEM = name("os", "system")


class Reduced:
    """Pickled as a call of anything with anything."""

    def __init__(self, *reduced: object) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


def saved(value: object, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def storage(tensor: torch.Tensor) -> bytes:
    """What a plain pickle of a tensor holds of its numbers."""
    function, args = tensor._typed_storage().__reduce__()
    assert function.__name__ == "_load_from_bytes"
    return args[0]


# ---------------------------------------------------------------- the hostile corpus


def hostile(touch: str) -> dict[str, tuple[bytes, str]]:
    """Pickles by name, each with a word of the answer; ``touch`` is a shell command that leaves a mark."""
    source = f"__import__('os').system({touch!r})"
    evil = Reduced(os.system, (touch,))
    run = call(SYSTEM, text(touch))
    function = call(name("builtins", "getattr"), name("os", "path"), text("os"))
    partial = functools.partial(os.system, touch)
    corpus = {f"os.system, protocol {p}": (pickle.dumps(evil, p), ".system'") for p in range(6)}
    module = {"_parameters": b"}", "_buffers": b"}", "_modules": mapping(child=run)}
    meta = {"type": text("class"), "class_name": text("D"), "module_src": text(source)}
    dtype = call(name("numpy", "dtype"), text("f4"))
    array = call(
        name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), b"K\x00\x85", data(b"b")
    )
    nested = {
        "os.system by its module": (whole(run), "'os.system'"),
        "posix.system": (whole(call(name("posix", "system"), text(touch))), "'posix.system'"),
        "nt.system": (whole(call(name("nt", "system"), text(touch))), "'nt.system'"),
        "subprocess": (pickle.dumps(Reduced(subprocess.check_call, (["sh", "-c", touch],))), "subprocess"),
        "Popen": (
            pickle.dumps(Reduced(subprocess.Popen, (touch, -1, None, None, None, None, None, True, True))),
            "Popen",
        ),
        "eval": (pickle.dumps(Reduced(eval, (source,))), "'builtins.eval'"),
        "exec": (pickle.dumps(Reduced(exec, (source,))), "'builtins.exec'"),
        "eval as python 2 spells it": (
            whole(call(name("__builtin__", "eval"), text(source))),
            "'builtins.eval'",
        ),
        "getattr": (whole(function), "'builtins.getattr'"),
        "__import__": (whole(call(name("builtins", "__import__"), text("os"))), "'builtins.__import__'"),
        "map": (whole(call(name("builtins", "map"), SYSTEM, text(touch))), "'builtins.map'"),
        "open": (whole(call(name("builtins", "open"), text(touch.split()[1]), text("w"))), "'builtins.open'"),
        "type": (whole(call(name("builtins", "type"), text("T"), b")", b"}")), "'builtins.type'"),
        "compile": (whole(call(name("builtins", "compile"), text(source))), "'builtins.compile'"),
        "a call within a list": (whole(b"](" + run + b"e"), "'os.system'"),
        "a call as argument of a call": (whole(call(name("builtins", "list"), run)), "'os.system'"),
        "a call as a key": (whole(b"}(" + run + b"K\x01u"), "'os.system'"),
        "STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "'os.system'"),
        "STACK_GLOBAL of a dotted name": (
            b"\x80\x04\x8c\x08builtins\x8c\x0blist.append\x93.",
            "'builtins.list.append'",
        ),
        "dotted name through a torch module": (
            b"\x80\x04\x8c\x0ctorch._utils\x8c\x0bsys.modules\x93.",
            "'torch._utils.sys.modules'",
        ),
        "persistent id": (whole(text("sh") + b"Q"), "persistent id"),
        "persistent id, protocol 0": (b"Psh\n.", "persistent id"),
        "INST": (f"(S{touch!r}\nios\nsystem\n.".encode(), "instruction"),
        "OBJ": (whole(b"(" + SYSTEM + text(touch) + b"o"), "'os.system'"),
        "OBJ of an allowed name": (whole(b"(" + name("builtins", "list") + b"o"), "instruction"),
        "EXT1": (whole(b"\x82\x01"), "instruction"),
        "NEWOBJ": (whole(name("subprocess", "Popen") + text(touch) + b"\x85\x81"), "Popen"),
        "NEWOBJ_EX": (b"\x80\x04" + name("builtins", "list") + b")}\x92.", "instruction"),
        "buffer outside the file": (b"\x80\x05\x97.", "instruction"),
        "copyreg._reconstructor": (
            whole(call(name("copyreg", "_reconstructor"), name("builtins", "object"), SYSTEM, b"N")),
            "'copyreg._reconstructor'",
        ),
        "copyreg.__newobj__": (whole(call(name("copyreg", "__newobj__"), SYSTEM)), "'copyreg.__newobj__'"),
        "copyreg.add_extension": (whole(name("copyreg", "add_extension")), "'copyreg.add_extension'"),
        "functools.partial": (pickle.dumps(Reduced(partial, ())), "'functools.partial'"),
        "operator.attrgetter": (pickle.dumps(operator.attrgetter("system")), "'operator.attrgetter'"),
        "operator.methodcaller": (
            pickle.dumps(operator.methodcaller("system", touch)),
            "'operator.methodcaller'",
        ),
        "importlib": (
            whole(call(name("importlib", "import_module"), text("os"))),
            "'importlib.import_module'",
        ),
        "pickle.loads": (whole(call(name("pickle", "loads"), data(whole(run)))), "'pickle.loads'"),
        "_pickle.loads": (whole(call(name("_pickle", "loads"), data(whole(run)))), "'_pickle.loads'"),
        "torch.load": (whole(call(name("torch", "load"), text("x.pt"))), "'torch.load'"),
        "torch.serialization.load": (
            whole(name("torch.serialization", "load")),
            "'torch.serialization.load'",
        ),
        "torch.hub.load": (whole(name("torch.hub", "load")), "'torch.hub.load'"),
        "torch.jit": (whole(name("torch.jit._serialization", "load")), "'torch.jit._serialization.load'"),
        "numpy.load": (whole(name("numpy", "load")), "'numpy.load'"),
        "numpy testing runstring": (whole(name("numpy.testing._private.utils", "runstring")), "runstring"),
        "this library's own reader": (
            whole(name("gas.unpickle.loading", "read_pickle")),
            "'gas.unpickle.read_pickle'",
        ),
        "call of what was called": (
            whole(call(call(name("builtins", "list")), text(touch))),
            "a call of a list",
        ),
        "call of a dtype": (whole(call(name("torch", "float32"), text(touch))), "a call of a dtype"),
        "call with a list of arguments": (whole(name("builtins", "list") + b"]R"), "a call of"),
        "defaultdict of os.system": (
            pickle.dumps(collections.defaultdict(os.system, {1: 2})),
            ".system'",
        ),
        "defaultdict of an object": (
            whole(call(name("collections", "defaultdict"), text("x"))),
            "a defaultdict",
        ),
        "BUILD of a function": (
            whole(REBUILD + b"N" + mapping(__code__=text("x")) + b"\x86b"),
            "state for a torch._utils._rebuild_tensor_v2",
        ),
        "BUILD of a class": (
            whole(name("builtins", "list") + mapping(__setstate__=SYSTEM) + b"b"),
            "'os.system'",
        ),
        "BUILD of a class with an allowed name": (
            whole(CONV + mapping(__setstate__=REBUILD) + b"b"),
            "state for a torch.nn.modules.conv.Conv2d",
        ),
        "BUILD of a set": (whole(call(name("builtins", "set")) + mapping(x=b"N") + b"b"), "state for a set"),
        "BUILD of slots": (
            whole(CONV + b")\x81" + b"N" + mapping(make=b"N") + b"\x86b"),
            "state for a Persistent",
        ),
        "BUILD twice": (
            whole(CONV + b")\x81" + 2 * (mapping(__setstate__=REBUILD) + b"b")),
            "state for a Persistent",
        ),
        "BUILD of a module with a call within": (
            whole(CONV + b")\x81" + mapping(**module) + b"b"),
            "'os.system'",
        ),
        "BUILD of a tensor": (
            whole(
                call(
                    REBUILD, call(STORAGE, data(storage(torch.ones(2)))), b"K\x00", b"K\x02\x85", b"K\x01\x85"
                )
                + b"(K\x01N"
                + mapping(hook=b"N")
                + b"tb"
            ),
            "state for a Tensor",
        ),
        "persistent object with a call in its state": (
            whole(call(PERSISTENT, mapping(**meta, state=mapping(**module)))),
            "'os.system'",
        ),
        "persistent object without a state": (
            whole(call(PERSISTENT, mapping(**meta, state=b"]"))),
            "class_name",
        ),
        "persistence's import hook": (whole(name("torch_utils.persistence", "import_hook")), "import_hook"),
        "persistence's module maker": (
            whole(name("torch_utils.persistence", "_src_to_module")),
            "_src_to_module",
        ),
        "storage with a call": (whole(call(STORAGE, data(saved(evil, zipped=False)))), ".system'"),
        "zipped storage with a call": (whole(call(STORAGE, data(saved(evil, zipped=True)))), "zip archive"),
        "storage that is a module": (
            whole(call(STORAGE, data(saved(nn.Linear(1, 1), zipped=False)))),
            "'torch.nn.modules.linear.Linear'",
        ),
        "storage that is a list": (whole(call(STORAGE, data(saved([1], zipped=False)))), "a torch storage"),
        "torch.save of a call": (saved(evil, zipped=True), ".system'"),
        "older torch.save of a call": (saved(evil, zipped=False), ".system'"),
        "numpy array of objects": (pickle.dumps(np.array([evil, 1], dtype=object), 4), "'O8'"),
        "numpy array of objects, by state": (
            whole(array + b"(K\x01K\x01\x85" + dtype + b"\x89](" + run + b"etb"),
            "'os.system'",
        ),
        "numpy dtype of objects": (whole(call(name("numpy", "dtype"), text("O8"))), "'O8'"),
        "numpy dtype with metadata": (
            whole(dtype + b"(K\x04" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00}tb"),
            "state for a ",
        ),
        "numpy records": (pickle.dumps(np.zeros(1, dtype=[("a", "f4"), ("b", "O")]), 4), "numpy"),
        "another encoding": (whole(call(name("_codecs", "encode"), text("x"), text("rot13"))), "'rot13'"),
        "line break in a name": (b"\x80\x04\x8c\x04a\nb\n\x8c\x01c\x93.", r"'a\nb\n.c'"),
    }
    return corpus | nested


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


@pytest.mark.parametrize("protocol", range(6))
def test_a_file_cut_anywhere_is_an_error(protocol: int, tmp_path: Path) -> None:
    whole_file = pickle.dumps({"a": torch.arange(2.0), "b": [1, "two", 3.5]}, protocol)
    file = tmp_path / "weights.pkl"
    for length in range(0, len(whole_file), 7):
        file.write_bytes(whole_file[:length])
        with pytest.raises(ValueError, match=r"cut short|refused"):
            read_pickle(file)


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


@pytest.mark.parametrize("protocol", range(6))
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
            1j,
            None,
            True,
            "é",
            b"a\xff",
            b"",
            bytearray(b"xy"),
            {1, 2},
            frozenset([3]),
            slice(1, 2),
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


@pytest.mark.parametrize("protocol", range(6))
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
    # Protocols 0 and 1 spell a subclass of dict through copyreg, which no published file does.
    kwargs = (easy if protocol > 1 else dict)(img_resolution=32, label_dim=0)
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
