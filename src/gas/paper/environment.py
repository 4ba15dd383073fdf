"""What this installation and machine are: versions, extras, threads, device, memory."""

from __future__ import annotations

import importlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import gas
from gas.training.activation_checkpointing import available_bytes

__all__ = ["EXTRAS", "environment", "extras"]

# What each extra brings, by the names that are imported.
EXTRAS = {
    "plot": ["matplotlib"],
    "zoo": ["sklearn"],
    "diffusers": ["diffusers", "transformers", "accelerate"],
    "onnx": ["onnx", "onnxscript", "onnxruntime"],
}


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return versions, threads, device and memory in plain JSON.

    Args:
        device: whose memory to ask for.
    """
    device = torch.device(device)
    told: dict[str, Any] = {
        "gas-solver": gas.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "system": platform.platform(terse=True),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "free memory (GB)": round(available_bytes(device) / 1e9, 1),
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device.type == "cuda":
        told["gpu"] = torch.cuda.get_device_name(device)
    return told


def extras() -> dict[str, str]:
    """Return what each extra's state is: versions, or what is missing and how to install it."""
    told = {}
    for extra, modules in EXTRAS.items():
        found, missing = [], []
        for module in modules:
            try:
                loaded = importlib.import_module(module)
                found.append(f"{module} {getattr(loaded, '__version__', '')}".strip())
            except Exception as error:  # a broken installation raises anything
                missing.append(f"{module} ({type(error).__name__})")
        install = f"missing {', '.join(missing)}: pip install 'gas-solver[{extra}]'"
        told[extra] = install if missing else ", ".join(found)
    return told


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"
