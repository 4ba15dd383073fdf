"""The folder format of pairs, with its one writer and one reader: a manifest and checksummed safetensors shards."""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from gas.arguments import of_type
from gas.display import brief, error_text
from gas.errors import UserError
from gas.io import (
    CHECKSUM,
    add_checksum,
    is_integer_list,
    open_regular,
    open_safetensors,
    read_json,
    read_safetensors,
    sha256,
    verify_checksum,
    write_bytes,
    write_text,
)
from gas.models.seeds import labels_of_seeds
from gas.pairs.leases import Lease, discard_leases

Json = Mapping[str, Any]
Stamp = tuple[str, tuple[int, int]]
MANIFEST = "manifest.json"
# Keys of every manifest's recipe.
_REQUIRED = (
    "model",
    "schedule",
    "shape",
    "table",
    "teacher",
    "guidance",
    "classes",
    "seeds",
    "shard",
    "batch",
)
# Names of the tensors that an imported set stores because they do not follow from the seeds: noise, labels.
STORED = "stored"
_STORABLE = ("noise", "labels")
# Meaning of the labels; shape of a decoded sample; stored tensors.
_OPTIONAL = ("conditions", "decoded", STORED)
AGAIN = "run `gas pairs` again with the same settings"
_VERSION = 1
_MAX_SAMPLE = 1 << 30  # numbers of one sample: 4 GB
# Seconds between two listings of a shared folder's shards while they are read: what a stop may cost.
_LISTING = 10.0


def open_folder(folder: Path, recipe: Json, *, shared: bool = False) -> tuple[dict[str, Any], list[int]]:
    """Open a folder to write pairs into: a new one, or one of the same recipe.

    The batch size of an earlier run counts, not this one. Returns the manifest, and which of its shards are missing,
    damaged or, in a shared folder, not listed yet. Where one process writes, what killed ones left goes.
    """
    # In this order: a worker that shares the folder writes shards after the manifest.
    has_shards = any(folder.glob("*.safetensors"))
    is_new = not os.path.lexists(folder / MANIFEST)
    if is_new and has_shards:
        raise UserError(f"{folder} has safetensors files but no {MANIFEST}; choose another folder")
    manifest = manifest_of(recipe) if is_new else read_manifest(folder)
    if other := differences(manifest["recipe"], {**recipe, "batch": manifest["recipe"]["batch"]}):
        raise UserError(f"{folder} holds pairs of other settings ({other}); choose another folder")
    if is_new:
        try:
            write_manifest(folder, manifest, new=shared)
        except FileExistsError:  # of another worker, a moment ago
            return open_folder(folder, recipe, shared=shared)
    if shared:
        # Bytes are read where all are listed only: else each of many workers would read what others listed.
        is_there = _is_intact if _is_listed(manifest) else _is_named
        return manifest, [i for i, entry in enumerate(manifest["shards"]) if not is_there(folder, entry)]
    _sweep(folder)
    return manifest, _check_shards(folder, manifest)


def finish_folder(folder: Path, opened: Json, lease: Lease) -> bool:
    """List the shards of a shared folder in its manifest, and delete what killed workers left.

    Args:
        folder: with every shard there.
        opened: the manifest as this worker read it first.
        lease: of the manifest.

    Returns:
        Whether the folder is finished; if not, damaged shards were deleted, or another worker took the lease.
    """
    manifest = read_manifest(folder)
    if manifest != opened and _is_listed(manifest):
        return True  # another worker has checked every byte
    missing = _check_shards(folder, manifest, lease)
    if missing or _is_lost(lease):
        return False
    _sweep(folder)
    return True


def _check_shards(folder: Path, manifest: dict[str, Any], lease: Lease | None = None) -> list[int]:
    """List the whole shards in the manifest, delete damaged ones, and return which are missing.

    With the lease of a shared folder's manifest, what a worker that was stopped here has listed is not read again,
    and nothing is written or deleted once another worker took the lease.
    """
    entries, skips = manifest["shards"], lease is not None and not _is_listed(manifest)
    before, written = list(entries), time.monotonic()
    for i, entry in enumerate(before):
        if skips and _is_named(folder, entry):
            continue
        entries[i] = {**entry, "sha256": _checksum(folder, entry, manifest)}
        if skips and time.monotonic() > written + _LISTING:
            if _is_lost(lease):
                return []
            write_manifest(folder, manifest)
            written = time.monotonic()
    if _is_lost(lease):
        return []
    if entries != before:
        write_manifest(folder, manifest)
    missing = [i for i, entry in enumerate(entries) if entry["sha256"] is None]
    for i in missing:
        (folder / entries[i]["file"]).unlink(missing_ok=True)
    return missing


