"""What decides the bytes of a set of teacher pairs, in plain JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gas.arguments import MAX_BATCH, MAX_SEEDS, integer, number, of_type
from gas.errors import UserError
from gas.io import plain_json
from gas.models.protocol import Model, conditions_of, decode_all
from gas.models.seeds import noise_of_seeds
from gas.table import Table, require_plain


@dataclass(frozen=True)
class PairsSpec:
    """What decides the bytes of a set of pairs, beside the model and the teacher's table.

    Args:
        seeds: one sample each; contiguous.
        teacher: description of the table for the manifest, in plain JSON (else TypeError when writing); default that
            of a :class:`gas.Classical`, empty for another table.
        guidance: scale of classifier-free guidance; 1 is the plain conditional model.
        shard: samples a file.
        labelled: give a class-conditional model the label ``seed mod classes``.
        decoded: also store the decoded samples, as float16.
    """

    seeds: range
    teacher: Mapping[str, Any] | None = None
    guidance: float = 1.0
    shard: int = 256
    labelled: bool = True
    decoded: bool = False

    def __post_init__(self) -> None:
        s = self.seeds
        if not isinstance(s, range) or len(s) == 0 or s.step != 1 or s.start < 0 or s.stop > 2**63:
            raise UserError(f"seeds must be a non-empty range with step 1, of seeds from 0 up, got {s!r}")
        if len(s) > MAX_SEEDS:
            raise UserError(f"seeds must be at most {MAX_SEEDS:,}, got {len(s):,}")
        if self.teacher is not None:
            of_type("teacher", self.teacher, Mapping, "a description in plain JSON, a dict")
        number("guidance", self.guidance, "(-inf, inf)")
        integer("shard", self.shard, 1, MAX_SEEDS)
        of_type("labelled", self.labelled, bool, "True or False")
        of_type("decoded", self.decoded, bool, "True or False")


def model_fingerprint(model: Model) -> dict[str, Any]:
    """Return the part of a manifest's recipe that describes the model, in plain JSON."""
    facts: dict[str, Any] = {
        "model": dict(model.fingerprint()),
        "schedule": model.schedule.config(),
        **conditions_of(model),
    }
    return dict(plain_json(facts))


def pairs_fingerprint(model: Model, table: Table, spec: PairsSpec, batch: int) -> dict[str, Any]:
    """Return the recipe of a manifest: everything that decides the bytes of a set of pairs, in plain JSON."""
    integer("batch", batch, 1, MAX_BATCH)
    shape, seeds = list(model.sample_shape), [spec.seeds.start, spec.seeds.stop]
    if not torch.equal(model.noise(seeds[:1]).cpu(), noise_of_seeds(shape, seeds[:1])):
        raise UserError(
            f"model.noise({seeds[:1]}) must be gas.models.noise_of_seeds: only the seed is stored"
        )
    require_plain(table, "a teacher of pairs")
    arrays = (x.cpu().numpy().astype("<f8").tobytes() for x in (table.times, table.states, table.outputs))
    settings: dict[str, Any] = {
        "shape": shape,
        "table": hashlib.sha256(b"".join(arrays)).hexdigest(),
        "teacher": dict(spec.teacher or {}),
        "guidance": spec.guidance,
        "classes": model.classes if spec.labelled else 0,
        "seeds": seeds,
        "shard": spec.shard,
        "batch": batch,
    }
    if spec.decoded:
        settings["decoded"] = list(decode_all(model, [model.noise(seeds[:1])]).shape[1:])
    return model_fingerprint(model) | dict(plain_json(settings))
