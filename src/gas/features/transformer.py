"""DINOv2's and CLIP's features of images, and the CLIP score, by transformers, from a folder on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gas.errors import UserError, explained, requires
from gas.features.images import as_bytes, rgb
from gas.io import read_json
from gas.model_folder import check_model_folder

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class DinoV2(nn.Module):
    """Maps images in [-1, 1] to the class token of a DINOv2 ``(B, F)``, for Frechet distances on DINOv2.

    Args:
        folder: of transformers' ``Dinov2Model``, with ``model.safetensors``.
        side: of its input image in pixels.

    References:
        Oquab et al., arXiv 2304.07193; Stein et al., arXiv 2306.04675 (224, bicubic).
    """

    def __init__(self, folder: str | Path, side: int = 224) -> None:
        super().__init__()
        self.side = side
        self.network = _pretrained("Dinov2Model", folder)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network(_preprocess(self.network, x, self.side, *_IMAGENET)).pooler_output
        return features


class ClipImages(nn.Module):
    """Maps images in [-1, 1] to a CLIP's embeddings ``(B, F)``, from a folder of transformers' ``CLIPModel``.

    References:
        Radford et al., arXiv 2103.00020.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.network = _pretrained("CLIPModel", folder)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        pixels = _preprocess(self.network, x, self.network.config.vision_config.image_size, *_CLIP)
        pooled = self.network.vision_model(pixel_values=pixels).pooler_output
        features: Tensor = self.network.visual_projection(pooled)
        return features


class ImageClassifier(nn.Module):
    """Maps images in [-1, 1] to logits ``(B, classes)``, from a folder of a transformers image classifier.

    Images are normalized as the folder's ``preprocessor_config.json`` says, else as ImageNet's.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.network = _pretrained("AutoModelForImageClassification", folder)
        path = Path(folder) / "preprocessor_config.json"
        content = read_json(path) if path.is_file() else {}
        with explained(str(path)):
            self.mean = tuple(float(x) for x in content.get("image_mean", _IMAGENET[0]))
            self.std = tuple(float(x) for x in content.get("image_std", _IMAGENET[1]))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        side = getattr(self.network.config, "image_size", 224)
        logits: Tensor = self.network(_preprocess(self.network, x, side, self.mean, self.std)).logits
        return logits


class ClipScore:
    """``100 max(cos(E_image, E_text), 0)`` of each image and its text, by a CLIP on disk.

    Args:
        folder: of transformers' ``CLIPModel`` with its tokenizer.
        device: where it runs.

    Raises:
        FileNotFoundError: when the weights are missing.
        UserError: when the folder holds no such model or tokenizer.

    References:
        Hessel et al., arXiv 2104.08718, equation 1 with w = 100, as text-to-image work reports it.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        self.images = ClipImages(folder).to(device)
        from transformers import AutoTokenizer

        with explained(f"{folder} holds no tokenizer", foreign=True):
            self.tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )

    @torch.no_grad()
    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Return the score ``(B,)`` of each image ``(B, 1 or 3, H, W)`` in [-1, 1] and its text, truncated."""
        if len(images) != len(texts):
            raise UserError(f"every image needs its text, got {len(images)} images and {len(texts)} texts")
        network = self.images.network
        length = network.config.text_config.max_position_embeddings
        cut = {"truncation": True, "max_length": length}
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt", **cut).to(network.device)
        pooled = network.text_model(tokens["input_ids"], tokens["attention_mask"]).pooler_output
        text: Tensor = network.text_projection(pooled)
        return 100 * torch.cosine_similarity(self.images(images), text).clamp(min=0)


def folder_weights(folder: str | Path) -> Path:
    """Return the file of weights in a folder."""
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no model.safetensors: give a folder as transformers saves it")
    return path


def _pretrained(kind: str, folder: str | Path) -> Any:
    folder_weights(folder)
    check_model_folder(folder)
    with requires("diffusers", "DINOv2 and CLIP need transformers"):
        import transformers
    with explained(f"{folder} holds no {kind}", foreign=True):
        load = getattr(transformers, kind).from_pretrained
        network = load(folder, local_files_only=True, use_safetensors=True)
    return network.eval().requires_grad_(False)


def _preprocess(
    network: Any, x: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Return images as bytes, resized by bicubic interpolation and normalized."""
    x = as_bytes(rgb(x.to(network.device))) / 255
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]
