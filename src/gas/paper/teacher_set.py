"""Published teacher sets (``dataset.pkl``) as folders of pairs, converted a few rows at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gas.display import contents
from gas.errors import UserError
from gas.io import plain_json, sha256, write_text
from gas.models.protocol import Model
from gas.pairs.shards import MANIFEST, STORED, Json, check_shard, open_folder, shard_index, write_shard
from gas.pairs.teacher import PairsProgress
from gas.unpickle.allowed import FileTensor
from gas.unpickle.loading import read_pickle

PROMPTS = "prompts.json"
Rows = Tensor | FileTensor


@dataclass(frozen=True, eq=False)
class TeacherSet:
    """A published set of S teacher pairs, its large tensors still on disk.

    ``noise`` was drawn by the authors, not by our rule; ``target`` are latents if the file has them, else images. There
    are ``labels`` or ``prompts``, or neither.
    """

    path: Path
    noise: Rows
    target: Rows
    labels: Tensor | None
    prompts: list[str] | None

    def __len__(self) -> int:
        return len(self.noise)


def is_teacher_set(data: Any) -> bool:
    """Return whether the contents of a file have the entries of a teacher set."""
    return isinstance(data, Mapping) and {"noise", "images", "latents"} <= set(data)


def read_teacher_set(path: str | Path, data: Any = None) -> TeacherSet:
    """Read ``dataset.pkl``: a dict of ``noise``, ``images``, ``latents`` and ``condition``; nothing is executed.

    ``data`` is the content of the file, if it was read already.

    Raises:
        UserError: when the file is damaged, unsafe, or has other entries or shapes.
    """
    path = Path(path)
    data = read_pickle(path, lazy=True) if data is None else data
    if not is_teacher_set(data):
        raise UserError(f"{path} is no teacher set of noise, images and latents; it holds {contents(data)}")
    noise = data["noise"]
    target = data["latents"] if isinstance(data["latents"], Rows) else data["images"]
    for name, rows in (("noise", noise), ("target", target)):
        if not isinstance(rows, Rows) or not rows.dtype.is_floating_point or len(rows.shape) < 2:
            kind = f"{rows.dtype} {tuple(rows.shape)}" if isinstance(rows, Rows) else type(rows).__name__
            raise UserError(f"{path}: {name} should be a float tensor (S, *), got {kind}")
    if noise.shape != target.shape or len(noise) == 0:
        shapes = f"{tuple(noise.shape)} and {tuple(target.shape)}"
        raise UserError(f"{path}: noise and target should have one shape and a row or more, got {shapes}")
    return TeacherSet(path, noise, target, *_conditions(path, data.get("condition"), len(noise)))


def import_pairs(
    teachers: TeacherSet,
    folder: Path | str,
    *,
    model: Model | None = None,
    guidance: float = 1.0,
    shard: int = 256,
) -> Iterator[PairsProgress]:
    """Write a teacher set as a folder that :func:`gas.read_pairs` reads, one shard in memory at a time.

    The noise is stored: the authors' generators are not ours, so it does not follow from the seeds. Killed at any
    point and called again, this goes on where it stopped. Prompts are written beside the shards, to ``prompts.json``.

    Args:
        folder: new, empty or of an earlier run.
        model: of the pairs; without it they belong to no model in particular.
        guidance: scale of classifier-free guidance that the teacher ran with.
        shard: rows a file.

    Raises:
        UserError: when the model's shape or classes are others, a value is not finite, or the folder holds
            other pairs.
    """
    folder = Path(folder)
    recipe = _recipe(teachers, model, guidance, shard)
    folder.mkdir(parents=True, exist_ok=True)
    foreign = (folder / PROMPTS).exists() and not (folder / MANIFEST).exists()
    if foreign and teachers.prompts is not None:
        raise UserError(f"{folder} holds a {PROMPTS} of no teacher pairs; choose another folder")
    manifest, missing = open_folder(folder, recipe)
    if teachers.prompts is not None:
        write_text(folder / PROMPTS, json.dumps(teachers.prompts) + "\n")
    todo = [manifest["shards"][number] for number in missing]
    done = resumed = len(teachers) - sum(entry["count"] for entry in todo)
    yield PairsProgress(done, len(teachers), resumed)
    for entry in todo:
        write_shard(folder, manifest, entry, _shard(teachers, manifest["recipe"], entry))
        done += entry["count"]
        yield PairsProgress(done, len(teachers), resumed)


def _shard(teachers: TeacherSet, recipe: Json, entry: Json) -> dict[str, Tensor]:
    rows = slice(entry["first_seed"], entry["first_seed"] + entry["count"])
    tensors = {name: getattr(teachers, name)[rows].float().contiguous() for name in ("target", "noise")}
    if teachers.labels is not None:
        tensors["labels"] = teachers.labels[rows].clone()
    return check_shard(str(teachers.path), tensors | shard_index(recipe, entry), recipe, entry)


def _recipe(teachers: TeacherSet, model: Model | None, guidance: float, shard: int) -> dict[str, Any]:
    """Return the fingerprint of the folder, in plain JSON."""
    if shard < 1:
        raise UserError(f"shard must be 1 or more, got {shard}")
    shape, classes = list(teachers.noise.shape[1:]), 0
    if teachers.labels is not None:
        classes = model.classes if model is not None else int(teachers.labels.max()) + 1
        if int(teachers.labels.min()) < 0 or int(teachers.labels.max()) >= classes:
            raise UserError(f"{teachers.path} has labels outside 0 to {classes - 1}, which the model knows")
    if model is not None and list(model.sample_shape) != shape:
        raise UserError(
            f"{teachers.path} has samples of shape {shape}, {model.name} of {list(model.sample_shape)}"
        )
    digest = sha256(teachers.path)
    recipe = {
        "model": {} if model is None else dict(model.fingerprint()),
        "schedule": {} if model is None else model.schedule.config(),
        "shape": shape,
        "table": digest,
        "teacher": {"imported": teachers.path.name, "sha256": digest},
        "guidance": guidance,
        "classes": classes,
        "seeds": [0, len(teachers)],
        "shard": shard,
        "batch": shard,
        STORED: ["noise"] if teachers.labels is None else ["noise", "labels"],
    }
    return dict(plain_json(recipe))


def _conditions(path: Path, condition: Any, count: int) -> tuple[Tensor | None, list[str] | None]:
    """Return the classes or the prompts of the rows, or neither."""
    if isinstance(condition, FileTensor):
        condition = condition[:]
    if isinstance(condition, Tensor):
        if condition.shape != (count,) or condition.dtype.is_floating_point:
            kind = f"{condition.dtype} {tuple(condition.shape)}"
            raise UserError(f"{path}: condition should be {count} classes, got {kind}")
        return condition.long(), None
    if condition is None or (isinstance(condition, list) and all(entry is None for entry in condition)):
        return None, None
    if isinstance(condition, (list, tuple)) and all(isinstance(entry, str) for entry in condition):
        if len(condition) != count:
            raise UserError(f"{path}: condition should be {count} prompts, got {len(condition)}")
        return None, list(condition)
    raise UserError(f"{path}: condition should be classes, prompts or None, got {type(condition).__name__}")
