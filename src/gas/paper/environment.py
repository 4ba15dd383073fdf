"""This installation and machine: versions, extras, threads, device, memory."""

from __future__ import annotations

import importlib
import os
import platform
from typing import Any

import numpy
import torch

import gas
from gas.training.activation_checkpointing import available_bytes

# Modules that the extras of the paper's commands install.
EXTRAS = {
    "plot": ["matplotlib"],
    "zoo": ["sklearn"],
    "diffusers": ["diffusers", "transformers", "accelerate"],
    "onnx": ["onnx", "onnxscript", "onnxruntime"],
}


def environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return versions, threads, device and its free memory in plain JSON."""
    device = torch.device(device)
    facts: dict[str, Any] = {
        "gas-solver": gas.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "system": platform.platform(terse=True),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "free memory (GB)": round(available_bytes(device) / 1e9, 1),
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def extras() -> dict[str, str]:
    """Return, for each extra, the versions of its modules, or those that are missing and how to install them."""
    states = {}
    for extra, modules in EXTRAS.items():
        versions, missing = [], []
        for module in modules:
            try:
                installed = importlib.import_module(module)
                versions.append(f"{module} {getattr(installed, '__version__', '')}".strip())
            except Exception as error:  # a broken installation raises anything
                missing.append(f"{module} ({type(error).__name__})")
        install = f"missing {', '.join(missing)}: pip install 'gas-solver[{extra}]'"
        states[extra] = install if missing else ", ".join(versions)
    return states
