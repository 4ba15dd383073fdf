"""Conditions of any kind, row by row: observations, embeddings, tuples and dictionaries of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gas.errors import UserError


def row_count(conditions: Any) -> int:
    """Return the number of rows, which all tensors of the conditions must share."""
    lengths = {len(tensor) if tensor.ndim else 0 for _, tensor in _named_tensors(conditions)}
    if len(lengths) != 1 or 0 in lengths:
        raise UserError(
            "conditions must be a tensor (N, *), or a tuple or dict of them, N rows each and at least one, got "
            f"{sorted(lengths) or 'no'} rows"
        )
    return lengths.pop()


def check_like(conditions: Any, known: Any) -> None:
    """Refuse conditions of another structure, or other shapes of a row, than those that are known."""
    kinds = [
        {name: tuple(tensor.shape[1:]) for name, tensor in _named_tensors(each)}
        for each in (conditions, known)
    ]
    if kinds[0] != kinds[1]:
        shown = [", ".join(f"{name[1:]} {shape}".strip() for name, shape in kind.items()) for kind in kinds]
        raise UserError(f"conditions must be rows of {shown[1]}, got rows of {shown[0]}")


def take_rows(conditions: Any, rows: Tensor, device: torch.device) -> Any:
    """Return rows ``(B,)`` of every tensor, on a device, in the structure of ``conditions``."""
    return _mapped(lambda tensor: tensor[rows.to(tensor.device)].to(device), conditions)


def slice_rows(conditions: Any, rows: slice) -> Any:
    """Return consecutive rows of every tensor, where they are, in the structure of ``conditions``."""
    return _mapped(lambda tensor: tensor[rows], conditions)


def append_row(conditions: Any, row: Any) -> Any:
    """Return conditions with one more row, whose tensors may have a leading dimension of 1 or none."""

    def joined(table: Tensor, last: Tensor) -> Tensor:
        last = torch.as_tensor(last, dtype=table.dtype, device=table.device)
        if last.numel() != table[0].numel():
            raise UserError(
                f"null must be one row of conditions, {tuple(table.shape[1:])}, got shape {tuple(last.shape)}"
            )
        return torch.cat([table, last.reshape(1, *table.shape[1:])])

    try:
        return _mapped(joined, conditions, row)
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"null must have the structure of conditions, one row of each tensor ({error!r})"
        ) from error


def describe_rows(conditions: Any) -> dict[str, Any]:
    """Return the number of rows and a SHA-256 of names, types, shapes and values, in plain JSON."""
    digest = hashlib.sha256()
    for name, tensor in _named_tensors(conditions):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return {"rows": row_count(conditions), "sha256": digest.hexdigest()}


def _mapped(function: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    if isinstance(first, Mapping):
        return {key: _mapped(function, first[key], *(other[key] for other in others)) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_mapped(function, part, *(o[i] for o in others)) for i, part in enumerate(first))
    return function(first, *others)


def _named_tensors(conditions: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its path; dictionaries in the order of their keys, not of insertion."""
    if isinstance(conditions, Tensor):
        yield name, conditions
        return
    if not isinstance(conditions, (Mapping, tuple, list)):
        raise UserError(
            f"conditions are tensors, or tuples or dicts of them, got {type(conditions).__name__}"
        )
    parts = sorted(conditions.items()) if isinstance(conditions, Mapping) else enumerate(conditions)
    for key, part in parts:
        yield from _named_tensors(part, f"{name}.{key}")
