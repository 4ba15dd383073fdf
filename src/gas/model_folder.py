"""Folders of pretrained components: checked to hold data alone before anything is loaded from them."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gas.display import error_text
from gas.errors import UserError
from gas.io import JSON_BYTES, open_regular, parse_json, read_bytes, read_header
from gas.solver_schema import parse_document

# A folder of diffusers has under 100 entries in two levels, its largest config (an index of shards) 0.2 MB, a
# tokenizer's vocabulary up to 33 MB, and a network of a thousand tensors a header of 0.1 MB. At these limits the
# checks take half a second and 100 MB.
_ENTRIES, _DEPTH, _VOCABULARY_BYTES = 2000, 4, 64 << 20
_JSON_BYTES, _JSON_BYTES_IN_ALL, _JSON_VALUES = 4 << 20, 16 << 20, 200_000
_TENSORS, _INTEGER, _EMBEDDING_BYTES = 20_000, 1 << 20, 1 << 30
# A solver file beside its scheduler may be larger than any config, so solvers have a budget of their own.
_SOLVER = "solver.json"
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")

_CODE = {".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".pkl", ".pickle", ".joblib", ".dill"}
# Keys that make diffusers or transformers import code, or load from outside this folder.
_CODE_KEYS = {"auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "custom_generate"}
_CODE_KEYS |= {"use_kernels", "kernel_config", "base_model_name_or_path", "transformers_weights"}
# Quantization whose weights are safetensors and whose loader unpickles and fetches nothing.
_QUANTIZATION = {"bitsandbytes", "quanto", "torchao"}
_COUNT = re.compile(r"(layers|blocks?|depth)(_|$)|block_out_channels|block_types")


def check_model_folder(folder: str | Path) -> None:
    """Refuse a folder from which code could run, or that would exhaust memory, before anything is loaded from it.

    Allowed are regular files and links within the folder (or, in the Hugging Face cache, to its blobs): safetensors,
    JSON and text. Hidden folders are skipped: nothing is loaded from them.
    """
    root = Path(folder)
    files = list(_files(root))
    tensors: dict[Path, int] = {}
    json_bytes = solver_bytes = 0
    for file in files:
        if file.suffix.lower() in _CODE:
            raise _refusal(root, file, "holds code, which is never run from a model folder: remove it")
        if file.name == "adapter_config.json":
            problem = "loads another model than this folder's: load adapters after the pipeline"
            raise _refusal(root, file, problem)
        if file.suffix == ".safetensors":
            try:
                with open_regular(file) as stream:
                    header, length = read_header(stream, _JSON_BYTES, _TENSORS)
            except ValueError as error:
                problem = f"is incomplete or damaged ({error_text(error)}): download it again"
                raise _refusal(root, file, problem) from error
            tensors[file.parent] = tensors.get(file.parent, 0) + len(header)
            json_bytes += length
        elif file.name == _SOLVER:
            solver_bytes += file.stat().st_size
            if solver_bytes > JSON_BYTES:
                raise _refusal(root, file, f"is beyond {JSON_BYTES:,} bytes of solvers: this is no pipeline")
        elif file.suffix == ".json":
            size, vocabulary = file.stat().st_size, file.name in _VOCABULARIES
            if size > (limit := _VOCABULARY_BYTES if vocabulary else _JSON_BYTES):
                raise _refusal(root, file, f"has {size:,} bytes, at most {limit:,} are read")
            json_bytes += 0 if vocabulary else size
        if json_bytes > _JSON_BYTES_IN_ALL:
            raise _refusal(root, file, f"is beyond {_JSON_BYTES_IN_ALL:,} bytes of JSON: this is no pipeline")
    for file in files:
        if file.suffix == ".json" and file.name not in _VOCABULARIES:
            _check_config(root, file, tensors.get(file.parent, 0))


def read_json(root: Path, file: Path, max_bytes: int = _JSON_BYTES) -> Any:
    """Read a JSON file of at most ``max_bytes`` in a model folder."""
    try:
        return parse_json(read_bytes(file, max_bytes), finite=False)
    except (OSError, ValueError) as error:
        raise _refusal(root, file, f"cannot be read: {error_text(error)}") from error


def _refusal(root: Path, file: Path, problem: str) -> UserError:
    name = str(file.relative_to(root)) if file != root else "."
    return UserError(f"model folder {str(root)[-80:]} is refused: {name[:80]!r} {problem}")


def _files(root: Path) -> Iterator[Path]:
    """Yield every file, each checked to be a regular one within the folder."""
    home = root.resolve()
    cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    folders, entries = [root], 0
    while folders:
        for file in sorted(folders.pop().iterdir()):
            entries += 1
            if entries > _ENTRIES or len(file.relative_to(root).parts) > _DEPTH:
                problem = f"is beyond {_ENTRIES} entries or {_DEPTH} levels: this is no pipeline"
                raise _refusal(root, file, problem)
            mode = file.lstat().st_mode
            if stat.S_ISLNK(mode):
                try:
                    target = file.resolve()
                except (OSError, RuntimeError) as error:  # a circle of links
                    raise _refusal(root, file, "is a link that leads nowhere") from error
                if not target.is_relative_to(home) and not (cache and target.is_relative_to(cache)):
                    raise _refusal(root, file, "is a link out of the folder: copy the file into it")
                if not target.is_file():
                    raise _refusal(root, file, "is a link to something that is no regular file: copy it")
                yield file
            elif stat.S_ISDIR(mode):
                folders += [] if file.name.startswith(".") else [file]
            elif stat.S_ISREG(mode):
                yield file
            else:
                raise _refusal(root, file, "is no regular file (a pipe, socket or device)")


def _check_config(root: Path, file: Path, tensors: int) -> None:
    content = read_json(root, file, JSON_BYTES if file.name == _SOLVER else _JSON_BYTES)
    if file.name.endswith(".index.json"):
        _check_shards(root, file, content)
        return
    stack: list[tuple[str, Any]] = [("", content)]
    values = 0
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict) and value.get("format") == "gas-solver":
            try:  # its schema allows no further entries: nothing in it configures a network
                parse_document(value, "it")
            except ValueError as error:
                raise _refusal(root, file, f"holds no valid solver: {error_text(error, 120)}") from error
            continue
        values += len(value) if isinstance(value, (dict, list)) else 0
        if values > _JSON_VALUES:
            raise _refusal(root, file, f"has more than {_JSON_VALUES:,} values")
        if problem := _problem(root, key, value, tensors):
            raise _refusal(root, file, f"sets {key[:40]!r}, {problem}")
        if isinstance(value, dict):
            stack += [(str(name), item) for name, item in value.items()]
        elif isinstance(value, list):
            stack += [(key, item) for item in value]
    if isinstance(content, dict) and _position_bytes(content) > _EMBEDDING_BYTES:
        raise _refusal(root, file, "asks for position embeddings of more than a gigabyte")


def _check_shards(root: Path, file: Path, content: Any) -> None:
    """Check that shards lie beside their index; an index of pickled shards is not loaded at all."""
    if file.name.endswith(".safetensors.index.json"):
        shards = content.get("weight_map") if isinstance(content, dict) else None
        for name in shards.values() if isinstance(shards, dict) else [None]:
            if not _is_file_name(name) or not str(name).endswith(".safetensors"):
                problem = f"names shard {str(name)[:40]!r}, which is no .safetensors of its folder"
                raise _refusal(root, file, problem)


def _problem(root: Path, key: str, value: Any, tensors: int) -> str:
    """Return the problem with a config's entry in words, empty when it has none."""
    if key in _CODE_KEYS and value:
        return "which would run code or load from elsewhere: nothing but this folder's data is loaded"
    if "implementation" in key and isinstance(value, str) and "/" in value:
        return "which would fetch a kernel: only installed ones run"
    if key == "quantization_config" and isinstance(value, dict):
        method = value.get("quant_method")
        bits = value.get("load_in_4bit") or value.get("load_in_8bit")
        if method not in _QUANTIZATION and not (method is None and bits):
            return f"method {str(method)[:30]!r}: allowed are {', '.join(sorted(_QUANTIZATION))}"
    if key.endswith(("_file", "_files")) and key != "special_tokens_map_file" and isinstance(value, str):
        path = root / value  # an absolute path replaces the folder
        if not _is_file_name(value) and (path.exists() or Path(value).exists()):
            return "a file outside its folder"
    # Integers of more than 20 digits are read as floats.
    whole = type(value) is int or (isinstance(value, float) and value.is_integer() and abs(value) >= 1e19)
    if key != "model_max_length" and "theta" not in key and whole and abs(value) > _INTEGER:
        return f"which must be at most {_INTEGER:,}, got {str(value)[:20]}"
    counts = [len(value)] if isinstance(value, list) else [value]
    if _COUNT.search(key) and any(type(count) is int and count > max(tensors, 64) for count in counts):
        return f"more than the {tensors} tensors of its weights can be"
    return ""


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and bool(re.fullmatch(r"[\w][\w.\-]*", name))


def _position_bytes(config: dict[str, Any]) -> int:
    """Return the bytes of a transformer's position embeddings, which are computed in float64, not read."""
    keys = ("sample_size", "pos_embed_max_size", "num_attention_heads", "attention_head_dim", "patch_size")
    sizes = [config.get(key) for key in keys]
    sample, maximum, heads, width, patch = (size if type(size) is int else 0 for size in sizes)
    return (max(sample, maximum) // max(patch, 1)) ** 2 * heads * width * 8
