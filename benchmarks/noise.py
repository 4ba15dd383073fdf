"""Gauss-Newton on rounded predictions and quantized networks: ``python benchmarks/noise.py --help``.

Solvers are learned from one start with predictions in each dtype, or with a quantized network, and measured with the
float32 network on the same unseen seeds. Ratios are to the solver that the first dtype has learned, seed by seed.
"""

import argparse
from dataclasses import dataclass, replace
from statistics import geometric_mean

import numpy as np
import rows
import torch
from scipy.stats import bootstrap

import gas
from gas.learned.registry import kind_by_name
from gas.losses import l2
from gas.models.runtime import QUANTIZATIONS, WrappedModel, precise
from gas.training.initialization import named_start
from gas.training.loop import FitRecord, fit
from gas.training.plan import FINISH
from gas.training.validation import evaluate

DTYPES = {
    "float32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
}


@dataclass(frozen=True, eq=False)
class Rounded(WrappedModel):
    """A model whose predictions are rounded to a dtype."""

    dtype: torch.dtype = torch.float32

    def bind(self, labels: torch.Tensor | None, guidance: float = 1.0) -> gas.denoise.Denoiser:
        denoise = self.model.bind(labels, guidance)
        return lambda x, t: denoise(x, t).to(self.dtype).to(x.dtype)


def main() -> None:
    """Train in every dtype and seed; print and write losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4, 6])
    parser.add_argument("--start", default="ipndm-2/time_quadratic")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "fp16", "bf16"])
    parser.add_argument("--quantize", nargs="+", choices=QUANTIZATIONS, default=[], help="Networks to add.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=1280)
    parser.add_argument("--unseen", type=int, default=2048)
    parser.add_argument("--iterations", type=int, default=FINISH.iterations)
    options = parser.parse_args()
    model = gas.zoo.load(options.model)
    teacher = gas.Classical("unipc-3-bh2", "log_snr", nfe=20, t_end=model.t_end)
    pairs = gas.pairs.teach(model, teacher, range(options.pairs))
    unseen = gas.pairs.teach(model, teacher, range(50000, 50000 + options.unseen))
    for nfe in options.nfe:
        measurements = []
        start = named_start(options.start, nfe, model.t_end)
        print(f"NFE {nfe}, {start.label}: {_shown(evaluate(model, unseen, start, l2))}", flush=True)
        baseline: list[float] = []
        for way, network in _networks(model, options).items():
            losses = []
            for seed in range(options.seeds):
                config = replace(FINISH, seed=seed, iterations=options.iterations)
                solver, record = _trained(network, pairs, start, config)
                losses.append(evaluate(model, unseen, solver, l2))
                at = {"model": options.model, "nfe": nfe, "dtype": way, "seed": seed}
                error = record.logs["derivative_error"]
                values = {"mean": losses[-1].mean(), "median": losses[-1].median(), "derivative error": error}
                measurements += [rows.row(name, float(value), "", **at) for name, value in values.items()]
            means = [float(values.mean()) for values in losses]
            baseline = baseline or means
            ratios = [mean / base for mean, base in zip(means, baseline, strict=True)]
            text = f"ratio {geometric_mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            text += (
                f"; forward error {record.logs['derivative_error']:.2g}, {record.evaluations:,} evaluations"
            )
            print(f"NFE {nfe}, {way}: {_shown(torch.stack(losses).mean(0))}; {text}", flush=True)
        rows.write(f"noise-{options.model}-{nfe}", measurements)


def _trained(
    network: gas.models.Model, pairs: gas.Pairs, start: gas.Classical, config: gas.GaussNewton
) -> tuple[gas.Table, FitRecord]:
    solver = kind_by_name("gs").build(network.schedule, start)
    *_, record = fit(solver, network, pairs, config=config)
    return solver().detach(), record


def _networks(model: gas.zoo.model.ZooModel, options: argparse.Namespace) -> dict[str, gas.models.Model]:
    """Return what answers in training, by name; the first is the baseline of ratios."""
    networks: dict[str, gas.models.Model] = {}
    for dtype in options.dtypes:
        networks[dtype] = Rounded(model, dtype=DTYPES[dtype])
    # Quantization changes a network in place.
    return networks | {
        f"{way} network": precise(gas.zoo.load(options.model), quantize=way) for way in options.quantize
    }


def _shown(losses: torch.Tensor) -> str:
    """Mean and median times 1000, with 95% bootstrap intervals over pairs."""
    parts, values = [], (1000 * losses).numpy()
    for name, statistic in (("mean", np.mean), ("median", np.median)):
        interval = bootstrap((values,), statistic, n_resamples=1000, method="percentile").confidence_interval
        parts.append(f"{name} {statistic(values):.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
