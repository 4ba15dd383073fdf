"""Teacher pairs in memory or on disk, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gas.arguments import number, of_type
from gas.errors import UserError
from gas.io import plain_json
from gas.models.protocol import Model, conditions_of
from gas.models.seeds import noise_of_seeds
from gas.pairs.fingerprint import model_fingerprint
from gas.pairs.leases import has_leases
from gas.pairs.shards import (
    AGAIN,
    MANIFEST,
    STORED,
    Json,
    Stamp,
    comparable,
    differences,
    file_stamp,
    read_manifest,
    read_rows,
    read_shard,
)
from gas.schedule import Schedule, schedule_from_config

# Fields of pairs with a row for each.
_ROWS = ("seeds", "noise", "target", "labels", "decoded", "scales")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Noise and the teacher's samples, row by row, in memory on the CPU.

    Args:
        seeds: ``(S,)`` int64.
        noise: ``(S, *)`` float32, standard normal, from the seeds alone.
        target: ``(S, *)`` float32, the teacher's sample from that noise.
        labels: ``(S,)`` int64, or ``None`` for samples without a class.
        manifest: of the folder; default that of a teacher without guidance.
        decoded: ``(S, *)`` float16, the decoded targets, if stored and requested.
        scales: ``(S,)`` float64, the guidance scale of each pair where they have several (:func:`join_scales`).
    """

    seeds: Tensor
    noise: Tensor
    target: Tensor
    labels: Tensor | None = None
    manifest: Mapping[str, Any] = field(default_factory=lambda: {"recipe": {"guidance": 1.0, "teacher": {}}})
    decoded: Tensor | None = None
    scales: Tensor | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    def __repr__(self) -> str:
        return f"<{len(self)} pairs of shape {'x'.join(map(str, self.sample_shape))}>"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.target.shape[1:])

    @property
    def guidance(self) -> float:
        """Scale of the teacher's classifier-free guidance; pairs of several scales have none (:meth:`by_scale`)."""
        if self.scales is not None:
            scales = ", ".join(f"{scale:g}" for scale in self.scales.unique().tolist())
            raise UserError(f"pairs have the guidance scales {scales}: take one, by_scale()[0]")
        return number("guidance of the pairs", self.manifest["recipe"]["guidance"], "(-inf, inf)")

    @property
    def prompts(self) -> list[str] | None:
        """The prompt of each row, or ``None`` when labels do not select prompts."""
        prompts = self.manifest["recipe"].get("conditions", {}).get("prompts")
        if prompts is None or self.labels is None:
            return None
        return [prompts[label] for label in self.labels.tolist()]

    @property
    def teacher(self) -> Mapping[str, Any]:
        """Description of the teacher in plain JSON."""
        return dict(self.manifest["recipe"]["teacher"])

    def load(self) -> Pairs:
        """Return all rows in memory."""
        return self

    def load_noise(self) -> Tensor:
        """Return the noise of all rows ``(S, *)`` in memory."""
        return self.noise

    def view(self, index: slice | Tensor) -> Self:
        """Return the rows of a slice, a boolean mask ``(S,)`` or a vector of positions, where they are."""
        parts = {name: getattr(self, name) for name in _ROWS}
        return replace(self, **{name: part[index] for name, part in parts.items() if part is not None})

    def subset(self, index: slice | Tensor) -> Pairs:
        """Return the rows of :meth:`view` in memory."""
        return self.view(index).load()

    def by_scale(self) -> list[Pairs]:
        """Return the pairs of each guidance scale, ascending."""
        if self.scales is None:
            return [self]
        parts = []
        for scale in self.scales.unique().tolist():
            recipe = {**self.manifest["recipe"], "guidance": scale}
            part = self.view(self.scales == scale)
            parts.append(replace(part, scales=None, manifest={**self.manifest, "recipe": recipe}))
        return parts

    def batches(self, size: int = 256) -> Iterator[Pairs]:
        """Yield all pairs in order, ``size`` in memory at a time."""
        for start in range(0, len(self), size):
            yield self.subset(slice(start, start + size))

    def split(self, validation: int) -> tuple[Self, Self]:
        """Return ``(train, the last validation rows)``, as views; at least one pair is left to train on."""
        if not 0 <= validation < len(self):
            raise UserError(
                f"validation must be from 0 to below {len(self)} pairs, got {validation}: use fewer for validation, "
                "or make more pairs"
            )
        cut = len(self) - validation
        return self.view(slice(0, cut)), self.view(slice(cut, None))


