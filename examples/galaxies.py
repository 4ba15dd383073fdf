"""Solvers for networks that others trained: score networks of galaxies from the Hyper Suprime-Cam survey.

They are in the package galaxygrad 0.2.1 (Matt Sampson, Princeton), of which nothing is copied here. Its samples are
``x = log(1 + flux) / 0.1``, its process has ``beta = 1`` on t in [0, 10].

    pip download --no-deps galaxygrad==0.2.1
    python galaxies.py galaxygrad-0.2.1-py3-none-any.whl --size 32 --nfe 3 4 6

``--jax`` leaves the network in JAX, which needs ``pip install jax equinox einops``: training needs predictions only.
"""

import argparse
import importlib.util
import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import nn

import gas
from gas.display import with_interval
from gas.training.validation import PairLosses

FILE = "galaxygrad/eqx_hsc_ScoreNet{}.eqx"


class MixerBlock(nn.Module):
    """Mixes patches, then channels, of ``(B, 64, patches)``."""

    def __init__(self, patches, channels=64, width=512):
        super().__init__()
        self.patches = nn.Sequential(
            nn.Linear(patches, width), nn.ReLU(inplace=True), nn.Linear(width, patches)
        )
        self.channels = nn.Sequential(
            nn.Linear(channels, width), nn.ReLU(inplace=True), nn.Linear(width, channels)
        )
        self.norm1, self.norm2 = nn.LayerNorm((channels, patches)), nn.LayerNorm((patches, channels))

    def forward(self, y):
        y = y + self.patches(self.norm1(y))
        return (y.mT + self.channels(self.norm2(y.mT))).mT


class ScoreNet(nn.Module):
    """The score of images ``(B, 1, size, size)`` at times ``(B,)`` in [0, 1]; parameters in the file's order."""

    def __init__(self, size):
        super().__init__()
        self.side = size // 4
        self.conv_in, self.conv_out = nn.Conv2d(2, 64, 4, 4), nn.ConvTranspose2d(64, 1, 4, 4)
        self.blocks = nn.Sequential(*(MixerBlock(self.side**2) for _ in range(4)))
        self.norm = nn.LayerNorm((64, self.side**2))

    def forward(self, x, t):
        y = self.conv_in(torch.cat([x, t.view(-1, 1, 1, 1).expand_as(x)], dim=1))
        y = self.norm(self.blocks(y.flatten(2)))
        return self.conv_out(y.unflatten(2, (self.side, self.side)))


def torch_network(file, size):
    """Read the arrays of an Equinox file, one after another, into the same network in torch."""
    network = ScoreNet(size).requires_grad_(False)
    for parameter in network.parameters():
        array = np.load(file, allow_pickle=False)
        if (
            parameter is network.conv_out.weight
        ):  # JAX neither swaps nor flips the kernel of a transposed convolution
            array = np.flip(array.swapaxes(0, 1), (2, 3)).copy()
        parameter.copy_(torch.from_numpy(array).view_as(parameter))
    return network.eval()


def jax_network(file, size):
    """Return galaxygrad's own network, in JAX, as a function of tensors."""
    import equinox
    import jax

    # Its package cannot be imported where file names have case: it opens one by another case.
    where = importlib.util.find_spec("galaxygrad").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("models_eqx", f"{where}/models_eqx.py")
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    network = models.ScoreNet((1, size, size), 4, 64, 512, 512, 4, 10.0, key=jax.random.PRNGKey(0))
    score = jax.jit(jax.vmap(equinox.tree_deserialise_leaves(file, network)))
    return lambda x, t: torch.from_numpy(np.array(score(x.numpy(), 10 * t.numpy())))


def galaxies(wheel, size, *, jax=False):
    """Return the model of one image size."""
    schedule = gas.VPLinear(10, 10)
    with zipfile.ZipFile(wheel) as archive, archive.open(FILE.format(size)) as stream:
        file = io.BytesIO(stream.read(1 << 24))
    network = (jax_network if jax else torch_network)(file, size)
    denoise = gas.denoise.ScoreDenoiser(network, schedule)
    weights = None if jax else network
    return gas.OwnModel(denoise, schedule, (1, size, size), name=f"galaxies-{size}", weights=weights)


def statistics(samples):
    """Total flux, half-light radius in pixels, and ellipticity of galaxies ``(B, 1, H, W)``."""
    flux = torch.expm1(0.1 * samples[:, 0]).clamp(min=0).double()
    total = flux.sum((1, 2))
    place = torch.arange(flux.shape[-1], dtype=torch.float64)

    def mean(values):
        return (flux * values).sum((1, 2)) / total

    dy = place[:, None] - mean(place[:, None])[:, None, None]
    dx = place - mean(place)[:, None, None]
    radius, order = (dx.square() + dy.square()).sqrt().flatten(1).sort(1)
    light = flux.flatten(1).gather(1, order).cumsum(1) / total[:, None]
    half = radius.gather(1, (light >= 0.5).double().argmax(1, keepdim=True))[:, 0]
    xx, yy, xy = mean(dx.square()), mean(dy.square()), mean(dx * dy)
    return {
        "flux": total,
        "radius": half,
        "ellipticity": ((xx - yy).square() + 4 * xy.square()).sqrt() / (xx + yy),
    }