def _is_lost(lease: Lease | None) -> bool:
    return lease is not None and lease.is_superseded()


def _is_listed(manifest: Json) -> bool:
    return all(entry["sha256"] for entry in manifest["shards"])


def _is_named(folder: Path, entry: Json) -> bool:
    return entry["sha256"] is not None and (folder / entry["file"]).is_file()


def _checksum(folder: Path, entry: Json, manifest: Json) -> str | None:
    """Return the checksum of a whole shard, listed or not; ``None`` where there is none or a damaged one."""
    if entry["sha256"] is not None:
        return entry["sha256"] if _is_intact(folder, entry) else None
    try:
        checksum = sha256(folder / entry["file"])
        check_shard("it", _read_tensors(folder, entry, manifest), manifest["recipe"], entry)
    except FileNotFoundError:
        return None
    except UserError as error:
        if isinstance(error.__cause__, OSError):  # that it cannot be read now does not make it damaged
            raise
        return None
    return checksum


def _sweep(folder: Path) -> None:
    """Delete what killed writers left: temporary files and leases."""
    for stale in (*folder.glob(f".{MANIFEST}.*.tmp"), *folder.glob(".shard-*.safetensors.*.tmp")):
        stale.unlink(missing_ok=True)
    discard_leases(folder)


def write_shard(
    folder: Path, manifest: Json, entry: dict[str, Any], tensors: dict[str, Tensor], *, shared: bool = False
) -> None:
    """Write a shard, then the manifest with its checksum in the shard's entry; each appears whole or not at all.

    In a shared folder the first of several writers of a shard counts, and the manifest follows in the end.
    """
    data, path = save(tensors, {"recipe": manifest["recipe_sha256"]}), folder / entry["file"]
    if shared:
        try:
            write_bytes(path, data, new=True)
        except OSError:
            if not path.exists():
                raise
        return
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    write_bytes(path, data)
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: Json, *, new: bool = False) -> None:
    """Write the manifest, whole or not at all."""
    write_text(folder / MANIFEST, json.dumps(add_checksum(manifest), indent=1) + "\n", new=new)


