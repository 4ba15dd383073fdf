"""Pairs on disk: a manifest that says what the folder is, and checksummed safetensors shards."""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gas.errors import UserError
from gas.io import (
    CHECKSUM,
    brief,
    one_line,
    open_regular,
    read_json,
    read_tensors,
    sealed,
    sha256,
    unsealed,
    whole_numbers,
    write_text,
)
from gas.models.seeds import labels_of_seeds

__all__ = [
    "AGAIN",
    "MANIFEST",
    "OPTIONAL",
    "RECIPE",
    "STORED",
    "checked",
    "comparable",
    "differences",
    "is_whole",
    "open_folder",
    "read_manifest",
    "read_shard",
    "shard_index",
    "write_manifest",
]

Json = Mapping[str, Any]
MANIFEST = "manifest.json"
RECIPE = ("model", "schedule", "shape", "table", "teacher", "guidance", "classes", "seeds", "shard", "batch")
# What an imported set keeps beside the targets because it does not follow from the seeds: noise, labels.
STORED = "stored"
# What labels mean to the model, and the shape of a decoded sample, where these are.
OPTIONAL = ("conditions", "decoded", STORED)
AGAIN = "run `gas pairs` again with the same settings"
_VERSION = 1
_LARGEST = 1 << 30  # numbers of a sample: 4 GB


def shard_index(recipe: Json, entry: Json) -> dict[str, Tensor]:
    """Return what a shard says of its seeds: ``seeds (S,)`` and, where they follow from them, ``labels (S,)``."""
    seeds = range(entry["first_seed"], entry["first_seed"] + entry["count"])
    labels = None if "labels" in recipe.get(STORED, []) else labels_of_seeds(recipe["classes"], seeds)
    return {"seeds": torch.tensor(seeds)} | ({} if labels is None else {"labels": labels})


def checked(name: str, tensors: dict[str, Tensor], recipe: Json, entry: Json) -> dict[str, Tensor]:
    """Return the tensors of a shard if they are what the recipe asks for; ``name`` is for the message."""
    index = shard_index(recipe, entry)
    target = torch.empty(entry["count"], *recipe["shape"], device="meta")  # for its shape alone
    stored = {key: {"noise": target, "labels": index["seeds"]}[key] for key in recipe.get(STORED, [])}
    wanted = {key: (x.dtype, *x.shape) for key, x in {**index, **stored, "target": target}.items()}
    if "decoded" in recipe:
        wanted["decoded"] = (torch.float16, entry["count"], *recipe["decoded"])
    found = {key: (x.dtype, *x.shape) for key, x in tensors.items()}
    if found != wanted or any(not torch.equal(tensors[key], x) for key, x in index.items()):
        raise UserError(
            f"{name} must hold {str(wanted)[:90]} from seed {entry['first_seed']} on, got {str(found)[:90]}"
        )
    finite = torch.isfinite(tensors["target"]).reshape(entry["count"], -1).all(1)
    if bad := index["seeds"][~finite].tolist():
        raise UserError(f"{name} is not finite for seed {bad[0]}; check model, guidance and table")
    return tensors


def _manifest(recipe: Json, checksums: Sequence[str | None] | None = None) -> dict[str, Any]:
    """Return the manifest of a recipe; all but the checksums follows from it."""
    (first, stop), size = recipe["seeds"], recipe["shard"]
    starts = range(first, stop, size)
    shards = [
        {"file": f"shard-{i:05d}.safetensors", "first_seed": s, "count": min(size, stop - s), "sha256": known}
        for i, (s, known) in enumerate(zip(starts, checksums or [None] * len(starts), strict=True))
    ]
    mark = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return {"version": _VERSION, "recipe": recipe, "recipe_sha256": mark, "shards": shards}


def open_folder(folder: Path, recipe: Json) -> dict[str, Any]:
    """Return the folder's manifest if of this recipe, or a new one, written; sweep up after a kill."""
    found = (folder / MANIFEST).exists()
    if not found and any(folder.glob("*.safetensors")):
        raise UserError(f"{folder} has safetensors files but no {MANIFEST}; choose another folder")
    manifest = read_manifest(folder) if found else _manifest(recipe)
    if other := differences(manifest["recipe"], {**recipe, "batch": manifest["recipe"]["batch"]}):
        raise UserError(f"{folder} holds pairs of other settings ({other}); choose another folder")
    if not found:
        write_manifest(folder, manifest)
        return manifest
    for stale in (*folder.glob(f".{MANIFEST}.*.tmp"), *folder.glob(".shard-*.safetensors.*.tmp")):
        stale.unlink(missing_ok=True)
    return manifest


