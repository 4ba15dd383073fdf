"""Peak memory of pairs and training beside a pipeline's own call: ``python benchmarks/pipeline_memory.py --help``.

Saves a class-conditional DiT pipeline of random weights and runs, each in a process of its own: one call of the
pipeline itself, ``gas pairs``, and ``gas train`` with Gauss-Newton, on batches of the same size. Weights have
to be larger than this process, from whose peak a child's counts. Needs diffusers.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import rows

BUILD = """
import sys, torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
folder, layers = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
transformer = DiTTransformer2DModel(
    num_attention_heads=16, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=layers, sample_size=8,
)
for name, parameter in transformer.named_parameters():
    if not parameter.any():  # zero at the start of a training, which would make the answer 0
        torch.nn.init.normal_(parameter, std=0.02)
vae = AutoencoderKL(block_out_channels=[32], norm_num_groups=8)
DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False)).save_pretrained(folder)
print(sum(p.numel() for p in transformer.parameters()) * 4)
"""
CALL = """
import sys
from diffusers import DiTPipeline
pipe = DiTPipeline.from_pretrained(sys.argv[1])
pipe(list(range(int(sys.argv[2]))), num_inference_steps=4, guidance_scale=2.0)
"""


def main() -> None:
    """Measure the three, and print and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8, help="of the transformer, 75 MB each")
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    batch, measured = str(options.batch), []
    with tempfile.TemporaryDirectory() as work:
        folder, pairs = f"{work}/pipeline", f"{work}/pairs"
        build = [sys.executable, "-c", BUILD, folder, str(options.layers)]
        weights = int(subprocess.run(build, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"weights: {weights / 1e6:.0f} MB")
        gas = [sys.executable, "-m", "gas"]
        model = ["--model", f"diffusers:{folder}"]
        train = [
            "--pairs",
            pairs,
            "--validation",
            batch,
            "--nfe",
            "2",
            "--start",
            "ddim/log_snr",
            "--batch",
            batch,
        ]
        train += ["--iterations", "2", "--out", f"{work}/solver.json"]
        seeds = ["--seeds", str(3 * options.batch), "--nfe", "4", "--guidance", "2", "--batch", batch]
        call = 0
        for name, words in {
            "one call of the pipeline": [sys.executable, "-c", CALL, folder, batch],
            "gas pairs": [*gas, "pairs", *model, *seeds, "--out", pairs],
            "gas train": [*gas, "train", *model, *train],
        }.items():
            used = peak(words)
            call = call or used
            print(f"{name}: {used / 1e6:.0f} MB, {used / call:.3f} of the call's")
            measured.append(
                rows.row(name, used / 1e6, "MB", weights_mb=round(weights / 1e6), batch=options.batch)
            )
    rows.write("pipeline-memory", measured)


def peak(words: list[str]) -> int:
    """Run a command; return the peak of its memory in bytes."""
    with Path(os.devnull).open("w") as quiet:
        process = subprocess.Popen(words, stdout=quiet)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{words[1:4]} failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