def manifest_of(recipe: Json, checksums: Sequence[str | None] | None = None) -> dict[str, Any]:
    """Return the manifest of a recipe; all but the checksums follows from it."""
    (first, stop), size = recipe["seeds"], recipe["shard"]
    starts = range(first, stop, size)
    shards = [
        dict(file=f"shard-{i:05d}.safetensors", first_seed=s, count=min(size, stop - s), sha256=digest)
        for i, (s, digest) in enumerate(zip(starts, checksums or [None] * len(starts), strict=True))
    ]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return {"version": _VERSION, "recipe": recipe, "recipe_sha256": digest, "shards": shards}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder, which must be what its own recipe implies and list every shard in the folder."""
    path = folder / MANIFEST
    try:
        content: dict[str, Any] = read_json(path)
        version, implied = content["version"], {}
        manifest = {key: value for key, value in content.items() if key != CHECKSUM}
        if version == _VERSION:
            keys = (*_REQUIRED, *(key for key in _OPTIONAL if key in manifest["recipe"]))
            recipe = {key: manifest["recipe"][key] for key in keys}
            _check_recipe(recipe, manifest["shards"])
            implied = manifest_of(recipe, [entry["sha256"] for entry in manifest["shards"]])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error_text(error)}); choose another folder") from error
    if version != _VERSION:
        raise UserError(f"{path} has version {brief(version)}, but this gas-solver reads version {_VERSION}")
    if other := differences(manifest, implied):
        raise UserError(f"{path} is damaged or has unknown fields ({other[:200]}); choose another folder")
    verify_checksum(content, str(path))
    if names := {x.name for x in folder.glob("*.safetensors")} - {x["file"] for x in manifest["shards"]}:
        raise UserError(f"shard {folder / min(names)} is foreign, not in the manifest; move it away")
    return manifest


def _check_recipe(recipe: Json, shards: Any) -> None:
    """Refuse implausible sizes before anything is allocated by them, and parts of another type."""
    for name in ("model", "schedule", "teacher", "conditions"):
        of_type(name, recipe.get(name, {}), dict, "an object")
    prompts = recipe.get("conditions", {}).get("prompts", [])
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"prompts {brief(prompts)} are no list of texts")
    stored = recipe.get(STORED, [])
    if not isinstance(stored, list) or any(name not in _STORABLE for name in stored):
        raise UserError(f"{STORED} {brief(stored)} is no list of {' and '.join(_STORABLE)}")
    shape, seeds, decoded = recipe["shape"], recipe["seeds"], recipe.get("decoded", [])
    if not is_integer_list(shape, 8) or not is_integer_list(decoded, 8) or math.prod(shape) > _MAX_SAMPLE:
        raise UserError(f"shape {brief(shape)} is not that of a sample")
    if not is_integer_list(seeds, 2) or len(seeds) != 2 or not seeds[0] < seeds[1] <= 1 << 63:
        raise UserError(f"seeds {brief(seeds)} are no range")
    for name, least in (("shard", 1), ("batch", 1), ("classes", 0)):
        if type(recipe[name]) is not int or not least <= recipe[name] <= 1 << 63:
            raise UserError(f"{name} {brief(recipe[name])} is no whole number from {least} up")
    count = -(-(seeds[1] - seeds[0]) // recipe["shard"])
    if not isinstance(shards, list) or len(shards) != count:
        raise UserError(f"{count} shards should be listed for seeds {seeds[0]} to {seeds[1] - 1}")
    if not all(isinstance(entry, dict) for entry in shards):
        raise UserError("shards must be objects")


def read_shard(folder: Path, entry: Json, manifest: Json) -> dict[str, Tensor]:
    """Return the tensors of one shard, checked."""
    tensors, path = _read_tensors(folder, entry, manifest), folder / entry["file"]
    if not _is_intact(folder, entry):
        raise UserError(f"shard {path} is damaged: its checksum is not the manifest's; {AGAIN}")
    return check_shard(f"shard {path}", tensors, manifest["recipe"], entry)


def _read_tensors(folder: Path, entry: Json, manifest: Json) -> dict[str, Tensor]:
    """Return the tensors of a file that is large enough for its entry and of the manifest's recipe."""
    path = folder / entry["file"]
    count, shape = entry["count"], manifest["recipe"]["shape"]
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        # Before seeds are counted out by the manifest.
        if size < max(4 * count * math.prod(shape), 8 * count):
            raise UserError(f"{size:,} bytes are too few for {count:,} samples of {brief(shape)}")
        tensors, metadata = read_safetensors(path)
    except (OSError, ValueError) as error:
        reason = error_text(error) if isinstance(error, ValueError) else error.strerror
        raise UserError(f"shard {path} is missing, truncated or damaged ({reason}); {AGAIN}") from error
    if metadata.get("recipe") != manifest["recipe_sha256"]:
        raise UserError(f"shard {path} is foreign, from a folder of other settings; {AGAIN}")
    return tensors


def _is_intact(folder: Path, entry: Json) -> bool:
    path = folder / entry["file"]
    return entry["sha256"] is not None and path.is_file() and sha256(path) == entry["sha256"]


