"""The published files of a preset: where they are, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gas.errors import UserError
from gas.paper.presets import Preset
from gas.workspace import WEIGHTS_VARIABLE

_INCEPTION, _VGG = "pt_inception-2015-12-05-6726825d.pth", "vgg16-397923af.pth"
_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/"
_COMPVIS = "https://ommer-lab.com/files/latent-diffusion/"
_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/"
# Where each file is published.
_SOURCES = {
    "edm-cifar10-32x32-uncond-vp.pkl": f"{_EDM}pretrained/edm-cifar10-32x32-uncond-vp.pkl",
    "edm-ffhq-64x64-uncond-vp.pkl": f"{_EDM}pretrained/edm-ffhq-64x64-uncond-vp.pkl",
    "edm-afhqv2-64x64-uncond-vp.pkl": f"{_EDM}pretrained/edm-afhqv2-64x64-uncond-vp.pkl",
    "lsun_bedrooms/model.ckpt": f"{_COMPVIS}lsun_bedrooms.zip (unpack it)",
    "cin256-v2/model.ckpt": f"{_COMPVIS}nitro/cin/model.ckpt",
    "stable-diffusion-v1-5": "Hugging Face stable-diffusion-v1-5/stable-diffusion-v1-5, the folder, as safetensors",
    "R3GAN-CIFAR10.pkl": "Hugging Face brownvc/R3GAN-CIFAR10, its .pkl under this name",
    "R3GAN-FFHQ-64x64.pkl": "Hugging Face brownvc/R3GAN-FFHQ-64x64, its .pkl under this name",
    _VGG: f"https://download.pytorch.org/models/{_VGG}",
    "lpips-vgg.pth": "lpips/weights/v0.1/vgg.pth of the package lpips, under this name",
    "prompts.txt": "captions of MS-COCO's validation set, one a line, in the order of the seeds",
    _INCEPTION: f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{_INCEPTION}",
    "cifar10-32x32.npz": f"{_EDM}fid-refs/cifar10-32x32.npz",
    "ffhq-64x64.npz": f"{_EDM}fid-refs/ffhq-64x64.npz",
    "afhqv2-64x64.npz": f"{_EDM}fid-refs/afhqv2-64x64.npz",
    "VIRTUAL_lsun_bedroom256.npz": f"{_ADM}lsun/bedroom/VIRTUAL_lsun_bedroom256.npz",
    "VIRTUAL_imagenet256_labeled.npz": f"{_ADM}imagenet/256/VIRTUAL_imagenet256_labeled.npz",
    "coco-val2014-512.npz": "made by gas statistics --images of MS-COCO's validation images, 512 x 512",
}
# Real data that samples of a preset are measured against.
_REFERENCES = {
    "cifar10": "cifar10-32x32.npz",
    "ffhq": "ffhq-64x64.npz",
    "afhqv2": "afhqv2-64x64.npz",
    "lsun": "VIRTUAL_lsun_bedroom256.npz",
    "imagenet": "VIRTUAL_imagenet256_labeled.npz",
    "coco": "coco-val2014-512.npz",
}
# torchvision writes the first digits of a file's checksum into its name.
_CHECKSUMS = {_VGG: "begins with 397923af", _INCEPTION: "begins with 6726825d"}
_NETWORKS = {
    "edm": "EDM's pickle, or its conversion by gas paper convert",
    "ldm": "CompVis's checkpoint with its first stage, or its conversion by gas paper convert",
    "sd": "a diffusers folder of Stable Diffusion",
}


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file that a preset needs, and its place on this machine.

    Attributes:
        role: ``"network"``, ``"critic"``, ``"loss"``, ``"loss weights"`` or ``"prompts"``; for measuring,
            ``"features"``, ``"reference"`` (statistics) or ``"images"`` (statistics with real images).
        path: of the file, ``None`` if it is missing.
        place: where it is looked for first.
        source: where it is published.
        sha256: the known part of its checksum; ``"unknown"`` for most, which were never measured here.
    """

    name: str
    role: str
    description: str
    needed_for: str
    path: Path | None
    place: Path
    source: str
    sha256: str


def find_files(preset: Preset, folder: Path) -> list[PublishedFile]:
    """Look for the files that a preset needs.

    Each is looked for by its published name in the folder, then in its subfolder of the preset's name; weights also
    as safetensors, as ``gas paper convert`` writes them.
    """
    # Name, role, description, purpose.
    files = [(preset.network, "network", _NETWORKS[preset.kind], "everything")]
    if preset.critic_file:
        critic = "R3GAN's pickle, or its conversion by gas paper convert"
        files.append((preset.critic_file, "critic", critic, "--objective gas"))
    if preset.loss == "lpips":
        files.append((_VGG, "loss", "torchvision's VGG-16", "training"))
        files.append(("lpips-vgg.pth", "loss weights", "LPIPS's own weights of channels", "training"))
    if preset.kind == "sd":
        files.append(("prompts.txt", "prompts", "a UTF-8 file of one prompt a line", "everything"))
    return [_find(preset, folder, *entries) for entries in files]