def write_manifest(folder: Path, manifest: Json) -> None:
    """Write the manifest, whole or not at all."""
    write_text(folder / MANIFEST, json.dumps(sealed(manifest), indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest and hold it against what its own recipe implies."""
    path = folder / MANIFEST
    try:
        content: dict[str, Any] = read_json(path)
        version, implied = content["version"], {}
        manifest = {key: value for key, value in content.items() if key != CHECKSUM}
        if version == _VERSION:
            found = manifest["recipe"]
            recipe = {key: found[key] for key in (*RECIPE, *(key for key in OPTIONAL if key in found))}
            _check_recipe(recipe, manifest["shards"])
            implied = _manifest(recipe, [entry["sha256"] for entry in manifest["shards"]])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); choose another folder") from error
    if version != _VERSION:
        raise UserError(f"{path} has version {brief(version)}, but this gas-solver reads version {_VERSION}")
    if other := differences(manifest, implied):
        raise UserError(f"{path} is damaged or has unknown fields ({other[:200]}); choose another folder")
    unsealed(content, str(path))
    if names := {x.name for x in folder.glob("*.safetensors")} - {x["file"] for x in manifest["shards"]}:
        raise UserError(f"shard {folder / min(names)} is foreign, not in the manifest; move it away")
    return manifest


def _check_recipe(recipe: Json, shards: Any) -> None:
    """Refuse numbers that a shard's size and the list of shards do not bear out, before anything is built by them."""
    shape, seeds, decoded = recipe["shape"], recipe["seeds"], recipe.get("decoded", [])
    if not whole_numbers(shape, 8) or not whole_numbers(decoded, 8) or math.prod(shape) > _LARGEST:
        raise UserError(f"shape {brief(shape)} is none of samples")
    if not whole_numbers(seeds, 2) or len(seeds) != 2 or not seeds[0] < seeds[1] <= 1 << 63:
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
    """Return the tensors of one shard, or say what is wrong with the file."""
    path = folder / entry["file"]
    try:
        _check_size(path, entry, manifest["recipe"])
        tensors, metadata = read_tensors(path)
        mark = metadata.get("recipe")
    except (OSError, ValueError) as error:
        why = one_line(error) if isinstance(error, ValueError) else error.strerror
        raise UserError(f"shard {path} is missing, truncated or damaged ({why}); {AGAIN}") from error
    if mark != manifest["recipe_sha256"]:
        raise UserError(f"shard {path} is foreign, from a folder of other settings; {AGAIN}")
    if not is_whole(folder, entry):
        raise UserError(f"shard {path} is damaged: its checksum is not the manifest's; {AGAIN}")
    return checked(f"shard {path}", tensors, manifest["recipe"], entry)


def _check_size(path: Path, entry: Json, recipe: Json) -> None:
    """Refuse a file that is too small for what the manifest says of it, before that is counted out."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size < entry["count"] * math.prod(recipe["shape"]) * 4 or size < 8 * entry["count"]:
        raise UserError(
            f"{size:,} bytes are too few for {entry['count']:,} samples of {brief(recipe['shape'])}"
        )


def is_whole(folder: Path, entry: Json) -> bool:
    """Whether a shard is there with the checksum that the manifest has of it."""
    path = folder / entry["file"]
    return entry["sha256"] is not None and path.is_file() and sha256(path) == entry["sha256"]


def differences(there: Any, here: Any, name: str = "") -> str:
    """Name what differs between two JSON values, or return the empty string."""
    if isinstance(there, dict) and isinstance(here, dict):
        values = ((key, there.get(key, "nothing"), here.get(key, "nothing")) for key in {**there, **here})
        return "; ".join(filter(None, (differences(a, b, f"{name}.{key}") for key, a, b in values)))
    return "" if there == here else f"{name[1:]}: {reprlib.repr(there)} there, {reprlib.repr(here)} here"


def comparable(there: Json, here: Json) -> dict[str, Any]:
    """Return a student's identity as pairs made by ``there`` see it: float32 pairs serve every precision."""
    kept = {key: value for key, value in here.items() if key != "compiled"}
    for key in {"precision", "shift"} - set(there):  # a flow's shift decides nothing that pairs hold
        kept.pop(key, None)
    return kept | ({"compiled": there["compiled"]} if "compiled" in there else {})
