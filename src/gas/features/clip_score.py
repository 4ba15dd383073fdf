"""CLIP score: how well images match their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gas.errors import UserError
from gas.features.transformer import ClipImages

__all__ = ["ClipScore"]


class ClipScore:
    """``100 max(cos(E_image, E_text), 0)`` of each image and its text, by a CLIP on disk.

    Args:
        folder: of transformers' ``CLIPModel`` with its tokenizer.
        device: where it runs.

    Raises:
        FileNotFoundError: when the weights are missing.
        ValueError: when the folder holds no such model or tokenizer.

    References:
        Hessel et al., arXiv 2104.08718, equation 1 with w = 100, as text-to-image work reports it.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        self.images = ClipImages(folder).to(device)
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # its readers' errors have no common class
            raise UserError(f"{folder} holds no tokenizer: {str(error).splitlines()[0]}") from error

    @torch.no_grad()
    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Return the score of each pair ``(B,)``, from 0 to 100.

        Args:
            images: ``(B, 1 or 3, H, W)`` in [-1, 1].
            texts: B prompts, truncated to the length that the model reads.

        Raises:
            ValueError: when there are not as many texts as images.
        """
        if len(images) != len(texts):
            raise UserError(f"every image needs its text, got {len(images)} images and {len(texts)} texts")
        network = self.images.network
        length = network.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(next(network.parameters()).device)
        pooled = network.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        text: Tensor = network.text_projection(pooled)
        return 100 * torch.cosine_similarity(self.images(images), text).clamp(min=0)
