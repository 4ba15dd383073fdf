"""Hostile model folders: nothing in them runs, nothing outside them is read, and each is refused at once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # other libraries' deprecations

import gas  # noqa: E402
from gas.features.transformer import ClipImages  # noqa: E402
from gas.model_folder import check_model_folder  # noqa: E402
from gas.pipelines.loading import open_pipeline  # noqa: E402
from support import pipelines  # noqa: E402 (after the library it needs)
from support.covering import thinned  # noqa: E402

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pipeline's folder as diffusers saves it; opening it imports what refusals are timed after."""
    folder = tmp_path_factory.mktemp("whole") / "sd"
    pipelines.build("sd1").save_pretrained(folder)
    assert type(open_pipeline(str(folder))).__name__ == "StableDiffusionPipeline"
    return folder


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """A copy, from within which the library is called, as ``python -m gas`` would be."""
    shutil.copytree(whole, tmp_path / "sd")
    monkeypatch.chdir(tmp_path / "sd")
    monkeypatch.syspath_prepend(str(tmp_path / "sd"))
    return tmp_path / "sd"


class Bomb:
    def __reduce__(self):
        return (open, ("../ran", "w"))


def payload(folder: Path) -> str:
    return (
        f"open({str(folder.parent / 'ran')!r}, 'w').close()\nclass Evil: pass\nUNet2DConditionModel = Evil\n"
    )