@dataclass(frozen=True, eq=False, repr=False)
class StoredPairs(Pairs):
    """Pairs on disk, for sets larger than memory: :meth:`subset`, :meth:`batches` and :meth:`load` read rows.

    Seeds and labels are in memory; ``noise`` and ``target`` have a shape, but no data (torch's meta device).
    """

    folder: Path = field(kw_only=True)
    stamps: Sequence[Stamp] = field(kw_only=True)
    rows: Tensor = field(kw_only=True)

    def view(self, index: slice | Tensor) -> Self:
        positions = torch.arange(len(self))[index]
        return replace(super().view(positions), rows=self.rows[positions])

    def load(self) -> Pairs:
        noise, target = self.load_noise(), self._read("target")
        return Pairs(seeds=self.seeds, noise=noise, target=target, labels=self.labels, manifest=self.manifest)

    def load_noise(self) -> Tensor:
        if "noise" in self.manifest["recipe"].get(STORED, []):
            return self._read("noise")
        return noise_of_seeds(self.sample_shape, self.seeds.tolist())

    def _read(self, name: str) -> Tensor:
        size = self.manifest["recipe"]["shard"]
        return read_rows(self.folder, self.stamps, size, self.rows, name, self.sample_shape)


def read_pairs(
    folder: Path | str,
    *,
    model: Model | None = None,
    student: bool = False,
    hold: bool = True,
    decoded: bool = False,
) -> Pairs:
    """Read a finished folder, every byte checked; noise is generated again unless it was imported with the pairs.

    Args:
        folder: of the pairs.
        model: if given, the pairs must have been made with this very model, schedule and meaning of labels, at its
            precision or in float32; compilation does not matter.
        student: the model may be another than the pairs', its teacher: a quantized, pruned or fused copy, say. Shape,
            schedule and meaning of labels must still be theirs.
        hold: keep everything in memory. Otherwise check every byte now, one shard at a time, and return
            :class:`StoredPairs`, which read rows on demand to the same bits: training then holds a batch, not the set.
        decoded: also return the decoded samples, in memory.

    Raises:
        FileNotFoundError: when the folder has no manifest.
        UserError: when the set is unfinished, another model's, or has a missing, damaged or foreign file.
    """
    folder, is_loaded = Path(folder), hold or decoded
    manifest = _finished_manifest(folder, model, student, decoded)
    recipe, stamps, parts = manifest["recipe"], [], []
    unread = [] if decoded else ["decoded"]
    unread += [] if is_loaded else ["target", "noise"]
    for entry in manifest["shards"]:
        stamps.append((entry["file"], file_stamp(folder / entry["file"])))
        tensors = read_shard(folder, entry, manifest)
        parts.append({name: value for name, value in tensors.items() if name not in unread})
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    seeds, labels, shape = tensors["seeds"], tensors.get("labels"), tuple(recipe["shape"])
    if is_loaded:
        noise = tensors["noise"] if "noise" in tensors else noise_of_seeds(shape, range(*recipe["seeds"]))
        target, images = tensors["target"], tensors.get("decoded")
        return Pairs(
            seeds=seeds, noise=noise, target=target, labels=labels, manifest=manifest, decoded=images
        )
    blank, rows = torch.empty(len(seeds), *shape, device="meta"), torch.arange(len(seeds))
    return StoredPairs(
        seeds=seeds,
        noise=blank,
        target=blank,
        labels=labels,
        manifest=manifest,
        folder=folder,
        stamps=stamps,
        rows=rows,
    )


def _finished_manifest(folder: Path, model: Model | None, student: bool, decoded: bool) -> Json:
    """Read the manifest of a finished set of this model."""
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}, so no pairs; make some with `gas pairs`")
    manifest = read_manifest(folder)
    recipe, shards = manifest["recipe"], manifest["shards"]
    if model is not None:
        rest = {key: value for key, value in recipe.items() if key != "conditions"}
        expected = {**rest, **model_fingerprint(model), "shape": list(model.sample_shape)}
        expected["model"] = recipe["model"] if student else comparable(recipe["model"], expected["model"])
        if other := differences(recipe, expected):
            advice = "" if student else "; to learn for a copy of it add --student, in Python student=True"
            raise UserError(
                f"the pairs in {folder} were made with another model or schedule{advice} ({other})"
            )
    total, done = len(range(*recipe["seeds"])), sum(entry["count"] for entry in shards if entry["sha256"])
    if done < total:
        shared = ", or wait for the processes that share it" if has_leases(folder) else ""
        raise UserError(f"{folder} is unfinished, {done} of {total} pairs; {AGAIN}{shared}")
    if decoded and "decoded" not in recipe:
        raise UserError(
            f"the pairs in {folder} were stored without decoded samples; make them with decoded=True"
        )
    return manifest


