"""Pickles that would run something, or claim what is not there, each with a word of its refusal."""

from __future__ import annotations

import collections
import functools
import io
import operator
import os
import pickle
import subprocess

import numpy as np
import torch
from torch import nn

from support.published import Reduced


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


def saved(value: object, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def storage(tensor: torch.Tensor) -> bytes:
    """What a plain pickle of a tensor holds of its numbers."""
    function, args = tensor._typed_storage().__reduce__()
    assert function.__name__ == "_load_from_bytes"
    return args[0]


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
            "'gas.unpickle.loading.read_pickle'",
        ),
        "call of what was called": (
            whole(call(call(name("builtins", "list")), text(touch))),
            "a call of a list",
        ),
        "call of a dtype": (whole(call(name("torch", "float32"), text(touch))), "a call of a dtype"),
        "list of a tensor": (
            whole(call(name("builtins", "list"), call(STORAGE, data(storage(torch.ones(2)))))),
            "the items of a Tensor",
        ),
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
