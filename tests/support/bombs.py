"""Files that want time or memory out of all proportion, or that are no files; each is made when it is asked for."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file

from gas.io import add_checksum

Bomb = Callable[[Path], Any]


def written(data: bytes | str) -> Bomb:
    return lambda path: path.write_bytes(data.encode() if isinstance(data, str) else data)


# --- what is no file, or an enormous one ----------------------------------------------------------------


def _sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(20 << 30)


ANY: dict[str, Bomb] = {
    "a pipe": os.mkfifo,
    "a link to an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "20 GB of nothing": _sparse,
    "empty": written(b""),
    "other bytes": written(bytes(range(256)) * 40),
}

# --- JSON -----------------------------------------------------------------------------------------------

JSON: dict[str, Bomb] = {
    "deep": written(b'{"format": "gas-solver", "version": 1, "training": ' + b"[" * 900_000),
    "deep objects": written(b'{"format":' * 100_000),
    "many numbers": written(b"[" + b"0," * 2_100_000 + b"0]"),
    "many empty objects": written(b"[" + b"{}," * 1_100_000 + b"{}]"),
    "large": written(b"[" + b" " * (30 << 20) + b"]"),
    "a long number": written(b'{"format": ' + b"9" * 5_000_000 + b"}"),
    "quotes in an open string": written(b'"' + b'\\"' * 5_000_000),
    "text of four bytes a letter": written('{"format": "' + "\U0001f600" * 5_000_000),
}


def solver(**changed: Any) -> Bomb:
    entry = {"nfe": 1, "kind": "table", "times": [1.0], "states": [[1.0]], "outputs": [[0.0]]}
    content = {
        "format": "gas-solver",
        "version": 1,
        "solvers": [{**entry, **changed.pop("entry", {})}],
        **changed,
    }
    return lambda path: path.write_text(json.dumps(add_checksum(content)))


SOLVER: dict[str, Bomb] = {
    "nfe of a billion": solver(entry={"nfe": 10**9}),
    "nfe of 2,000": solver(entry={"nfe": 2000, "times": [0.5] * 2000}),
    "a million wrong times": solver(entry={"times": ["x"] * 300_000}),
    "a million wrong rows": solver(entry={"states": [None] * 300_000}),
    "many unknown names": solver(**{f"n{i}": 0 for i in range(50_000)}),
    "many wrong versions": solver(versions={f"n{i}": 0 for i in range(50_000)}),
    "a name of a million letters": solver(**{"x" * 1_000_000: 1}),
    "a version of a million numbers": solver(version=[0] * 300_000),
    "a schedule of a long name": solver(schedule={"kind": "x" * 1_000_000}),
    "a schedule of lists": solver(schedule={"kind": "vp_discrete", "alphas_cumprod": [[[0.5] * 9] * 9] * 9}),
    "a schedule of objects": solver(schedule={"kind": "vp_discrete", "alphas_cumprod": [{}] * 300_000}),
    "a schedule of very large numbers": solver(
        schedule={"kind": "vp_linear", "beta_0": 10**15, "beta_1": "1"}
    ),
}

# --- safetensors ----------------------------------------------------------------------------------------


def headed(header: Any, rest: bytes = b"", length: int | None = None) -> Bomb:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return written(struct.pack("<Q", len(text) if length is None else length) + text + rest)


def tensor(shape: Any, ends: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": ends}


SAFETENSORS: dict[str, Bomb] = {
    "a header of 2^60 bytes": headed({}, length=1 << 60),
    "a header of 5 MB": headed(b"{" + b" " * (5 << 20) + b"}"),
    "a deep header": headed(b'{"a":' * 300_000),
    "a header of many names": headed({f"t{i}": tensor([0], [0, 0]) for i in range(20_000)}),
    "a shape of 20 GB": headed({"mean": tensor([5 << 30], [0, 20 << 30])}),
    "a shape of 20 GB in 4 bytes": headed({"mean": tensor([5 << 30], [0, 4])}, bytes(4)),
    "a shape that overflows": headed({"mean": tensor([1 << 62, 1 << 62], [0, 0])}),
    "1e10 rows of nothing": headed({"mean": tensor([10**10, 0], [0, 0])}),
    "nothing, 1e10 times": headed({"mean": tensor([0, 10**10], [0, 0])}),
    "a negative shape": headed({"mean": tensor([-1, -1], [0, 4])}, bytes(4)),
    "a shape of fractions": headed({"mean": tensor([0.5, 2], [0, 4])}, bytes(4)),
    "a shape of a thousand sides": headed({"mean": tensor([1] * 1000, [0, 4])}, bytes(4)),
    "places out of order": headed({"mean": tensor([1], [4, 0])}, bytes(4)),
    "a dtype that is a list": headed({"mean": tensor([1], [0, 4], ["F32"])}, bytes(4)),
    "a complex dtype": headed({"mean": tensor([1], [0, 8], "C64")}, bytes(8)),
    "a tensor twice": headed(
        b'{"mean":%s,"mean":%s}' % ((json.dumps(tensor([1], [0, 4])).encode(),) * 2), bytes(4)
    ),
    "metadata that is a list": headed({"__metadata__": [1]}),
}


def tensors(values: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> Bomb:
    return lambda path: save_file(dict(values), path, metadata=dict(metadata or {}))


STATISTICS: dict[str, Bomb] = {
    "an infinite count": tensors(
        {"mean": torch.zeros(2), "cov": torch.eye(2), "count": torch.tensor(float("inf"))}
    ),
    "many counts": tensors(
        {"mean": torch.zeros(2), "cov": torch.eye(2), "count": torch.ones(9, dtype=torch.int64)}
    ),
    "one number of covariance": tensors(
        {"mean": torch.zeros(4000), "cov": torch.eye(1), "count": torch.tensor(9)}
    ),
}

# --- npz, IDX, pictures ---------------------------------------------------------------------------------


def npy(shape: Any, descr: str = "<f8") -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def npz(*, deflated: bool = True, **members: bytes) -> Bomb:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                archive.writestr(f"{name}.npy", data)

    return write


def _many_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(60_000):
            archive.writestr(f"member-of-a-long-name-{i:060d}", b"")


def _nested(data: bytes) -> bytes:
    for _ in range(3):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("mu.npy", data)
        data = buffer.getvalue()
    return data


NPZ: dict[str, Bomb] = {
    "100 MB of zeros": npz(mu=npy((12_500_000,)) + bytes(100_000_000)),
    "a bomb in a bomb": written(_nested(npy((5_000_000,)) + bytes(40_000_000))),
    "a shape of 20 GB": npz(mu=npy((2_500_000_000,)) + bytes(80)),
    "1e10 rows of nothing": npz(mu=npy((10**10, 0)), sigma=npy((10**10, 0))),
    "a shape that overflows": npz(mu=npy((1 << 62, 1 << 62)) + bytes(80)),
    "a negative shape": npz(mu=npy((-1, -8)) + bytes(64)),
    "numbers of 99 bytes": npz(mu=npy((8,), "<f99") + bytes(800)),
    "letters of 2 GB": npz(mu=npy((1,), "<U500000000") + bytes(80)),
    "objects": npz(mu=npy((1,), "|O") + pickle.dumps([1])),
    "a header that is an expression": npz(mu=b"\x93NUMPY\x01\x00" + struct.pack("<H", 6000) + b"(" * 6000),
    "a header of 60,000 letters": npz(mu=b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"9" * 60_000),
    "very many members": _many_members,
    "mu of one, sigma of millions": npz(mu=npy((1,)) + bytes(8), sigma=npy((2000, 2000)) + bytes(32_000_000)),
    "an infinite count": npz(
        mu=npy((1,)) + bytes(8), sigma=npy((1, 1)) + bytes(8), count=npy(()) + struct.pack("<d", float("inf"))
    ),
    "no archive behind its magic": written(b"PK\x03\x04" + bytes(1000)),
}

IDX: dict[str, Bomb] = {
    "100 MB of zeros": lambda path: path.write_bytes(gzip.compress(bytes(100_000_000), 1)),
    "a shape of 20 GB": lambda path: path.write_bytes(
        gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 20_000, 1000, 1000))
    ),
    "fewer bytes than its shape": lambda path: path.write_bytes(
        gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 9, 9, 9))
    ),
    "255 dimensions": lambda path: path.write_bytes(
        gzip.compress(struct.pack(">HBB", 0, 8, 255) + b"\x01" * 1020)
    ),
    "more zeros than its shape": lambda path: path.write_bytes(
        gzip.compress(struct.pack(">HBB1I", 0, 8, 1, 9) + bytes(100_000_000), 1)
    ),
}


def _png(width: int, height: int) -> bytes:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PICTURE: dict[str, Bomb] = {
    "12,000 pixels a side": written(_png(12_000, 12_000)),
    "a million pixels a side": written(_png(1_000_000, 1_000_000)),
    "one row of 2^31 pixels": written(_png(2**31 - 1, 1)),
}

# --- pickles and torch.save -----------------------------------------------------------------------------


def called(module: str, name: str, *args: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(args) + b"tR"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def doubled(levels: int, leaf: bytes = b"]", join: bytes = b"\x86") -> bytes:
    """A pickle's bytes of a tuple of twice the one before, ``levels`` times."""
    return leaf + b"".join(b"q%ch%c%b" % (i % 256, i % 256, join) for i in range(levels))