def check_pairs(pairs: Pairs, model: Model, name: str = "pairs") -> None:
    """Refuse anything but pairs of the model's sample shape; ``name`` is that of the argument."""
    of_type(name, pairs, Pairs, "gas.Pairs")
    if len(pairs) and pairs.sample_shape != tuple(model.sample_shape):
        raise UserError(
            f"{name} have samples of shape {pairs.sample_shape}, model {model.name} of {tuple(model.sample_shape)}: "
            "make pairs with this model"
        )


def check_conditions(model: Model, pairs: Pairs) -> None:
    """Refuse pairs of other noise, or whose labels select other prompts or observations, than the model's."""
    stored = pairs.manifest["recipe"].get("schedule")
    if stored is not None and not _starts_alike(stored, model.schedule):
        raise UserError(
            f"the pairs were made on schedule {stored['kind']}, of other noise than the schedule of {model.name}: "
            "a student has its teacher's"
        )
    stored = pairs.manifest["recipe"].get("conditions")
    if stored is None or pairs.labels is None:
        return
    current = plain_json(conditions_of(model).get("conditions", {}), finite=False)
    if other := differences(stored, current):
        raise UserError(f"the pairs were made with other conditions than those of {model.name} ({other})")


def _starts_alike(stored: Json, schedule: Schedule) -> bool:
    """Whether a stored schedule starts from the noise of another; how EDM's go on depends on their ``t_end``."""
    if stored == plain_json(schedule.config(), finite=False):
        return True
    try:
        other = schedule_from_config(stored)
    except UserError:  # a user's own class, which no file can make again
        return True
    start = torch.tensor(1.0, dtype=torch.float64)
    return math.isclose(float(other.half_log_snr(start)), float(schedule.half_log_snr(start)), abs_tol=1e-3)


def teacher_of(pairs: Pairs, model: Model) -> dict[str, Any]:
    """Return the description of the teacher, with its ``model`` where this one is another: a student."""
    stored = pairs.manifest["recipe"].get("model")
    if stored is None or stored == comparable(stored, model_fingerprint(model)["model"]):
        return dict(pairs.teacher)
    return {**pairs.teacher, "model": stored}


def check_scales(parts: Sequence[Pairs]) -> None:
    """Refuse pairs of which two have one guidance scale, or differ in more than that and their seeds."""
    scales = [part.guidance for part in parts]
    if len(set(scales)) != len(scales):
        raise UserError(
            f"pairs of one guidance scale each, got those of {', '.join(f'{w:g}' for w in scales)}"
        )
    _check_recipes(parts, "pairs of several guidance scales must differ in nothing else", "guidance")


def _check_recipes(parts: Sequence[Pairs], problem: str, *apart: str) -> None:
    """Refuse pairs that were made in several ways, apart from their seeds and some settings."""
    free = dict.fromkeys((*apart, "seeds"))
    first, *others = ({**part.manifest["recipe"], **free} for part in parts)
    for other in others:
        if wrong := differences(first, other):
            raise UserError(f"{problem} ({wrong})")


def join_scales(parts: Sequence[Pairs]) -> Pairs:
    """Return pairs of one teacher at several guidance scales as one set in memory, ascending.

    Raises:
        UserError: when two parts have one scale, or differ in more than that.
    """
    check_scales(parts)
    parts = sorted(parts, key=lambda part: part.guidance)
    column = torch.cat([torch.full((len(part),), part.guidance, dtype=torch.float64) for part in parts])
    return replace(_joined(parts), scales=column)


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """Return pairs of one teacher as one set in memory, in order.

    Raises:
        UserError: without any part, for parts that were made in several ways or share seeds, or when only some have
            labels, or one has pairs of several guidance scales.
    """
    if not parts:
        raise UserError("join_pairs needs at least one set of pairs, got none")
    if len({part.labels is None for part in parts}) > 1 or any(part.scales is not None for part in parts):
        raise UserError("join_pairs needs sets of one guidance scale each, all of them with labels or none")
    _check_recipes(parts, "join_pairs needs pairs of one teacher and model")
    seeds = torch.cat([part.seeds for part in parts])
    if len(seeds.unique()) < len(seeds):
        raise UserError("join_pairs needs sets of different seeds, got some seeds twice")
    return _joined(parts)


def _joined(parts: Sequence[Pairs]) -> Pairs:
    """Return pairs as one set in memory, in order, with the manifest of the first."""
    loaded = [part.load() for part in parts]
    seeds, noise, target = (torch.cat([getattr(x, k) for x in loaded]) for k in ("seeds", "noise", "target"))
    given = [part.labels for part in loaded if part.labels is not None]
    labels = torch.cat(given) if given else None
    return Pairs(seeds=seeds, noise=noise, target=target, labels=labels, manifest=parts[0].manifest)