def against(fine, samples):
    """p-values of Kolmogorov-Smirnov tests against the teacher's statistics from other seeds."""
    tests = {name: ks_2samp(x, fine[name]).pvalue for name, x in statistics(samples).items()}
    return "p of " + ", ".join(f"{name} {p:.2g}" for name, p in tests.items())


def best_classical(model, nfe, unseen):
    """The best of all classical solvers on the unseen pairs, by mean and by median: the worst case for ours."""
    # All tables start at the same noise: PairLosses evaluates the network once there.
    few = PairLosses(model, unseen.subset(range(64)), gas.losses.l2, batch=64)
    candidates = gas.classical.registry.candidates(model.schedule, nfe, model.t_end)
    losses = {candidate: few.losses(table) for candidate, table in candidates}
    finalists = {
        candidate
        for measure in (torch.mean, torch.median)
        for candidate in sorted(losses, key=lambda c, m=measure: float(m(losses[c])))[:8]
    }
    every = PairLosses(model, unseen, gas.losses.l2, batch=64)
    losses = {each: every.losses(each.table(model.schedule)) for each in finalists}
    return [
        min(losses, key=lambda c, m=measure: float(m(losses[c]))) for measure in (torch.mean, torch.median)
    ]


def stretch(samples):
    """An astronomer's stretch, ``asinh`` of the flux, in [-1, 1]."""
    return (torch.asinh(20 * torch.expm1(0.1 * samples)) / np.arcsinh(20 * 0.6)).clamp(0, 1) * 2 - 1


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", help="galaxygrad-0.2.1-py3-none-any.whl")
    parser.add_argument("--size", type=int, choices=[32, 64], default=32, help="pixels a side")
    parser.add_argument("--nfe", type=int, nargs="+", default=[4])
    parser.add_argument(
        "--pairs", type=int, default=768, help="teacher pairs to learn from, a third to choose on"
    )
    parser.add_argument("--budget", type=int, help="most network evaluations of one training")
    parser.add_argument("--unseen", type=int, default=512)
    parser.add_argument("--state", type=Path, help="folder of the resumable state of training")
    parser.add_argument("--jax", action="store_true", help="leave the network in JAX")
    parser.add_argument("--picture", help="PNG file of a few galaxies at the first NFE")
    options = parser.parse_args()
    if options.unseen < 64:  # classical solvers are ranked on so many
        parser.error(f"--unseen must be at least 64, got {options.unseen}")
    model = galaxies(options.wheel, options.size, jax=options.jax)
    teacher = gas.Classical("unipc-3-bh2", "time_quadratic", nfe=20, t_end=model.t_end)
    pairs = gas.pairs.teach(model, teacher, range(options.pairs))
    unseen = gas.pairs.teach(model, teacher, range(50000, 50000 + options.unseen))
    fine = statistics(pairs.target)
    print(f"teacher  {against(fine, unseen.target)}", flush=True)
    rows = []
    for nfe in options.nfe:
        training = {"budget": options.budget, "state": options.state}
        *_, result = gas.distill(model, *pairs.split(options.pairs // 3), nfe=nfe, **training)
        gas.save(f"{model.name}-{nfe}.json", result, model=model)
        classical = dict.fromkeys(best_classical(model, nfe, unseen))
        for solver in (*classical, result.table()):
            name = f"{solver.solver} / {solver.grid}" if solver in classical else "GS"
            table = solver.table(model.schedule) if solver in classical else solver
            samples = gas.sample(model.bind(None), unseen.noise, table)
            losses = gas.losses.l2(samples, unseen.target)
            mean, half_width = gas.metrics.mean_interval(1e3 * losses)
            median, interval = gas.metrics.median_interval(1e3 * losses)
            print(
                f"NFE {nfe}  {name:28}  mean {with_interval(mean, mean - half_width, mean + half_width)}  "
                f"median {with_interval(median, *interval)}  (x 1000)  {against(fine, samples)}",
                flush=True,
            )
            if nfe == options.nfe[0]:
                rows.append((f"{name}\n{nfe} calls, MSE {1e-3 * mean:.2g}", stretch(samples[:8])))
    if options.picture:
        rows.append(("teacher\n20 calls", stretch(unseen.target[:8])))
        title = f"Galaxies of one network ({options.size}x{options.size}), the same noise in every row"
        gas.plotting.sample_grid(options.picture, rows, title=title, highlight=len(rows) - 2)


if __name__ == "__main__":
    main()
