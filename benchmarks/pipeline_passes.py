"""Time of a pipeline's call over forward passes: ``python benchmarks/pipeline_passes.py --help``.

``mnist-flow`` in diffusers' modular pipeline of Stable Diffusion 3, a forward pass a step (``BranchGuider``), and in
the ordinary one, which evaluates both branches in one batch of twice the size. A table's weights do not change its
time, so these are classical tables without their first rows. Time of the process on one thread, the least of several
calls, prompts and decoding included. Needs diffusers.
"""

import argparse
import tempfile
import time
import timeit
from pathlib import Path
from typing import Any

import diffusers
import rows
import torch

import gas
from gas.integrations.diffusers.guider import BranchGuider
from gas.training.elimination import guided_calls, without_row

GUIDANCE, T_END = 4.0, 1e-3


def tables(passes: list[int]) -> list[gas.Table]:
    """Guided tables of so many forward passes, and those of every even number, for guided predictions."""
    branched = []
    for count in passes:
        table = classical(guided_calls(count)).guided(GUIDANCE)
        while table.nfe > count:
            table = without_row(table, 0)
        branched.append(table)
    return branched + [classical(count // 2) for count in passes if count % 2 == 0]


def classical(nfe: int) -> gas.Table:
    """UniPC on the log-SNR grid."""
    return gas.Classical("unipc-2-bh2", "log_snr", nfe, T_END).table(gas.Flow())


def modular(pipe: Any) -> Any:
    """The modular pipeline of an ordinary one's components."""
    pipeline = diffusers.modular_pipelines.StableDiffusion3AutoBlocks().init_pipeline()
    pipeline.update_components(**{name: each for name, each in pipe.components.items() if each is not None})
    return pipeline


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", type=int, nargs="+", default=[3, 4, 5, 6, 8, 12, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    diffusers.utils.logging.disable_progress_bar()
    ordinary = gas.zoo.load("mnist-flow").pipe
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "solver.json"
        gas.save(file, tables(options.passes))
        config = ordinary.scheduler.config
        ordinary.scheduler = gas.GASScheduler.from_config(config, solver=file)
        scheduler = gas.GASScheduler.from_config(config, solver=file)
        branched = modular(ordinary)
        branched.update_components(scheduler=scheduler, guider=BranchGuider(scheduler))
        measured = [row for batch in options.batches for row in measure(ordinary, branched, batch, options)]
    rows.write("pipeline-passes", measured)


def measure(ordinary: Any, branched: Any, batch: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """The rows of one batch size."""
    prompts = {"prompt": ["seven"] * batch, "negative_prompt": [""] * batch}
    measured = []
    for passes in options.passes:
        ways = {"one branch a step": lambda n=passes: branched(**prompts, num_inference_steps=n)}
        if passes % 2 == 0:
            ways["both branches in a batch"] = lambda n=passes // 2: ordinary(
                **prompts, num_inference_steps=n, guidance_scale=GUIDANCE
            )
        for name, call in ways.items():
            call()
            repeats = timeit.repeat(call, timer=time.process_time, number=1, repeat=options.repeats)
            value = 1000 * min(repeats)
            measured.append(rows.row(name, value, "ms", forward_passes=passes, batch=batch))
            print(f"batch {batch:2d}, {passes:2d} forward passes, {name:24s} {value:8.1f} ms")
    return measured


if __name__ == "__main__":
    main()
