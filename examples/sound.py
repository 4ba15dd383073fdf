"""Spoken digits: a flow of log-mel frames, solvers learned for it, and a recognizer of other voices as the judge.

The corpus is espeak-ng's digits in a hundred voices and eight accents. One command makes it, trains the network and the
recognizer, learns solvers, measures them and writes sound and a picture; interrupted, the same command resumes.

    apt-get install espeak-ng
    python sound.py --out runs/sound --wav spoken-digits.wav --picture spoken-digits.png --json spoken-digits.json
"""

import argparse
import contextlib
import copy
import itertools
import json
import random
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.io import wavfile
from scipy.signal import istft, resample_poly, stft
from torch import nn

import gas
from gas.checkpoint import read_checkpoint, write_checkpoint
from gas.display import markdown_table, with_interval
from gas.io import write_text

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ACCENTS = [
    "en-us",
    "en-us-nyc",
    "en-gb",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
]
RATE, WINDOW, HOP = 8000, 512, 128  # telephone quality; windows of 64 ms, 75 % overlap
MELS, FRAMES, RANGE = 40, 32, 60.0  # 0.5 s of sound; decibels from the loudest entry down to silence
SPEAK, RECOGNIZE, TEST = 0, 1, 2  # whose voices: the network's, the recognizer's, neither's


# --- sound ------------------------------------------------------------------------------------------------


def mel_filters():
    """Triangles of equal width in mels, each of area 1: ``(MELS, bins)``."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall))
    return filters / filters.sum(1, keepdims=True)


def log_mel(wave):
    """Log-mel frames ``(MELS, FRAMES)``: -1 is silence, 1 the loudest entry, :data:`RANGE` decibels above."""
    wave = np.pad(wave, (0, FRAMES * HOP))[: (FRAMES - 1) * HOP]
    spectrum = stft(wave, nperseg=WINDOW, noverlap=WINDOW - HOP)[2]
    power = mel_filters() @ np.abs(spectrum) ** 2
    decibels = 10 * np.log10(np.maximum(power / power.max(), 1e-10))
    return torch.from_numpy(np.maximum(decibels / RANGE, -1) * 2 + 1).float()


def speak(voice, accent, rng):
    """All digits by espeak-ng at one speed and pitch, from where each begins; ``[]`` where they run together."""
    text = '<break time="600ms"/>'.join(DIGITS)
    speed, pitch = str(rng.randint(140, 200)), str(rng.randint(20, 80))
    command = ["espeak-ng", "-m", "-v", f"{accent}+{voice}", "-s", speed, "-p", pitch, "--stdout", text]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    wave = np.frombuffer(output[44:], "<i2") / 32768  # after the header: 22,050 Hz
    wave = resample_poly(wave, 160, 441)
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    pauses = np.flatnonzero(np.diff(loud) > 0.25 * RATE)
    starts, ends = loud[np.r_[0, pauses + 1]], loud[np.r_[pauses, -1]]
    words = [wave[max(start - HOP, 0) : end + HOP] for start, end in zip(starts, ends, strict=True)]
    return words if len(words) == len(DIGITS) else []


def corpus(path, count):
    """Every digit by ``count`` voices in every accent; voices of one name are on one side."""
    if path.exists():
        return read_checkpoint(path)
    listing = subprocess.run(["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True)
    voices = sorted(set(re.findall(r"!v/(\w+)  ", listing.stdout)))
    voices = voices[:: max(1, len(voices) // count)]
    families = sorted({voice.rstrip("0123456789") for voice in voices})
    random.Random(0).shuffle(families)
    shares = [SPEAK] * 5 + [RECOGNIZE] * 3 + [TEST] * 2
    sides = {family: shares[i % 10] for i, family in enumerate(families)}
    rng, frames, digits, groups = random.Random(1), [], [], []
    for voice in voices:
        for accent in ACCENTS:
            words = speak(voice, accent, rng)
            frames += map(log_mel, words)
            digits += range(len(words))
            groups += [sides[voice.rstrip("0123456789")]] * len(words)
    print(f"corpus: {len(frames)} of {len(voices) * len(ACCENTS) * 10} utterances", flush=True)
    data = {"frames": torch.stack(frames), "digit": torch.tensor(digits), "group": torch.tensor(groups)}
    write_checkpoint(path, data)
    return data


def waves(frames):
    """Waves ``(B, samples)`` of frames: spectra by Lee and Seung's updates, phases by Griffin and Lim."""
    power = 10 ** (RANGE / 20 * (frames.clamp(-1, 1).double().numpy() - 1))
    filters = mel_filters()
    weight = np.maximum(filters.sum(0), 1e-9)[:, None]
    spectrum = filters.T @ power / weight
    for _ in range(20):  # to half a decibel of the frames
        spectrum *= filters.T @ (power / np.maximum(filters @ spectrum, 1e-12)) / weight
    magnitude = np.sqrt(spectrum)
    phase = np.exp(2j * np.pi * np.random.default_rng(0).random(magnitude.shape))
    for _ in range(60):  # after which the phases hardly change
        wave = istft(magnitude * phase, nperseg=WINDOW, noverlap=WINDOW - HOP)[1]
        phase = np.exp(1j * np.angle(stft(wave, nperseg=WINDOW, noverlap=WINDOW - HOP)[2]))
    return wave


