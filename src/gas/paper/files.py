"""Where the files of a preset lie, which of them are there, and whether they are what they should be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gas.errors import UserError
from gas.paper.presets import Preset
from gas.workspace import WEIGHTS_VARIABLE

__all__ = [
    "File",
    "Found",
    "files_of",
    "find_files",
    "find_measuring_files",
    "layout",
    "measuring_files_of",
    "need",
    "prompts_of",
]

_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
_COMPVIS = "https://ommer-lab.com/files/latent-diffusion/"
# Where each is published.
_SOURCES = {
    "edm-cifar10-32x32-uncond-vp.pkl": _EDM + "edm-cifar10-32x32-uncond-vp.pkl",
    "edm-ffhq-64x64-uncond-vp.pkl": _EDM + "edm-ffhq-64x64-uncond-vp.pkl",
    "edm-afhqv2-64x64-uncond-vp.pkl": _EDM + "edm-afhqv2-64x64-uncond-vp.pkl",
    "lsun_bedrooms/model.ckpt": _COMPVIS + "lsun_bedrooms.zip (unpack it)",
    "cin256-v2/model.ckpt": _COMPVIS + "nitro/cin/model.ckpt",
    "stable-diffusion-v1-5": "Hugging Face stable-diffusion-v1-5/stable-diffusion-v1-5, the folder, as safetensors",
    "R3GAN-CIFAR10.pkl": "Hugging Face brownvc/R3GAN-CIFAR10, its .pkl under this name",
    "R3GAN-FFHQ-64x64.pkl": "Hugging Face brownvc/R3GAN-FFHQ-64x64, its .pkl under this name",
    "vgg16-397923af.pth": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "lpips-vgg.pth": "lpips/weights/v0.1/vgg.pth of the package lpips, under this name",
    "prompts.txt": "captions of MS-COCO's validation set, one a line, in the order of the seeds",
}
_INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
_SOURCES[_INCEPTION] = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{_INCEPTION}"
_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/"
# What samples of a preset are measured against, with where it is published.
_REFERENCES = {
    **{
        name: (
            f"{name}-{size}x{size}.npz",
            f"https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/{name}-{size}x{size}.npz",
        )
        for name, size in (("cifar10", 32), ("ffhq", 64), ("afhqv2", 64))
    },
    "lsun": ("VIRTUAL_lsun_bedroom256.npz", _ADM + "lsun/bedroom/VIRTUAL_lsun_bedroom256.npz"),
    "imagenet": ("VIRTUAL_imagenet256_labeled.npz", _ADM + "imagenet/256/VIRTUAL_imagenet256_labeled.npz"),
    "coco": (
        "coco-val2014-512.npz",
        "made by gas statistics --images of MS-COCO's validation images, 512 x 512",
    ),
}
# Reference batches hold their images too, which precision, recall, density and coverage need.
_WITH_IMAGES = "VIRTUAL_"
_UNKNOWN = "unknown"
# torchvision writes the first digits of a file's checksum into its name.
_CHECKSUMS = {"vgg16-397923af.pth": "begins with 397923af", _INCEPTION: "begins with 6726825d"}


@dataclass(frozen=True)
class File:
    """A file that a preset needs.

    Attributes:
        name: under the folder of weights.
        role: ``"network"``, ``"critic"``, ``"loss"``, ``"loss weights"`` or ``"prompts"``; of measuring ``"features"``,
            ``"reference"`` (statistics) or ``"images"`` (the same with real images).
        what: it should be, in words.
        needed_for: in words.
        source: where it is published.
        sha256: what is known of its checksum; ``"unknown"`` for most: none was measured where this library was made.
    """

    name: str
    role: str
    what: str
    needed_for: str
    source: str
    sha256: str = _UNKNOWN


@dataclass(frozen=True)
class Found:
    """A file with the place where it is, if it is, and where it was looked for."""

    file: File
    path: Path | None
    looked: tuple[Path, ...]


def files_of(preset: Preset) -> list[File]:
    """Return the files that a preset needs."""
    network = {
        "edm": "EDM's pickle, or what gas convert makes of it",
        "ldm": "CompVis's checkpoint with its first stage, or what gas convert makes of it",
        "sd": "a diffusers folder of Stable Diffusion",
    }[preset.kind]
    files = [File(preset.network, "network", network, "everything", _source(preset.network))]
    if preset.critic_file:
        description = "R3GAN's pickle, or what gas convert makes of it"
        files.append(
            File(preset.critic_file, "critic", description, "--objective gas", _source(preset.critic_file))
        )
    if preset.loss == "lpips":
        for name, role in (("vgg16-397923af.pth", "loss"), ("lpips-vgg.pth", "loss weights")):
            description = (
                "VGG-16 as torchvision has it" if role == "loss" else "LPIPS's own weights of channels"
            )
            checksum = _CHECKSUMS.get(name, _UNKNOWN)
            files.append(File(name, role, description, "training", _source(name), checksum))
    if preset.kind == "sd":
        description = "a UTF-8 file of one prompt a line"
        files.append(File("prompts.txt", "prompts", description, "everything", _source("prompts.txt")))
    return files


def measuring_files_of(preset: Preset) -> list[File]:
    """Return the files that a preset's metric needs: Inception's weights, and statistics or images of real data."""
    name, source = _REFERENCES[preset.name]
    description = "Inception-v3 of FID, as pytorch-fid has it"
    features = File(_INCEPTION, "features", description, "FID", _source(_INCEPTION), _CHECKSUMS[_INCEPTION])
    images = name.startswith(_WITH_IMAGES)
    needed = "FID, recall and coverage" if images else "FID"
    return [features, File(name, "images" if images else "reference", preset.reference, needed, source)]


def find_measuring_files(preset: Preset, folder: Path) -> list[Found]:
    """Look for what a preset's metric needs, as :func:`find_files` does."""
    return [_find(file, preset, folder) for file in measuring_files_of(preset)]


