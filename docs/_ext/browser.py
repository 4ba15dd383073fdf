"""What the page "In your browser" needs: its network as ONNX, solver files, noise, and onnxruntime-web.

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
# By the mean error on README's unseen seeds (docs/results/mnist.json), each on its best grid.
CLASSICAL = {
    "DPM-Solver++(3M)": ("dpmpp-3m", "log_snr"),
    "UniPC-3": ("unipc-3-bh2", "time_uniform"),
    "iPNDM-3": ("ipndm-3", "time_uniform"),
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
    """Write everything that page.mjs fetches."""
    model = gas.zoo.load("mnist")
    labels = torch.arange(10)
    noise = model.noise(range(FIRST_SEED, FIRST_SEED + 10))
    module = DenoiserModule(model.conditional, model.network)
    inputs = {"x": noise[:3], "t": torch.tensor([0.5], dtype=torch.float64), "label": labels[:3]}
    export(folder / "network.onnx", module, inputs, batch={"x": 0, "label": 0})
    learned = gas.load(gas.zoo.solver_path("mnist"))
    artefacts = {
        name: gas.save(None, [gas.Classical(*start, nfe, model.t_end) for nfe in learned.nfes], model=model)
        for name, start in CLASSICAL.items()
    }
    teacher = gas.Classical("unipc-3-bh2", "log_snr", 20, model.t_end)
    artefacts |= {"GS": learned, "Teacher": gas.save(None, teacher, model=model)}
    rows = {
        name: each.document.model_dump(mode="json", exclude_none=True) for name, each in artefacts.items()
    }
    settings = {"model": model.name, "side": model.sample_shape[-1], "labels": labels.tolist(), "rows": rows}
    settings["noise"] = [round(value, 6) for value in noise.flatten().tolist()]
    (folder / "solvers.json").write_text(json.dumps(settings))
    for path in (*(onnxruntime / name for name in FILES), ROOT / "examples" / "sampler.mjs"):
        shutil.copyfile(path, folder / path.name)


def _build_finished(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.name == "html" and (onnxruntime := runtime()) is not None:
        write(Path(app.outdir) / "_static" / "browser", onnxruntime)


def setup(app: Sphinx) -> dict:
    """Register the step after the build."""
    app.connect("build-finished", _build_finished)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