# --- networks ---------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Residual block of ``(B, inputs, T)``, modulated by an embedding ``(B, width)``."""

    def __init__(self, inputs, width):
        super().__init__()
        self.norm0, self.norm1 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, width)
        self.conv0, self.conv1 = (nn.Conv1d(channels, width, 3, padding=1) for channels in (inputs, width))
        self.modulate = nn.Linear(width, 2 * width)
        self.skip = nn.Conv1d(inputs, width, 1) if inputs != width else nn.Identity()

    def forward(self, h, embedding):
        scale, shift = self.modulate(embedding)[..., None].chunk(2, dim=1)
        inner = self.norm1(self.conv0(F.silu(self.norm0(h)))) * (1 + scale) + shift
        return self.skip(h) + self.conv1(F.silu(inner))


class Speaker(nn.Module):
    """Predicts the velocity ``noise - data`` of frames ``(B, MELS, FRAMES)`` at times ``(B,)``; digit 10 means any.

    A U-Net over time whose channels are the mels of two frames. It has too few of them to carry noise, so its layers
    predict the data (Li and He, arXiv 2511.13720).
    """

    def __init__(self, width=64):
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, 5, width // 2)))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.digit = nn.Embedding(11, width)
        self.stem, self.head = (
            nn.Conv1d(2 * MELS, width, 3, padding=1),
            nn.Conv1d(width, 2 * MELS, 3, padding=1),
        )
        self.down, self.middle = Block(width, width), nn.ModuleList(Block(width, width) for _ in range(3))
        self.up = nn.ModuleList([Block(2 * width, width), Block(width, width)])
        self.place = nn.Parameter(0.1 * torch.randn(width, FRAMES // 2))
        nn.init.zeros_(self.head.weight)

    def forward(self, x, t, digit):
        angles = t[:, None] * self.frequencies
        e = F.silu(self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.digit(digit))
        h = self.stem(x.unflatten(2, (FRAMES // 2, 2)).movedim(3, 1).flatten(1, 2)) + self.place
        skip = h = self.down(h, e)
        h = F.avg_pool1d(h, 2)
        for block in self.middle:
            h = block(h, e)
        h = torch.cat([F.interpolate(h, scale_factor=2.0), skip], 1)
        for block in self.up:
            h = block(h, e)
        data = self.head(F.silu(h)).unflatten(1, (2, MELS)).movedim(1, 3).flatten(2)
        return (x - data) / t.clamp(min=0.05)[:, None, None]


class Recognizer(nn.Module):
    """Which digit frames ``(B, MELS, FRAMES)`` are: logits ``(B, 10)``."""

    def __init__(self, width=64):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(MELS, width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Flatten(),
        )
        self.embed, self.out = nn.Linear(width * FRAMES // 4, width), nn.Linear(width, 10)

    def features(self, x):
        """Features ``(B, 64)`` for Frechet distances."""
        return F.relu(self.embed(F.dropout(self.convolutions(x), 0.3, self.training)))

    def forward(self, x):
        return self.out(self.features(x))


def flow_loss(network, x, digit):
    """Flow matching, more often near noise; one digit in ten is left out, for guidance."""
    t, noise = (torch.randn(len(x)) + 0.8).sigmoid(), torch.randn_like(x)
    digit = digit.where(torch.rand(len(x)) > 0.1, 10)
    return F.mse_loss(network(torch.lerp(x, noise, t[:, None, None]), t, digit), noise - x)


def recognition_loss(network, x, digit):
    """Cross-entropy of frames as other voices would speak them: shifted in time and pitch, louder or fainter, noisy."""
    x = x.roll(torch.randint(-2, 3, (2,)).tolist(), dims=(1, 2))
    x = x * (1 + 0.2 * torch.randn(len(x), 1, 1)) + 0.3 * torch.randn(len(x), 1, 1)
    mask = torch.rand(len(x), MELS // 5, 1).lt(0.15).repeat_interleave(5, dim=1)
    return F.cross_entropy(network((x + 0.2 * torch.randn_like(x)).masked_fill(mask, -1)), digit)


def train(path, kind, loss, data, *, steps, batch=128, rate=2e-3):
    """Train a network with AdamW and a cosine schedule, and return the frozen average of its last weights."""
    torch.manual_seed(0)
    network = kind()
    average, start = copy.deepcopy(network), 0
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    if path.exists():
        state = read_checkpoint(path)
        start = state["step"]
        for name, part in (("network", network), ("average", average), ("optimizer", optimizer)):
            part.load_state_dict(state[name])
    frames, digit = data
    for step in range(start, steps):
        torch.manual_seed(step)  # so that an interrupted training ends with the same weights
        rows = torch.randint(len(frames), (batch,))
        optimizer.param_groups[0]["lr"] = rate * min(step / 50, (1 + np.cos(np.pi * step / steps)) / 2)
        value = loss(network.train(), frames[rows], digit[rows])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        for mean, new in zip(average.parameters(), network.parameters(), strict=True):
            mean.data.lerp_(new.data, 1 - min(0.998, step / (step + 10)))
        if (step + 1) % 100 == 0 or step + 1 == steps:
            state = {"network": network.state_dict(), "average": average.state_dict()}
            write_checkpoint(path, state | {"optimizer": optimizer.state_dict(), "step": step + 1})
            print(f"{path.stem}: step {step + 1}/{steps}, loss {float(value.detach()):.4f}", flush=True)
    return average.eval().requires_grad_(False)


# --- solvers ----------------------------------------------------------------------------------------------


def spoken_digits(network):
    """The network as a model: seed s speaks digit ``s mod 10``."""
    denoise = gas.denoise.FlowDenoiser(network)
    shape = (MELS, FRAMES)
    return gas.OwnModel(
        denoise, gas.Flow(), shape, name="spoken-digits", classes=10, null=10, weights=network
    )


def judges(recognizer):
    """Per sample: whether the digit is misheard, and the distance to the teacher's frames in decibels."""

    def misheard(samples, pairs):
        return (recognizer(samples).argmax(1) != pairs.labels).double()

    def decibels(samples, pairs):
        return RANGE / 2 * (samples - pairs.target).square().mean((1, 2)).sqrt()

    return [gas.features.SampleMetric(f.__name__, f, {}) for f in (misheard, decibels)]


def learn(model, teacher, nfes, path, *, seed, count):
    """Learn a solver of each NFE from other pairs for each seed; a file that is there is read."""
    if path.exists():
        return gas.load(path)
    pairs = gas.pairs.teach(model, teacher, range(10000 * seed, 10000 * seed + count))
    learning = gas.distill_family(model, *pairs.split(count // 3), nfes, state=path.with_suffix(".state"))
    members = [report for report in learning if isinstance(report, gas.Distilled)]
    return gas.save(path, members, model=model)


def classical(model, unseen, nfe):
    """Yield classical solvers by name; all but Euler are the best on these very pairs, which favors them."""
    yield "Euler", gas.Classical("ddim", "time_uniform", nfe, model.t_end)
    groups = {"DPM-Solver++(3M)": ["dpmpp-3m"], "UniPC-3": ["unipc-3-bh1", "unipc-3-bh2"]}
    for name, solvers in {**groups, "best of all classical": [*gas.classical.SOLVERS]}.items():
        # Some have no row at one evaluation.
        with contextlib.suppress(gas.UserError) if nfe == 1 else contextlib.nullcontext():
            yield name, gas.training.best_classical(model, unseen, nfe, solvers).classical


def measured(model, evaluator, name, solver, nfe, **more):
    """One solver on the unseen pairs, in plain JSON."""
    samples = gas.evaluation.sample_pairs(model, evaluator.pairs, solver)
    return {"name": name, **more, "nfe": nfe, "metrics": asdict(evaluator.measure(name, samples, nfe))}


def cells(metrics):
    """Misheard in percent, distances in decibels and Frechet distances, with 95 % intervals."""
    (misheard, half), (mean, width) = metrics["more"]["misheard"], metrics["more"]["decibels"]
    median, low, high = (
        RANGE / 2 * value**0.5 for value in (metrics["mse_median"], *metrics["mse_median_interval"])
    )
    to_teacher = metrics["to_teacher"]
    distances = [
        (to_teacher["frechet_corrected"], to_teacher["frechet_interval"]),
        (metrics["frechet_data_corrected"], metrics["frechet_data_interval"]),
    ]
    return [
        with_interval(100 * misheard, 100 * (misheard - half), 100 * (misheard + half)),
        with_interval(mean, mean - width, mean + width),
        with_interval(median, low, high),
        *("-" if value is None else with_interval(value, *ends) for value, ends in distances),
    ]


def table(rows):
    """Markdown of rows; those of several trainings are averaged, and each one's decibels listed."""
    head = ["NFE", "solver", "misheard, %", "dB, mean", "dB, median", "Frechet to teacher", "to speech"]
    lines = []
    for (nfe, name), group in itertools.groupby(rows, key=lambda row: (row["nfe"], row["name"])):
        metrics = [row["metrics"] for row in group]
        decibels = ", ".join(f"{each['more']['decibels'][0]:.2f}" for each in metrics)
        lines.append([nfe, name, *cells(average(metrics)), decibels if len(metrics) > 1 else ""])
    return markdown_table([*head, "dB by training"], lines)


def strip(path, rows):
    """Write rows of samples one after another: 8 bits, with half a second between rows."""
    pause = np.zeros(RATE // 2)
    wave = np.concatenate([part for row in rows for part in (waves(row).reshape(-1), pause)])
    wavfile.write(path, RATE, np.round(128 + 120 * wave / np.abs(wave).max()).astype(np.uint8))


def settings():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/sound"), help="folder of everything that resumes"
    )
    parser.add_argument("--nfe", type=int, nargs="+", default=[1, 2, 4, 6])
    parser.add_argument(
        "--voices", type=int, default=100, help="at least 10, for all three sides to have one"
    )
    parser.add_argument("--steps", type=int, default=900, help="of the network's training")
    parser.add_argument("--hearing", type=int, default=800, help="steps of the recognizer's training")
    parser.add_argument(
        "--pairs", type=int, default=192, help="teacher pairs of a training, a third to choose on"
    )
    parser.add_argument("--unseen", type=int, default=1000)
    parser.add_argument("--trainings", type=int, default=3, help="of each solver, on other pairs")
    parser.add_argument("--wav", help="WAV file of the ten digits at the listed NFE nearest to 4")
    parser.add_argument("--picture", help="PNG file of the same digits")
    parser.add_argument("--json", help="file of all measurements")
    return parser.parse_args()


def average(values):
    """Mean of plain JSON of the same form: numbers, and lists and mappings of them."""
    first = values[0]
    if isinstance(first, dict):
        return {key: average([value[key] for value in values]) for key in first}
    if isinstance(first, (list, tuple)):
        return [average(each) for each in zip(*values, strict=True)]
    return first if first is None or isinstance(first, str) else sum(values) / len(values)


def compare(model, unseen, learned, recognizer, speech, nfes):
    """Measure classical and learned solvers and the teacher: rows in plain JSON."""
    real = gas.metrics.feature_statistics(recognizer.features(speech))
    space = gas.evaluation.FeatureSpace(recognizer.features, real)
    evaluator = gas.Evaluator(unseen, space, judges(recognizer))
    rows = []
    for nfe in nfes:
        for name, solver in classical(model, unseen, nfe):
            rows.append(measured(model, evaluator, name, solver, nfe, spec=solver.spec))
        rows += [
            measured(model, evaluator, "GS", file.table(nfe), nfe, training=seed)
            for seed, file in enumerate(learned)
        ]
    metrics = asdict(evaluator.measure("teacher", unseen.target, unseen.teacher["nfe"]))
    return [*rows, {"name": "teacher", "nfe": unseen.teacher["nfe"], "metrics": metrics}]


def show(model, unseen, rows, learned, options):
    """Write sound and a picture of the ten digits at the NFE nearest to 4."""
    nfe = min(options.nfe, key=lambda each: abs(each - 4))
    best = next(row["spec"] for row in reversed(rows) if row["nfe"] == nfe and "spec" in row)
    few = unseen.subset(range(10))
    solvers = {
        f"{best}, {nfe} calls": gas.Classical(*best.split("/"), nfe, model.t_end),
        f"GS, {nfe} calls": learned[0].table(nfe),
    }
    samples = {name: gas.evaluation.sample_pairs(model, few, each) for name, each in solvers.items()}
    samples[f"teacher, {unseen.teacher['nfe']} calls"] = few.target
    if options.wav:
        strip(options.wav, samples.values())
    if options.picture:
        pictures = [(name, x.flip(1)[:, None].clamp(-1, 1)) for name, x in samples.items()]
        title = "Digits zero to nine spoken by one network: log-mel frames from the same noise in every row"
        gas.plotting.sample_grid(options.picture, pictures, title=title, highlight=1)


def main():
    options = settings()
    options.out.mkdir(parents=True, exist_ok=True)
    data = corpus(options.out / "corpus.pt", options.voices)
    sides = [data["group"] == side for side in (SPEAK, RECOGNIZE, TEST)]
    speech = [(data["frames"][side], data["digit"][side]) for side in sides]
    recognizer = train(
        options.out / "recognizer.pt", Recognizer, recognition_loss, speech[RECOGNIZE], steps=options.hearing
    )
    frames, digit = speech[TEST]
    error, half = gas.metrics.mean_interval((recognizer(frames).argmax(1) != digit).double())
    real = {"misheard": [error, half], "samples": len(digit)}
    network = train(options.out / "speaker.pt", Speaker, flow_loss, speech[SPEAK], steps=options.steps)
    model = spoken_digits(network)
    teacher = gas.Classical("unipc-2-bh2", "time_uniform", nfe=24, t_end=model.t_end)
    spec = gas.PairsSpec(range(50000, 50000 + options.unseen))
    for progress in gas.write_pairs(model, teacher, options.out / "unseen", spec):
        print(f"teacher: {progress.done}/{progress.total} unseen samples", flush=True)
    unseen = gas.read_pairs(options.out / "unseen").load()
    learned = [
        learn(model, teacher, options.nfe, options.out / f"gs-{seed}.json", seed=seed, count=options.pairs)
        for seed in range(options.trainings)
    ]
    rows = compare(model, unseen, learned, recognizer, speech[SPEAK][0], options.nfe)
    print(table(rows))
    print(f"real digits of other voices: {100 * error:.1f} ± {100 * half:.1f} % of {len(digit)} misheard")
    if options.json:
        write_text(options.json, json.dumps({"real": real, "rows": rows}, indent=1))
    show(model, unseen, rows, learned, options)


if __name__ == "__main__":
    main()