def find_measuring_files(preset: Preset, folder: Path) -> list[PublishedFile]:
    """Look for the files of a preset's metric: Inception's weights, and statistics or images of real data."""
    name = _REFERENCES[preset.name]
    # ADM's reference batches hold images beside statistics; precision, recall, density and coverage need them.
    is_batch = name.startswith("VIRTUAL_")
    role, purpose = ("images", "FID, recall and coverage") if is_batch else ("reference", "FID")
    return [
        _find(preset, folder, _INCEPTION, "features", "pytorch-fid's Inception-v3", "FID"),
        _find(preset, folder, name, role, preset.reference, purpose),
    ]


def _find(
    preset: Preset, folder: Path, name: str, role: str, description: str, needed_for: str
) -> PublishedFile:
    candidates = [folder / name, folder / preset.name / name]
    candidates += [c.with_suffix(".safetensors") for c in candidates if c.suffix in (".pkl", ".ckpt")]
    return PublishedFile(
        name=name,
        role=role,
        description=description,
        needed_for=needed_for,
        path=next((candidate for candidate in candidates if candidate.exists()), None),
        place=candidates[0],
        source=_SOURCES.get(name, "unknown"),
        sha256=_CHECKSUMS.get(name, "unknown"),
    )


def need(preset: Preset, role: str, folder: Path) -> Path:
    """Return the path of the file of a role.

    Raises:
        FileNotFoundError: names the file, where to put it and where to get it.
    """
    (file,) = (each for each in find_files(preset, folder) if each.role == role)
    if file.path is None:
        raise FileNotFoundError(
            f"preset {preset.name} needs {file.place} (or name its folder by --preset-weights or "
            f"{WEIGHTS_VARIABLE}): gas paper doctor {preset.name} says what it is and where it is published"
        )
    return file.path


def prompts_path(preset: Preset, folder: Path, given: Path | None) -> Path | None:
    """Return the file of prompts, the given one or that in the folder, if the preset takes any.

    Raises:
        UserError: for prompts that the preset does not take.
    """
    if preset.kind != "sd":
        if given is not None:
            raise UserError(f"preset {preset.name} takes no --prompts")
        return None
    return need(preset, "prompts", folder) if given is None else given


def describe_file(file: PublishedFile) -> str:
    """Describe the contents of a file, read as data; nothing in it is executed.

    Raises:
        UserError: when it is damaged, unsafe, or another file than it should be.
    """
    from gas.features.inception import Inception
    from gas.metrics.statistics import read_statistics
    from gas.pipelines.prompts import read_prompts
    from gas.training.adversarial.r3gan import load_discriminator
    from gas.unpickle.loading import read_state

    path = file.path
    if path is None:
        return "missing"
    if path.is_dir():
        return _describe_folder(path)
    if file.role == "prompts":
        return f"{len(read_prompts(path)):,} prompts"
    if file.role in ("reference", "images"):
        return f"statistics of {len(read_statistics(path).mean):,} features"
    tensors: Mapping[str, Tensor]
    if file.role == "critic":
        name, tensors = "an R3GAN discriminator", load_discriminator(path).state_dict()
    elif file.role == "features":
        name, tensors = "Inception-v3", Inception(read_state(path)).state_dict()
    elif file.role == "network":
        name, tensors = _read_network(path)
    else:
        name, tensors = "weights", read_state(path)
    return f"{name}, {sum(tensor.numel() for tensor in tensors.values()):,} numbers"


def _read_network(path: Path) -> tuple[str, Mapping[str, Tensor]]:
    from gas.paper import edm, ldm

    if path.suffix == ".ckpt" or ldm.is_converted(path):
        model = ldm.read(path)
        first = "with" if model.part("first.") else "without"
        return f"latent diffusion {first} its first stage", model.tensors
    weights = edm.read_weights(path)
    side = edm.build(weights).img_resolution
    return f"an EDM network for {side} x {side}", weights.tensors


def _describe_folder(path: Path) -> str:
    from gas.model_folder import check_model_folder
    from gas.pipelines.loading import read_index

    name = str(read_index(path).get("_class_name"))
    check_model_folder(path)
    parts = ("unet", "vae", "text_encoder")
    if lacking := [part for part in parts if not list((path / part).glob("*.safetensors"))]:
        raise UserError(f"{path} has no safetensors in {', '.join(lacking)}; download it again")
    return f"a diffusers folder of {name}"