def find_files(preset: Preset, folder: Path) -> list[Found]:
    """Look for a preset's files.

    Each is looked for by its published name in the folder, then in its subfolder of the preset's name; a file also as
    safetensors, as ``gas convert`` writes them.
    """
    return [_find(file, preset, folder) for file in files_of(preset)]


def need(preset: Preset, role: str, folder: Path) -> Path:
    """Return where the file of a role is.

    Raises:
        FileNotFoundError: says what is missing, where to put it and where to get it.
    """
    (found,) = (one for one in find_files(preset, folder) if one.file.role == role)
    if found.path is None:
        raise FileNotFoundError(
            f"preset {preset.name} needs {found.looked[0]} (or name its folder by --preset-weights or {WEIGHTS_VARIABLE}): "
            f"gas doctor --preset {preset.name} says what it is and where it is published"
        )
    return found.path


def prompts_of(preset: Preset, folder: Path, given: Path | None) -> Path | None:
    """Return the file of prompts, where the preset takes some.

    Raises:
        ValueError: for prompts that the preset does not take.
        FileNotFoundError: when none are given, nor there.
    """
    if preset.kind != "sd":
        if given is not None:
            raise UserError(f"preset {preset.name} takes no --prompts")
        return None
    return need(preset, "prompts", folder) if given is None else given


def layout(found: Found) -> str:
    """Say what a file holds, reading it as data; nothing in it is executed.

    Raises:
        ValueError: when it is damaged, unsafe, or not what it should be.
    """
    path, role = found.path, found.file.role
    if path is None:
        return "missing"
    if role == "prompts":
        from gas.pipelines.loading import read_prompts

        return f"{len(read_prompts(path)):,} prompts"
    if path.is_dir():
        return _folder(path)
    if role == "critic":
        from gas.training.adversarial.r3gan import load_discriminator

        return _size(load_discriminator(path).state_dict().values(), "an R3GAN discriminator")
    if role in ("reference", "images"):
        from gas.metrics.statistics import read_statistics

        return f"statistics of {len(read_statistics(path).mean):,} features"
    if role == "features":
        from gas.features.inception import Inception
        from gas.features.state import read_state

        return _size(Inception(read_state(path)).state_dict().values(), "Inception-v3")
    if role.startswith("loss"):
        from gas.features.state import read_state

        return _size(read_state(path).values(), "weights")
    from gas.paper import edm, ldm
    from gas.paper.weights import read_weights

    if path.suffix == ".ckpt" or ldm.is_converted(path):
        model = ldm.read(path)
        first = "with" if model.part("first.") else "without"
        return _size(model.tensors.values(), f"latent diffusion {first} its first stage")
    weights = read_weights(path)
    network = edm.build(weights)
    side = network.img_resolution
    return _size(weights.tensors.values(), f"an EDM network for {side} x {side}")


def _folder(path: Path) -> str:
    from gas.model_folder import check_model_folder
    from gas.pipelines.loading import read_index

    name = str(read_index(path).get("_class_name"))
    check_model_folder(path)
    bad = [part for part in ("unet", "vae", "text_encoder") if not list((path / part).glob("*.safetensors"))]
    if bad:
        raise UserError(f"{path} has no safetensors in {', '.join(bad)}; download it again as safetensors")
    return f"a diffusers folder of {name}"


def _size(tensors: Iterable[Tensor], what: str) -> str:
    count = sum(tensor.numel() for tensor in tensors)
    return f"{what}, {count:,} numbers"


def _find(file: File, preset: Preset, folder: Path) -> Found:
    places = [folder / file.name, folder / preset.name / file.name]
    places += [place.with_suffix(".safetensors") for place in places if place.suffix in (".pkl", ".ckpt")]
    there = next((place for place in places if place.exists()), None)
    return Found(file, there, tuple(places))


def _source(name: str) -> str:
    return _SOURCES.get(name, _UNKNOWN)
