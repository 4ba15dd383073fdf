"""What every benchmark writes: rows of name, value, unit, command, machine and date, in one JSON file each."""

import datetime
import json
import os
import platform
import shlex
import sys
from pathlib import Path

import torch

__all__ = ["RESULTS", "as_lines", "command", "machine", "row", "write"]

RESULTS = Path("docs/results/bench")


def machine(device: str = "cpu") -> str:
    """Say what ran: the processor or CUDA device, its threads and torch's version."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}"


def command() -> str:
    """Return the command line that is running, as one would type it in the repository."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def row(name: str, value: float, unit: str, device: str = "cpu", **more: object) -> dict[str, object]:
    """Return one measurement; ``more`` says at what (model, nfe, batch, ...)."""
    provenance = {"command": command(), "machine": machine(device), "date": datetime.date.today().isoformat()}
    return {"name": name, "value": float(f"{value:.5g}"), "unit": unit, **provenance, **more}


def write(name: str, rows: list[dict[str, object]], device: str = "cpu") -> Path:
    """Write the rows of one benchmark, one a line, a CUDA device's beside a processor's; say where they are."""
    path = RESULTS / (f"{name}-cuda.json" if device.startswith("cuda") else f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_lines(rows) + "\n")
    print(f"wrote {path}")
    return path


def as_lines(rows: list[dict[str, object]]) -> str:
    """Return rows as a JSON list, one a line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