def edit(file: str, **entries):
    """Change entries of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **entries}))

    return change


def code(*files: str, **index):
    """Put the payload into files, and entries into the index."""

    def change(folder: Path) -> None:
        for file in files:
            (folder / file).write_text(payload(folder))
        edit("model_index.json", **index)(folder)

    return change


def pickled(file: str, instead: bool = True):
    def change(folder: Path) -> None:
        (folder / file).write_bytes(pickle.dumps(Bomb()))
        if instead:
            for weights in (folder / file).parent.glob("*.safetensors"):
                weights.unlink()

    return change


def index_of_shards(*names: object):
    def change(folder: Path) -> None:
        (folder / UNET).unlink()
        for name in ("../evil.bin", "unet/evil.bin"):
            (folder / name).write_bytes(pickle.dumps(Bomb()))
        shards = {"metadata": {}, "weight_map": dict(enumerate(names))}
        (folder / f"{UNET}.index.json").write_text(json.dumps(shards))

    return change


def link(file: str, target: str):
    def change(folder: Path) -> None:
        (folder.parent / "elsewhere").mkdir()
        (folder.parent / "elsewhere" / "diffusers.py").write_text(payload(folder))
        (folder.parent / "secret.json").write_text("{}")
        (folder / ".hidden").mkdir()
        (folder / ".hidden" / "diffusers.py").write_text(payload(folder))
        path = folder / file
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(target)

    return change


def fifo(file: str):
    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)

    return change


def plug(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("unet/s")


def text(file: str, content: str | bytes):
    def change(folder: Path) -> None:
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def many(folder: Path) -> None:
    (folder / "unet" / "more").mkdir()
    for n in range(2001):
        (folder / "unet" / "more" / f"{n}.txt").touch()


def deep(folder: Path) -> None:
    (folder / "unet" / "a" / "b" / "c" / "d").mkdir(parents=True)


HEADER = json.dumps(
    {f"w{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(20_001)}
).encode()

HOSTILE = {
    # code of the folder's, by every way that a version of diffusers has had
    "class of the pipeline": code("evil.py", _class_name=["evil", "Evil"]),
    "class of the pipeline, as a module": code("evil.py", _class_name="evil.Evil"),
    "class of a component": code("evil.py", "unet/evil.py", unet=["evil", "Evil"]),
    "module of the interpreter": code(unet=["os", "system"]),
    "module of the interpreter, nested": code(unet=["importlib.util", "find_spec"]),
    "file named as the library": code("unet/diffusers.py"),
    "file named as the library, component": code("text_encoder/transformers.py"),
    "file of no custom pipeline": code("None.py"),
    "file of a custom pipeline": code("pipeline.py", custom_pipeline="pipeline"),
    "modular pipeline": code("block.py", _class_name="ModularPipeline"),
    "compiled code": code("unet/diffusers.pyc"),
    "code in capitals": code("unet/diffusers.PY"),
    "pipeline in a pipeline": code(unet=["diffusers", "DiffusionPipeline"]),
    "class chosen by its config": code("unet/evil.py", unet=["diffusers", "AutoModel"]),
    "tokenizer chosen by its config": code(tokenizer=["transformers", "AutoTokenizer"]),
    "function as a class": code(unet=["diffusers.utils", "load_image"]),
    "private member": code(unet=["transformers", "_LazyModule"]),
    "class of another library": code(unet=["torch.nn", "Linear"]),
    "class of ours": code(unet=["gas", "GeneralizedSolver"]),
    "component that is an object": code(unet={"evil": "Evil"}),
    "component of three": code(unet=["evil", "Evil", "evil"]),
    "component of numbers": code(unet=[1, 2]),
    "component beside the folder": code("../evil.py", **{"../evil": ["diffusers", "UNet2DConditionModel"]}),
    "unsupported pipeline": code(_class_name="KandinskyCombinedPipeline"),
    "map of classes": edit("text_encoder/config.json", auto_map={"AutoModel": "evil.Evil"}),
    "map of classes, nested": edit("text_encoder/config.json", text_config={"auto_map": {"AutoModel": "a/b--evil.E"}}),
    "map of classes, tokenizer": edit("tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.E", None]}),
    "kernel of the hub": edit("text_encoder/config.json", attn_implementation="evil/kernel"),
    "adapter of another model": edit("text_encoder/adapter_config.json", base_model_name_or_path="../evil"),
    "quantization that unpickles": edit("unet/config.json", quantization_config={"quant_method": "modelopt"}),
    "weights elsewhere": edit("text_encoder/config.json", transformers_weights="../../evil.safetensors"),
    # pickles
    "pickled network": pickled("unet/diffusion_pytorch_model.bin"),
    "pickled text encoder": pickled("text_encoder/pytorch_model.bin"),
    "pickled decoder": pickled("vae/diffusion_pytorch_model.ckpt"),
    "pickle beside": pickled("tokenizer/vocab.pkl", instead=False),
    "shard that is pickled": index_of_shards("evil.bin"),
    "shard outside": index_of_shards("../../evil.bin"),
    "shard that is no name": index_of_shards(["evil.bin"]),
    # other places
    "link to a file": link("unet/config.json", "../../secret.json"),
    "link to a folder": link("unet", "../elsewhere"),
    "link to a hidden folder": link("unet", ".hidden"),
    "link to a device": link("tokenizer/merges.txt", "/dev/zero"),
    "link to nothing": link("unet/config.json", "nowhere"),
    "link to itself": link("unet/config.json", "config.json"),
    "vocabulary elsewhere": edit("tokenizer/tokenizer_config.json", vocab_file="/dev/zero"),
    "pipe in place of the index": fifo("model_index.json"),
    "pipe in place of a config": fifo("unet/config.json"),
    "pipe in place of weights": fifo(UNET),
    "pipe beside": fifo("unet/more"),
    "socket": plug,
    # sizes
    "index that is no object": text("model_index.json", "[]"),
    "index nested deeply": text("model_index.json", "[" * 100_000),
    "config nested deeply": text("unet/config.json", '{"a":' * 900 + "1" + "}" * 900),
    "config of bytes": text("unet/config.json", b"\xff\xfe{}"),
    "config of 5 MB": text("unet/config.json", json.dumps({"a": "x" * 5_000_000})),
    "config of many values": text("unet/config.json", json.dumps({"a": [0] * 1_000_000})),
    "vocabulary of 70 MB": text("tokenizer/vocab.json", b" " * 70_000_000),
    "header of 100 GB": text(UNET, (10**11).to_bytes(8, "little") + b"{}"),
    "header that is no JSON": text(UNET, (8).to_bytes(8, "little") + b"{" * 8),
    "header of many tensors": text(UNET, len(HEADER).to_bytes(8, "little") + HEADER),
    "network of a billion layers": edit("unet/config.json", layers_per_block=10**6),
    "network of many blocks": edit("unet/config.json", down_block_types=["DownBlock2D"] * 100_000),
    "encoder of a billion layers": edit("text_encoder/config.json", num_hidden_layers=10**9),
    "vocabulary of 10^12": edit("text_encoder/config.json", vocab_size=10**12),
    "vocabulary of 10^30": edit("text_encoder/config.json", vocab_size=10**30),
    "name that occurs twice": text("unet/config.json", '{"sample_size": 8, "sample_size": 8}'),
    "config that passes for a solver": edit("unet/config.json", format="gas-solver", layers_per_block=10**6),
    "solver that is none": text("scheduler/solver.json", '{"format": "gas-solver", "version": 1, "auto_map": {}}'),
    "solver of 30 MB": text("scheduler/solver.json", b" " * 30_000_000),
    "scheduler of 10^12 steps": edit("scheduler/scheduler_config.json", num_train_timesteps=10**12),
    "positions of 10^12": edit(
        "unet/config.json", sample_size=10**6, num_attention_heads=8, attention_head_dim=64, patch_size=1
    ),
    "many files": many,
    "many levels": deep,
}  # fmt: skip


@pytest.mark.parametrize("name", thinned(list(HOSTILE), 3))
def test_a_hostile_folder_is_refused_at_once_and_runs_nothing(name: str, folder: Path) -> None:
    HOSTILE[name](folder)
    before = set(sys.modules)
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        open_pipeline(str(folder))
    assert time.process_time() - start < 2
    message = str(caught.value).replace(str(folder), "FOLDER")
    assert "\n" not in message and len(message) < 300
    assert not (folder.parent / "ran").exists()
    assert not {module for module in set(sys.modules) - before if "evil" in module.lower()}


@pytest.mark.parametrize(
    "change",
    [
        edit(
            "tokenizer/tokenizer_config.json", chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"
        ),
        text("tokenizer/chat_template.jinja", "{% for a in range(10**10) %}{{ a }}{% endfor %}"),
        pickled("unet/diffusion_pytorch_model.bin", instead=False),
        edit("tokenizer/tokenizer_config.json", special_tokens_map_file="/dev/zero", model_max_length=10**30),
        edit("model_index.json", feature_extractor=[None, None], requires_safety_checker=False),
    ],
)
def test_what_a_clone_may_hold_beside_is_left_alone(change, folder: Path) -> None:
    change(folder)
    open_pipeline(str(folder))
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("nfe", [4, pytest.param(500, marks=pytest.mark.slow)])
def test_a_pipeline_that_was_saved_with_our_scheduler_opens_again(nfe: int, folder: Path) -> None:
    pipe = open_pipeline(str(folder))
    schedule = gas.VPDiscrete(pipe.scheduler.alphas_cumprod.double())
    solver = gas.Classical("ipndm-3", "log_snr", nfe, 1e-3).table(schedule)
    training = {"seeds": [0, 5_000_000], "seed": 2_000_000, "layers": 10**6}
    artefact = gas.save(None, solver, training=training)
    pipe.scheduler = gas.GASScheduler.from_config(pipe.scheduler.config, solver=artefact)
    pipe.save_pretrained(folder.parent / "ours")
    again = open_pipeline(str(folder.parent / "ours")).scheduler.artefact
    assert again.nfes == [nfe] and dict(again.document.training) == training


def test_a_solver_within_a_schedulers_config_is_one_too(folder: Path) -> None:
    table = gas.Classical("ipndm-3", "log_snr", 4, 1e-3).table(gas.VPLinear())
    gas.save(folder.parent / "solver.json", table, training={"seeds": [0, 5_000_000]})
    content = json.loads((folder.parent / "solver.json").read_text())
    edit("scheduler/scheduler_config.json", solver=content)(folder)
    check_model_folder(folder)
    edit("scheduler/scheduler_config.json", solver={**content, "auto_map": {"AutoModel": "evil.Evil"}})(
        folder
    )
    with pytest.raises(ValueError, match="no valid solver"):
        check_model_folder(folder)


def snapshot(whole: Path, cache: Path, name: str) -> Path:
    """The hub's cache of a repository: links to blobs."""
    home = cache / f"models--{name.replace('/', '--')}"
    files = [file for file in whole.rglob("*") if file.is_file()]
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("c" * 40)
    (home / "blobs").mkdir()
    for n, file in enumerate(files):
        shutil.copyfile(file, home / "blobs" / str(n))
        place = home / "snapshots" / ("c" * 40) / file.relative_to(whole)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(home / "blobs" / str(n), place.parent))
    return home / "snapshots" / ("c" * 40)


