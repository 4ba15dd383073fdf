"""What TF32, bf16, fp16, torch.compile and CUDA graphs gain and change: ``python benchmarks/precision.py --help``.

Time a call, the largest and mean deviation of a solver's samples from float32's on the same noise, and the error to a
float32 teacher that the solver is left with.
"""

import argparse
import time

import rows
import torch

import gas
from gas.models.runtime import CudaGraphed, allow_tf32, precise


def main() -> None:
    """Measure every way of asking, print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--ways", nargs="+", default=["float32", "bf16", "fp16"])
    parser.add_argument("--compile", action="store_true", help="Also compiled; minutes on a CPU.")
    parser.add_argument("--nfe", type=int, default=6)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    allow_tf32(False)
    plain = gas.zoo.load(options.model).to(options.device)
    teacher = gas.Classical("unipc-3-bh2", "log_snr", 20, plain.t_end).table(plain.schedule)
    table = gas.Classical("unipc-3-bh2", "log_snr", options.nfe, plain.t_end).table(plain.schedule)
    pairs = gas.pairs.teach(plain, teacher, range(options.samples))
    ways = _ways(plain, pairs.labels, options)
    exact, measurements = _samples(ways["float32"], pairs, table, options.device), []
    for way, denoise in ways.items():
        samples = _samples(denoise, pairs, table, options.device)
        off, error = (samples - exact).abs(), float((samples - pairs.target).square().mean())
        values = [
            ("time a call", _seconds(denoise, pairs, options) * 1e3, "ms"),
            ("largest deviation", float(off.max()), ""),
            ("mean deviation", float(off.mean()), ""),
            ("MSE to the teacher", error, ""),
        ]
        print(
            way, "; ".join(f"{name} {value:.4g} {unit}".strip() for name, value, unit in values), flush=True
        )
        at = {"way": way, "model": options.model, "nfe": options.nfe, "samples": options.samples}
        measurements += [rows.row(name, value, unit, options.device, **at) for name, value, unit in values]
    rows.write("precision", measurements, options.device)


def _ways(plain: gas.zoo.model.ZooModel, labels: torch.Tensor, options: argparse.Namespace) -> dict:
    """Every way of asking, by name; compiling changes the network, so it comes last."""
    ways = {way: precise(plain, way).bind(labels) for way in options.ways}
    if options.device.startswith("cuda"):
        ways = {"float32": ways["float32"], "tf32": _truncated(plain.bind(labels)), **ways}
        ways |= {f"{way}, CUDA graphs": CudaGraphed(ways[way]) for way in list(ways)}
    if options.compile:
        other = gas.zoo.load(options.model).to(options.device)
        ways |= {f"{way}, compiled": precise(other, way, compiled=True).bind(labels) for way in options.ways}
    return ways


def _truncated(denoise: gas.denoise.Denoiser) -> gas.denoise.Denoiser:
    """The same with TF32."""

    def denoise_in_batches(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        allow_tf32(True)
        try:
            return denoise(x, t)
        finally:
            allow_tf32(False)

    return denoise_in_batches


@torch.no_grad()
def _samples(denoise: gas.denoise.Denoiser, pairs: gas.Pairs, table: gas.Table, device: str) -> torch.Tensor:
    return gas.sample(denoise, pairs.noise.to(device), table).cpu()


@torch.no_grad()
def _seconds(denoise: gas.denoise.Denoiser, pairs: gas.Pairs, options: argparse.Namespace) -> float:
    """The least of some calls, after two that warm up."""
    x, t, times = pairs.noise.to(options.device), torch.tensor(0.5, dtype=torch.float64), []
    for _ in range(options.repeats + 2):
        start = time.perf_counter()
        denoise(x, t)
        if options.device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[2:])


if __name__ == "__main__":
    main()