def read_rows(
    folder: Path, stamps: Sequence[Stamp], size: int, rows: Tensor, name: str, shape: Sequence[int]
) -> Tensor:
    """Return rows of one tensor of the shards, ``(S, *)`` float32; refuse a shard that changed since it was checked.

    ``stamps`` are the name and :func:`file_stamp` of each shard when it was checked, ``size`` is its number of pairs,
    and ``rows`` ``(S,)`` are positions among all of them. A shard is mapped only while its rows are copied.
    """
    values, numbers = torch.empty(len(rows), *shape), rows // size
    for number in numbers.unique().tolist():
        file, stamp = stamps[number]
        try:
            if file_stamp(folder / file) != stamp:
                raise UserError("it was written again since it was checked")
            with open_safetensors(folder / file) as tensors:
                stored = tensors.get_slice(name)
                for position in (numbers == number).nonzero()[:, 0].tolist():
                    values[position] = stored[int(rows[position]) % size]
        except Exception as error:  # the reader's own errors have no common class
            raise UserError(
                f"shard {folder / file} changed while it was in use ({error_text(error)}); {AGAIN}"
            ) from error
    return values


def file_stamp(path: Path) -> tuple[int, int]:
    """Return size and modification time of a file, zeros when there is none: they tell whether it was rewritten."""
    if not path.is_file():
        return 0, 0
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def shard_index(recipe: Json, entry: Json) -> dict[str, Tensor]:
    """Return the tensors of a shard that follow from its seeds: ``seeds (S,)`` and, unless stored, ``labels (S,)``."""
    seeds = range(entry["first_seed"], entry["first_seed"] + entry["count"])
    labels = None if "labels" in recipe.get(STORED, []) else labels_of_seeds(recipe["classes"], seeds)
    return {"seeds": torch.tensor(seeds)} | ({} if labels is None else {"labels": labels})


def check_shard(name: str, tensors: dict[str, Tensor], recipe: Json, entry: Json) -> dict[str, Tensor]:
    """Return the tensors of a shard once names, types, shapes and seeds are the recipe's, and targets finite."""
    index = shard_index(recipe, entry)
    target = torch.empty(entry["count"], *recipe["shape"], device="meta")  # for its shape alone
    stored = {key: {"noise": target, "labels": index["seeds"]}[key] for key in recipe.get(STORED, [])}
    wanted = {key: (x.dtype, *x.shape) for key, x in {**index, **stored, "target": target}.items()}
    if "decoded" in recipe:
        wanted["decoded"] = (torch.float16, entry["count"], *recipe["decoded"])
    got = {key: (x.dtype, *x.shape) for key, x in tensors.items()}
    if got != wanted or any(not torch.equal(tensors[key], x) for key, x in index.items()):
        raise UserError(
            f"{name} must hold {str(wanted)[:90]} from seed {entry['first_seed']} on, got {str(got)[:90]}"
        )
    check_finite(name, tensors["target"], index["seeds"])
    prompts = recipe.get("conditions", {}).get("prompts")
    if prompts is not None and "labels" in tensors:
        first, last = (int(label) for label in tensors["labels"].aminmax())
        if not 0 <= first <= last < len(prompts):
            raise UserError(f"{name} has labels {first} to {last}, but there are {len(prompts)} prompts")
    return tensors


def check_finite(name: str, target: Tensor, seeds: Tensor) -> None:
    """Refuse samples ``(S, *)`` that are not finite; names the first one's seed."""
    finite = target.reshape(len(target), -1).isfinite().all(1)
    if not bool(finite.all()):
        raise UserError(
            f"{name} is not finite for seed {int(seeds[~finite][0])}; check model, guidance and table"
        )


def differences(stored: Any, expected: Any, name: str = "") -> str:
    """Name the differences of two JSON values, or return the empty string."""
    if isinstance(stored, dict) and isinstance(expected, dict):
        sides = {key: (stored.get(key, "nothing"), expected.get(key, "nothing")) for key in stored | expected}
        return "; ".join(filter(None, (differences(*side, f"{name}.{key}") for key, side in sides.items())))
    if stored == expected:
        return ""
    return f"{name[1:]}: {reprlib.repr(stored)} stored, {reprlib.repr(expected)} expected"


def comparable(stored: Json, current: Json) -> dict[str, Any]:
    """Return a model's fingerprint with only those run-time settings that pairs of ``stored`` depend on.

    Pairs made in float32 serve every precision, and compilation or a flow's shift decides nothing in them.
    """
    rest = {key: value for key, value in current.items() if key != "compiled"}
    for key in {"precision", "shift"} - set(stored):
        rest.pop(key, None)
    return rest | ({"compiled": stored["compiled"]} if "compiled" in stored else {})
