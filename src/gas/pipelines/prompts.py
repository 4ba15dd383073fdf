"""Prompt files, and encodings of prompts that are computed once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from gas.errors import UserError
from gas.io import JSON_BYTES, read_bytes

# Two prompts of one word: a pipeline that pads to the longest prompt of a batch pads neither.
_PROBES = ("cat", "dog")

# Encodings of a batch and of its rows differ by rounding, in bfloat16 by 2^-8 a layer; rows in the wrong place by 1.
_TOLERANCE = 0.1


class UnequalEncodings(Exception):
    """Encodings of these prompts cannot form a batch: their lengths differ, or the pipeline mixes them."""


class PromptCache:
    """A pipeline's ``encode_prompt`` whose results are kept on the CPU, each prompt encoded once and by itself.

    An encoding therefore does not depend on its batch, and after the first use the text encoders are not needed: once
    they are ``freed``, only known prompts can be used. How the encodings of several prompts form that of a batch is
    found by encoding two words both ways: rows are stacked (several blocks of rows for guidance are interleaved as the
    pipeline has them), listed, or shared.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._encode: Callable[..., Any] = type(pipe).encode_prompt
        self._signature = inspect.signature(self._encode)
        self._encodings: dict[str, Any] = {}
        self._layouts: dict[str, list[str]] = {}
        self.freed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what ``encode_prompt`` returns, or raise :class:`UnequalEncodings`."""
        arguments = dict(self._signature.bind(self._pipe, *args, **kwargs).arguments)
        texts = {name: tuple(value) for name, value in arguments.items() if _is_texts(value)}
        if not texts or any(isinstance(value, Tensor) for value in arguments.values()):
            return self._encode(**arguments)
        size = max(map(len, texts.values()))
        rows = [self._row(arguments, _pick(texts, n, size)) for n in range(size)]
        encoding = rows[0]
        if size > 1:
            parts = tuple(map(_join, self._layout(arguments, texts), zip(*map(_parts, rows), strict=True)))
            encoding = parts if isinstance(encoding, tuple) else parts[0]
        device = self._pipe._execution_device  # diffusers looks through all modules for it: milliseconds
        return tree_map_only(Tensor, lambda x: x.to(device), encoding)

    def _row(self, arguments: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> Any:
        """The encoding of one prompt, on the CPU."""
        call = {**arguments, **{name: list(value) for name, value in texts.items()}}
        key = _key(call)
        if key not in self._encodings:
            if self.freed:
                raise UserError(
                    f"prompt {next(iter(texts.values()))[0][:60]!r} was not encoded before the encoders were freed"
                )
            with torch.no_grad():
                encoding = self._encode(**call)
            self._encodings[key] = _on_cpu(encoding)
        return self._encodings[key]

    def _layout(self, arguments: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> list[str]:
        """How each return value of a batch follows from those of its rows."""
        key = _key({**arguments, **dict.fromkeys(texts)})
        if key not in self._layouts:
            probes = {name: list(_PROBES) for name in texts}
            rows = [_parts(self._row(arguments, _pick(probes, n, 2))) for n in range(2)]
            with torch.no_grad():
                batch = _parts(_on_cpu(self._encode(**{**arguments, **probes})))
            self._layouts[key] = list(map(_kind, batch, zip(*rows, strict=True)))
        return self._layouts[key]


def _is_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(text, str) for text in value)


def _pick(texts: Mapping[str, Sequence[str]], n: int, size: int) -> dict[str, Sequence[str]]:
    return {name: value[n : n + 1] if len(value) == size else value for name, value in texts.items()}


def _key(call: Mapping[str, Any]) -> str:
    return repr({name: value for name, value in call.items() if name != "self"})


def _on_cpu(encoding: Any) -> Any:
    return tree_map_only(Tensor, Tensor.cpu, encoding)


def _parts(encoding: Any) -> Sequence[Any]:
    return encoding if isinstance(encoding, tuple) else (encoding,)


def _kind(batch: Any, rows: Sequence[Any]) -> str:
    """The kind of :func:`_join` that makes a batch of its rows."""
    for kind in ("stacked", "shared"):
        try:
            joined = _join(kind, rows)
        except UnequalEncodings:
            continue
        if _is_close(joined, batch):
            return kind
    return "mixed"


def _join(kind: str, rows: Sequence[Any]) -> Any:
    """One return value for a batch, from those of its rows."""
    if kind == "shared" or rows[0] is None:
        return rows[0]
    if kind == "stacked" and all(isinstance(row, list) for row in rows):
        return [item for row in rows for item in row]
    if kind == "stacked" and all(
        isinstance(row, Tensor) and row.shape == rows[0].shape and row.ndim for row in rows
    ):
        return torch.stack(list(rows), 1).flatten(0, 1)
    raise UnequalEncodings


def _is_close(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_is_close, a, b))
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    if a.shape != b.shape:
        return False
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= _TOLERANCE * b.abs().max()) if a.numel() else True


def read_prompts(path: str | Path) -> list[str]:
    """Read a UTF-8 text file of one prompt a line, without blank lines.

    Raises:
        ValueError: when it is too large, not UTF-8, or has no prompt.
    """
    try:
        text = read_bytes(path, JSON_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"prompt file {path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except UserError as error:
        raise UserError(f"prompt file {path}: {error}") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"prompt file {path} is empty: write one prompt a line")
    return prompts
