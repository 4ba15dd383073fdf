"""Prompts: where they come from, and their encodings, computed once each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gas.io import read_text

__all__ = ["TextCache", "read_prompts"]


class TextCache:
    """Encodings of prompts, each computed alone and once, kept on the CPU.

    Encoded alone, a prompt's numbers do not depend on what else was in its batch. How much they weigh depends on the
    encoders: 0.2 MB a prompt of Stable Diffusion 1 in half precision, 4 MB of one with T5-XXL.

    Args:
        encode: ``encode(prompt)`` -> named tensors, each with a batch of 1.
    """

    def __init__(self, encode: Callable[[str], dict[str, Tensor]]) -> None:
        self._encode = encode
        self._known: dict[str, dict[str, Tensor]] = {}

    def __call__(self, prompts: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Return the encodings of a batch of prompts, each tensor ``(B, *)``, on a device."""
        for prompt in prompts:
            if prompt not in self._known:
                with torch.no_grad():
                    self._known[prompt] = {name: x.cpu() for name, x in self._encode(prompt).items()}
        rows = [self._known[prompt] for prompt in prompts]
        return {name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]}


def read_prompts(path: str | Path) -> list[str]:
    """Read a UTF-8 text file of one prompt a line; blank lines are left out.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not UTF-8, or no line holds a prompt.
    """
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"prompt file {path} is not UTF-8 (byte {error.start}): save it as UTF-8, one prompt a line"
        ) from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"prompt file {path} is empty: write one prompt a line")
    return prompts