def mapping(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def stored(values: torch.Tensor) -> bytes:
    """The bytes that a plain pickle holds of a tensor's numbers."""
    data = values._typed_storage().__reduce__()[1][0]
    return called("torch.storage", "_load_from_bytes", b"B" + struct.pack("<I", len(data)) + data)


def number(value: int) -> bytes:
    return f"I{value}\n".encode()


def strided(size: list[int], stride: list[int], offset: int = 0) -> bytes:
    parts = [b"(" + b"".join(map(number, values)) + b"t" for values in (size, stride)]
    return called("torch._utils", "_rebuild_tensor_v2", stored(torch.ones(4)), number(offset), *parts)


def persistent(kind: str, kwargs: bytes, state: bytes = b"") -> bytes:
    inner = state or mapping(_init_kwargs=kwargs, _parameters=b"}", _buffers=b"}", _modules=b"}")
    meta = mapping(type=text("class"), class_name=text(kind), state=inner, module_src=text("x"))
    return called("torch_utils.persistence", "_reconstruct_persistent_obj", meta)


def network(**init: Any) -> bytes:
    """A pickle of an EDM network without weights, of these sizes."""
    sizes = {"img_resolution": 8, "img_channels": 1, "model_type": "SongUNet"} | init
    return whole(mapping(ema=persistent("EDMPrecond", pickle.dumps(sizes, 2)[2:-1])))


def collisions(count: int) -> bytes:
    """A dict of whole numbers that have one hash."""
    keys = (int.to_bytes(i * (2**61 - 1), 11, "little", signed=True) for i in range(1, count))
    return b"}(" + b"".join(b"\x8a\x0b" + key + b"N" for key in keys) + b"u"


PICKLE: dict[str, bytes] = {
    "lists doubled 60 times": whole(doubled(60)),
    "lists doubled 250 times": whole(doubled(250)),
    "tuples doubled as a key": whole(b"}" + doubled(40, b")") + b"Ns"),
    "tuples doubled in a set": whole(b"\x8f(" + doubled(40, b")") + b"\x90"),
    "tuples doubled in a frozen set": whole(b"(" + doubled(40, b")") + b"\x91"),
    "tuples doubled in a set by a call": whole(called("builtins", "set", b"](" + doubled(40, b")") + b"e")),
    "tuples doubled as a key of OrderedDict": whole(
        called("collections", "OrderedDict", b"](" + doubled(40, b")") + b"N\x86e")
    ),
    "text of doubled lists": whole(called("builtins", "str", doubled(40))),
    "a number of doubled lists": whole(called("builtins", "int", doubled(40))),
    "an encoding of doubled lists": whole(called("_codecs", "encode", text("x"), doubled(40))),
    "a numpy type of doubled lists": whole(called("numpy", "dtype", doubled(40))),
    "a device of doubled lists": whole(called("torch", "device", doubled(40))),
    "a list of itself": whole(b"]q\x00h\x00a"),
    "a dict of itself": whole(b"}q\x00" + text("a") + b"h\x00s"),
    "lists 100,000 deep": whole(b"]" * 100_000 + b"a" * 99_999),
    "tuples 100,000 deep": whole(b")" + b"\x85" * 100_000),
    "3 million steps": whole(b"]0" * 1_500_000 + b"N"),
    "a million sets": whole(b"(" + b"\x8f" * 1_000_000 + b"t"),
    "copies of one list": whole(
        b"]q\x00(" + b"N" * 5000 + b"e0(" + called("builtins", "list", b"h\x00") * 10_000 + b"t"
    ),
    "copies of one text": whole(
        b"(" + text("x" * 100_000) + b"q\x00" + called("_codecs", "encode", b"h\x00", text("latin1")) * 10_000 + b"t"
    ),
    "copies of one storage": whole(
        b"(" + stored(torch.ones(200_000)) + b"q\x00"
        + called("torch._utils", "_rebuild_tensor_v2", b"h\x00", b"K\x00", b"K\x01\x85", b"K\x01\x85") * 60_000 + b"t"
    ),
    "a frame of 2^62 bytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "a frame of 8 GB": b"\x80\x04\x95" + struct.pack("<Q", 8 << 30) + b"N.",
    "bytes of 8 GB": b"\x80\x04\x8e" + struct.pack("<Q", 8 << 30) + b".",
    "text of 2^62 letters": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
    "a bytearray of 8 GB": b"\x80\x05\x96" + struct.pack("<Q", 8 << 30) + b".",
    "a whole number of 4 MB": whole(b"\x8b" + struct.pack("<i", 4_000_000) + b"\x7f" * 4_000_000),
    "a whole number of a million digits": whole(b"L" + b"9" * 1_000_000 + b"L\n"),
    "a number of a million digits by a call": whole(called("builtins", "int", text("9" * 1_000_000))),
    "numbers of one hash": whole(collisions(50_000)),
    "1e12 rows of one": whole(strided([10**12], [0])),
    "1e10 rows of none": whole(strided([10**10, 0], [0, 1])),
    "none of 1e10": whole(strided([0, 10**10], [1, 1])),
    "a million rows of one": whole(strided([1_000_000, 1_000_000], [0, 0])),
    "rows of a long number": whole(
        called("torch._utils", "_rebuild_tensor_v2", stored(torch.ones(4)), b"K\x00",
               b"\x8a\xff" + b"\x7f" * 255 + b"\x85", b"K\x01\x85")
    ),
    "strides of doubled lists": whole(
        called("torch._utils", "_rebuild_tensor_v2", stored(torch.ones(4)), b"K\x00", doubled(40), doubled(40))
    ),
    "numpy rows of nothing": whole(
        called("numpy._core.numeric", "_frombuffer", b"C\x00", called("numpy", "dtype", text("f4")),
               number(10**10) + b"K\x00\x86", text("C"))
    ),
    "items for a tensor": whole(b"c" + b"torch\nSize\n" + b"(tR(NNu"),
    "a memo of a far place": whole(b"]r\xff\xff\xff\xffj\xfe\xff\xff\xff"),
}  # fmt: skip


def torch_zip(data: bytes, **members: bytes) -> Bomb:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/byteorder", b"little")
            for name, content in members.items():
                archive.writestr(f"archive/data/{name.lstrip('_')}", content)

    return write


def _deflated(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"]0" * 15_000_000 + b".")


def _pid(count: int) -> bytes:
    return (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(count) + b"tQ"
    )


def _older(value: Any, change: Callable[[bytes], bytes] = bytes) -> Bomb:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return written(change(buffer.getvalue()))


ZIPPED: dict[str, Bomb] = {case: torch_zip(data) for case, data in PICKLE.items() if "frame" not in case}

TORCH: dict[str, Bomb] = {
    "packed": _deflated,
    "a storage of 4 TB": torch_zip(whole(_pid(10**12)), _0=bytes(16)),
    "a storage of fewer numbers": torch_zip(whole(_pid(10**6)), _0=bytes(16)),
    "a storage that is absent": torch_zip(whole(_pid(4))),
    "older, a storage of 4 TB": _older(
        torch.ones(777), lambda data: data.replace(b"M\x09\x03", b"\x8a\x06" + bytes(5) + b"\x01", 1)
    ),
    "older, cut short": _older(torch.ones(400), lambda data: data[:-40]),
}

NETWORK: dict[str, bytes] = {
    "model_channels of 4e9": network(model_channels=4_000_000_000),
    "num_blocks of a million": network(num_blocks=1_000_000),
    "a thousand levels": network(channel_mult=[1] * 1000),
    "levels within levels": network(channel_mult=[[[2]]]),
    "levels of 4096 times 4096": network(model_channels=4096, channel_mult=[4096] * 8, num_blocks=16),
    "an infinite M": network(M=float("inf")),
    "a huge beta": whole(
        mapping(ema=persistent("VPPrecond", pickle.dumps(
            {"img_resolution": 8, "img_channels": 1, "beta_d": 4000.0}, 2)[2:-1]))
    ),
    "nested arguments": whole(mapping(ema=persistent("EDMPrecond", mapping(a=doubled(60))))),
    "deep arguments": whole(mapping(ema=persistent("EDMPrecond", mapping(a=b"]" * 150 + b"a" * 149)))),
    "an argument of a long number": network(img_resolution=10**300),
    "a name of a million letters": network(**{"x" * 1_000_000: 1}),
}  # fmt: skip


def student(nfe: int) -> Bomb:
    sizes = [nfe - 1, nfe, nfe, nfe]
    return lambda path: torch.save({"ema": {"shadow_params": [torch.zeros(size) for size in sizes]}}, path)


def zoo(**changed: Any) -> Bomb:
    card = {"name": "x", "sample_shape": [1, 8, 8], "network": {}, "classifier": {"size": 8}} | changed
    return lambda path: path.write_bytes(save({"network.a": torch.zeros(1)}, {"card": json.dumps(card)}))


ZOO: dict[str, Bomb] = {
    "a width of 20,000": zoo(network={"width": 20_000}),
    "a width of 4,096": zoo(network={"width": 4096, "multipliers": [32, 32, 32], "blocks": 4}),
    "blocks of a billion": zoo(network={"blocks": 10**9}),
    "many levels": zoo(network={"multipliers": [1] * 100_000}),
    "a classifier of a wide picture": zoo(classifier={"size": 10**9}),
    "a classifier of many features": zoo(classifier={"size": 4096, "features": 4096, "width": 4096}),
    "a card of lists": zoo(network={"multipliers": [[[[1]]]] * 20}),
    "a deep card": lambda path: path.write_bytes(save({"a": torch.zeros(1)}, {"card": '{"a":' * 100_000})),
    "a card of many values": lambda path: path.write_bytes(
        save({"a": torch.zeros(1)}, {"card": "[" + "0," * 900_000})
    ),
    "a latent network of a million layers": zoo(pipeline="transformer", network={"num_layers": 10**6}),
    "no card": lambda path: path.write_bytes(save({"a": torch.zeros(1)}, {})),
}


def critic(**changed: torch.Tensor) -> Bomb:
    layer = "MainLayers.0.Layers.{}.LinearLayer{}.Layer.weight".format
    weights = {
        "ExtractionLayer.Layer.weight": torch.zeros(4, 1, 1, 1),
        layer(0, 1): torch.zeros(8, 4, 1, 1),
        layer(0, 2): torch.zeros(8, 8, 3, 3),
    }
    return tensors(weights | changed)


CRITIC: dict[str, Bomb] = {
    "widths of a million": critic(
        **{"MainLayers.0.Layers.0.LinearLayer1.Layer.weight": torch.zeros(2, 1_000_000, 1, 1)}
    ),
    "two thousand blocks": critic(
        **{f"MainLayers.0.Layers.{i}.LinearLayer1.Layer.weight": torch.zeros(1) for i in range(1, 2000)}
    ),
    "a hundred stages": critic(
        **{
            f"MainLayers.{i}.Layers.0.LinearLayer{n}.Layer.weight": torch.zeros(1, 1, 1, 1)
            for i in range(1, 100)
            for n in (1, 2)
        }
    ),
    "a kernel of no side": critic(**{"MainLayers.0.Layers.0.LinearLayer2.Layer.weight": torch.zeros(8, 8)}),
}


def latent(**weights: torch.Tensor) -> Bomb:
    base = {
        "unet.conv_in.weight": torch.zeros(1, 3, 3, 3),
        "unet.conv_out.weight": torch.zeros(3, 1, 3, 3),
        "alphas_cumprod": torch.linspace(0.99, 0.01, 10),
    }
    card = {"kind": "gas-solver latent diffusion", "head_channels": "32"}
    return tensors(base | weights, card)


LDM: dict[str, Bomb] = {
    "widths of 4,096": latent(
        **{f"unet.down_blocks.{i}.resnets.0.conv1.weight": torch.zeros(4096, 1, 1, 1) for i in range(6)}
    ),
    "widths of a million": latent(
        **{f"unet.down_blocks.{i}.resnets.0.conv1.weight": torch.zeros(1_000_000, 1, 1, 1) for i in range(3)}
    ),
    "a billion layers": latent(
        **{"unet.down_blocks.0.resnets.0.conv1.weight": torch.zeros(32, 32, 3, 3),
           "unet.down_blocks.0.resnets.999999999.conv1.weight": torch.zeros(1)}
    ),
    "a hundred levels": latent(
        **{f"unet.down_blocks.{i}.resnets.0.conv1.weight": torch.zeros(32, 1, 1, 1) for i in range(100)}
    ),
    "heads of a long number": lambda path: save_file(
        {"unet.conv_in.weight": torch.zeros(1, 3, 3, 3), "alphas_cumprod": torch.ones(1)}, path,
        metadata={"kind": "gas-solver latent diffusion", "head_channels": "9" * 5000},
    ),
}  # fmt: skip


def manifest(recipe: Mapping[str, Any] | None = None, shards: Any = None) -> Bomb:
    """A folder of pairs by its manifest alone, marked as whole."""
    import hashlib

    base = {
        "model": {}, "schedule": {}, "shape": [2], "table": "x", "teacher": {}, "guidance": 1.0, "classes": 0,
        "seeds": [0, 4], "shard": 4, "batch": 4, **(recipe or {}),
    }  # fmt: skip
    mark = hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest()
    shard = {"file": "shard-00000.safetensors", "first_seed": 0, "count": 4, "sha256": "0" * 64}
    content = {
        "version": 1,
        "recipe": base,
        "recipe_sha256": mark,
        "shards": [shard] if shards is None else shards,
    }
    return lambda path: path.write_text(json.dumps(add_checksum(content)))


def listed(**changed: Any) -> list[dict[str, Any]]:
    return [{"file": "shard-00000.safetensors", "first_seed": 0, "count": 4, "sha256": "0" * 64, **changed}]


MANIFEST: dict[str, Bomb] = {
    "2^60 seeds, one a shard": manifest({"seeds": [0, 1 << 60], "shard": 1}),
    "2^60 seeds in one shard": manifest({"seeds": [0, 1 << 60], "shard": 1 << 60}, listed(count=1 << 60)),
    "samples of 20 GB": manifest({"shape": [5_000_000_000]}),
    "samples of 2^60 and none": manifest({"shape": [1 << 60, 0]}),
    "a shape of many sides": manifest({"shape": [1] * 100_000}),
    "a shape of text": manifest({"shape": "x" * 1_000_000}),
    "negative seeds": manifest({"seeds": [-4, 0]}),
    "seeds that are null": manifest({"seeds": None}),
    "a shard of none": manifest({"shard": 0}),
    "a negative shard": manifest({"shard": -4}),
    "fractional classes": manifest({"classes": 1e300}),
    "shards that are numbers": manifest(shards=[1]),
    "a million shards": manifest(shards=[1] * 300_000),
    "decoded samples of 20 GB": manifest({"decoded": [1 << 40]}),
}


def state(**weights: torch.Tensor) -> Bomb:
    return tensors(weights)