def test_a_repository_of_the_hub_is_checked_too(whole, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    copy = snapshot(whole, tmp_path, "someone/sd")
    assert open_pipeline("someone/sd").name_or_path == "someone/sd"
    (copy / "unet" / "diffusers.py").write_text(payload(tmp_path / "sd"))
    with pytest.raises(ValueError, match="holds code"):
        open_pipeline("someone/sd")
    (copy / "unet" / "diffusers.py").unlink()
    (copy / "model_index.json").unlink()
    (copy / "evil.py").write_text(payload(tmp_path / "sd"))
    (copy / "model_index.json").write_text('{"_class_name": ["evil", "Evil"]}')
    with pytest.raises(ValueError, match="_class_name must be a pipeline"):
        open_pipeline("someone/sd")
    with pytest.raises(ValueError, match="model someone/other cannot be downloaded"):
        open_pipeline("someone/other")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change", ["map of classes", "kernel of the hub", "link to a file", "encoder of a billion layers"]
)
def test_folders_of_features_are_checked_too(change, tmp_path):
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    sides = {"text_config": small, "vision_config": {**small, "image_size": 8, "patch_size": 4}}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(**sides, projection_dim=8)).save_pretrained(tmp_path / "a" / "text_encoder")
    ClipImages(tmp_path / "a" / "text_encoder")
    if change == "link to a file":
        shutil.move(tmp_path / "a" / "text_encoder" / "config.json", tmp_path / "config.json")
        (tmp_path / "a" / "text_encoder" / "config.json").symlink_to(tmp_path / "config.json")
    else:
        HOSTILE[change](tmp_path / "a")
    with pytest.raises(ValueError, match="is refused"):
        ClipImages(tmp_path / "a" / "text_encoder")
