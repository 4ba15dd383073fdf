"""Pairs on disk: a manifest that says what the folder is, and checksummed safetensors shards."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from gas.files import sha256, write_text
from gas.model import labels_of_seeds

__all__ = [
    "AGAIN",
    "MANIFEST",
    "OPTIONAL",
    "RECIPE",
    "checked",
    "comparable",
    "differences",
    "is_whole",
    "open_folder",
    "read_manifest",
]
__all__ += ["STORED", "read_shard", "shard_index", "write_manifest"]

Json = Mapping[str, Any]
MANIFEST = "manifest.json"
RECIPE = ("model", "schedule", "shape", "table", "teacher", "guidance", "classes", "seeds", "shard", "batch")
# What an imported set keeps beside the targets because it does not follow from the seeds: noise, labels.
STORED = "stored"
# What labels mean to the model, and the shape of a decoded sample, where these are.
OPTIONAL = ("conditions", "decoded", STORED)
AGAIN = "run `gas pairs` again with the same settings"
_VERSION = 1


def shard_index(recipe: Json, entry: Json) -> dict[str, Tensor]:
    """Return what a shard says of its seeds: ``seeds (S,)`` and, where they follow from them, ``labels (S,)``."""
    seeds = range(entry["first_seed"], entry["first_seed"] + entry["count"])
    labels = None if "labels" in recipe.get(STORED, []) else labels_of_seeds(recipe["classes"], seeds)
    return {"seeds": torch.tensor(seeds)} | ({} if labels is None else {"labels": labels})


def checked(name: str, tensors: dict[str, Tensor], recipe: Json, entry: Json) -> dict[str, Tensor]:
    """Return the tensors of a shard if they are what the recipe asks for; ``name`` is for the message."""
    index, target = shard_index(recipe, entry), torch.empty(entry["count"], *recipe["shape"])
    stored = {key: {"noise": target, "labels": index["seeds"]}[key] for key in recipe.get(STORED, [])}
    wanted = {key: (x.dtype, *x.shape) for key, x in {**index, **stored, "target": target}.items()}
    if "decoded" in recipe:
        wanted["decoded"] = (torch.float16, entry["count"], *recipe["decoded"])
    found = {key: (x.dtype, *x.shape) for key, x in tensors.items()}
    if found != wanted or any(not torch.equal(tensors[key], x) for key, x in index.items()):
        raise ValueError(f"{name} must hold {wanted} from seed {entry['first_seed']} on, got {found}")
    finite = torch.isfinite(tensors["target"]).reshape(entry["count"], -1).all(1)
    if bad := index["seeds"][~finite].tolist():
        raise ValueError(f"{name} is not finite for seed {bad[0]}; check model, guidance and table")
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
        raise ValueError(f"{folder} has safetensors files but no {MANIFEST}; choose another folder")
    manifest = read_manifest(folder) if found else _manifest(recipe)
    if other := differences(manifest["recipe"], {**recipe, "batch": manifest["recipe"]["batch"]}):
        raise ValueError(f"{folder} holds pairs of other settings ({other}); choose another folder")
    if not found:
        write_manifest(folder, manifest)
        return manifest
    for stale in (*folder.glob(f".{MANIFEST}.*.tmp"), *folder.glob(".shard-*.safetensors.*.tmp")):
        stale.unlink(missing_ok=True)
    return manifest


def write_manifest(folder: Path, manifest: Json) -> None:
    """Write the manifest, whole or not at all."""
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest and hold it against what its own recipe implies."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        version, implied = manifest["version"], {}
        if version == _VERSION:
            found = manifest["recipe"]
            recipe = {key: found[key] for key in (*RECIPE, *(key for key in OPTIONAL if key in found))}
            implied = _manifest(recipe, [entry["sha256"] for entry in manifest["shards"]])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); choose another folder") from error
    if version != _VERSION:
        raise ValueError(f"{path} has version {version!r}, but this gas-solver reads version {_VERSION}")
    if other := differences(manifest, implied):
        raise ValueError(f"{path} is damaged or has unknown fields ({other}); choose another folder")
    if names := {x.name for x in folder.glob("*.safetensors")} - {x["file"] for x in manifest["shards"]}:
        raise ValueError(f"shard {folder / min(names)} is foreign, not in the manifest; move it away")
    return manifest


def read_shard(folder: Path, entry: Json, manifest: Json) -> dict[str, Tensor]:
    """Return the tensors of one shard, or say what is wrong with the file."""
    path = folder / entry["file"]
    try:
        with safe_open(path, framework="pt") as file:
            mark = (file.metadata() or {}).get("recipe")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:
        raise ValueError(f"shard {path} is missing, truncated or damaged ({error}); {AGAIN}") from error
    if mark != manifest["recipe_sha256"]:
        raise ValueError(f"shard {path} is foreign, from a folder of other settings; {AGAIN}")
    if not is_whole(folder, entry):
        raise ValueError(f"shard {path} is damaged: its checksum is not the manifest's; {AGAIN}")
    return checked(f"shard {path}", tensors, manifest["recipe"], entry)


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
