"""What the page "In your browser" needs: networks as ONNX, solver files, noise, and onnxruntime-web.

onnxruntime-web comes from the npm registry, once, into ``build/onnxruntime-web``; where that cannot be had the site is
built without it, and the page says so.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import torch
from sphinx.application import Sphinx
from sphinx.util import logging

import gas
from gas.denoise import ClassifierFreeGuidance, DiscreteTime, VelocityDenoiser
from gas.integrations.onnx import DenoiserModule, export

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "build" / "onnxruntime-web"
VERSION = "1.30.0"
SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
FILES = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"]
FIRST_SEED = 50000
PROMPTS = [
    "grinning face",
    "dog face",
    "cat face",
    "strawberry",
    "panda face",
    "hamburger",
    "sunflower",
    "owl",
]
# By the mean error on unseen seeds (docs/results/mnist.json, docs/results/emoji.json), each on its best grid at NFE 4.
CLASSICAL = {
    "mnist": {
        "DPM-Solver++(3M)": ("dpmpp-3m", "log_snr"),
        "UniPC-3": ("unipc-3-bh2", "time_uniform"),
        "iPNDM-3": ("ipndm-3", "time_uniform"),
    },
    "emoji": {
        "DPM-Solver++(3M)": ("dpmpp-3m", "log_snr"),
        "UniPC-3": ("unipc-3-bh2", "time_cubic"),
        "iPNDM-3": ("ipndm-3", "time_cubic"),
    },
}


def runtime() -> Path | None:
    """Return the folder with onnxruntime-web's files, fetched if it is not there; ``None`` where it cannot be."""
    if RUNTIME.exists():
        return RUNTIME
    npm = shutil.which("npm")
    if npm is None:
        logger.info("no npm, so no sampling in the browser")
        return None
    RUNTIME.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RUNTIME.parent) as folder:
        unpacked = Path(folder) / "runtime"
        unpacked.mkdir()
        command = [npm, "pack", "--silent", f"onnxruntime-web@{VERSION}"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            logger.info("no onnxruntime-web, so no sampling in the browser: %s", error)
            return None
        archive = Path(folder) / f"onnxruntime-web-{VERSION}.tgz"
        if hashlib.sha512(archive.read_bytes()).hexdigest() != SHA512:
            raise RuntimeError(
                f"onnxruntime-web {VERSION} from npm is not the one that this page was made for"
            )
        with tarfile.open(archive) as package:
            for name in FILES:
                (unpacked / name).write_bytes(package.extractfile(f"package/dist/{name}").read())
        unpacked.rename(RUNTIME)
    return RUNTIME


def write(folder: Path, onnxruntime: Path) -> None:
    """Write everything that page.mjs fetches: a folder for each model, and what they share."""
    for name, part in WRITERS.items():
        part(gas.zoo.load(name), folder / name)
    for path in (*(onnxruntime / name for name in FILES), ROOT / "examples" / "sampler.mjs"):
        shutil.copyfile(path, folder / path.name)


def write_mnist(model: gas.zoo.ZooModel, folder: Path) -> None:
    """Write ``mnist``: its conditions are the ten digits."""
    labels = torch.arange(10)
    _export_denoiser(model, folder, DenoiserModule(model.conditional, model.network), labels)
    _write_settings(model, folder, conditions=labels.tolist())


def write_emoji(model: gas.pipelines.PipelineModel, folder: Path) -> None:
    """Write ``emoji``: its conditions are tokens of prompts, and a second graph decodes its samples."""
    pipe, scale = model.pipe, gas.zoo.guidance("emoji")
    tokenizer = pipe.tokenizer
    empty, first = (_tokens(tokenizer, prompts) for prompts in ([""], PROMPTS))

    def network(x: torch.Tensor, step: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        words = pipe.text_encoder(tokens).last_hidden_state
        return pipe.unet(x, step.float(), encoder_hidden_states=words).sample

    conditional = VelocityDenoiser(DiscreteTime(network, model.schedule), model.schedule)

    def denoise(x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return ClassifierFreeGuidance(conditional, tokens, empty, scale)(x, t)

    networks = torch.nn.ModuleList([pipe.unet, pipe.text_encoder])
    _export_denoiser(model, folder, DenoiserModule(denoise, networks), first)
    latents = model.noise(range(3))
    export(folder / "decoder.onnx", Decoder(pipe.vae), {"x": latents}, batch={"x": 0})
    words = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    settings = {"prompts": PROMPTS, "vocabulary": [word for word, _ in words], "tokens": first.shape[1]}
    _write_settings(model, folder, guidance=scale, **settings)


WRITERS = {"mnist": write_mnist, "emoji": write_emoji}


class Decoder(torch.nn.Module):
    """An autoencoder's decoder, ``latents -> images`` in [-1, 1]."""

    def __init__(self, vae: torch.nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Decode samples ``(B, C, H, W)``."""
        return self.vae.decode(x / self.vae.config.scaling_factor).sample.clamp(-1, 1)


def _tokens(tokenizer: object, prompts: list[str]) -> torch.Tensor:
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def _export_denoiser(
    model: gas.models.Model, folder: Path, module: DenoiserModule, condition: torch.Tensor
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {"x": model.noise(range(3)), "t": torch.tensor([0.5], dtype=torch.float64)}
    inputs["condition"] = condition[:3]
    export(folder / "network.onnx", module, inputs, batch={"x": 0, "condition": 0})


def _write_settings(
    model: gas.models.Model, folder: Path, *, guidance: float = 1.0, **settings: object
) -> None:
    """Write solver files by name, the first noise, and what else the page asks."""
    learned = gas.load(gas.zoo.solver_path(model.name))

    def file(solvers: list[gas.Classical]) -> gas.Artefact:
        return gas.save(None, solvers, model=model, guidance=guidance)

    artefacts = {
        name: file([gas.Classical(*start, nfe, model.t_end) for nfe in learned.nfes])
        for name, start in CLASSICAL[model.name].items()
    }
    teacher = gas.Classical("unipc-3-bh2", "log_snr", 20, model.t_end)
    artefacts |= {"GS": learned, "Teacher": file([teacher])}
    rows = {
        name: each.document.model_dump(mode="json", exclude_none=True) for name, each in artefacts.items()
    }
    count = len(settings.get("prompts") or settings["conditions"])
    noise = model.noise(range(FIRST_SEED, FIRST_SEED + count)).flatten().tolist()
    settings |= {"model": model.name, "guidance": guidance, "shape": list(model.sample_shape)}
    settings |= {"nfes": learned.nfes, "rows": rows, "noise": [round(value, 6) for value in noise]}
    (folder / "solvers.json").write_text(json.dumps(settings))


def _build_finished(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html" and (onnxruntime := runtime()) is not None:
        write(Path(app.outdir) / "_static" / "browser", onnxruntime)


def setup(app: Sphinx) -> dict:
    """Register the step after the build."""
    app.connect("build-finished", _build_finished)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
