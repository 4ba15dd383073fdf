"""The published files of a preset: where they are, and what they hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gas.errors import UserError
from gas.paper.presets import Preset
from gas.workspace import WEIGHTS_VARIABLE

__all__ = [
    "LocatedFile",
    "PublishedFile",
    "describe_file",
    "find_files",
    "find_measuring_files",
    "need",
    "prompts_path",
]

_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
_COMPVIS = "https://ommer-lab.com/files/latent-diffusion/"
# Where the files are published.
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
_FID = "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/"
_SOURCES |= {
    "cifar10-32x32.npz": _FID + "cifar10-32x32.npz",
    "ffhq-64x64.npz": _FID + "ffhq-64x64.npz",
    "afhqv2-64x64.npz": _FID + "afhqv2-64x64.npz",
    "VIRTUAL_lsun_bedroom256.npz": _ADM + "lsun/bedroom/VIRTUAL_lsun_bedroom256.npz",
    "VIRTUAL_imagenet256_labeled.npz": _ADM + "imagenet/256/VIRTUAL_imagenet256_labeled.npz",
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
# ADM's reference batches hold images beside statistics; precision, recall, density and coverage need them.
_WITH_IMAGES = "VIRTUAL_"
# torchvision writes the first digits of a file's checksum into its name.
_CHECKSUMS = {"vgg16-397923af.pth": "begins with 397923af", _INCEPTION: "begins with 6726825d"}


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file that a preset needs.

    Attributes:
        name: under the folder of weights.
        role: ``"network"``, ``"critic"``, ``"loss"``, ``"loss weights"`` or ``"prompts"``; for measuring,
            ``"features"``, ``"reference"`` (statistics) or ``"images"`` (statistics with real images).
        description: of the right file.
        needed_for: in words.
    """

    name: str
    role: str
    description: str
    needed_for: str

    @property
    def source(self) -> str:
        """Where it is published."""
        return _SOURCES.get(self.name, "unknown")

    @property
    def sha256(self) -> str:
        """The known part of its checksum; ``"unknown"`` for most, which were never measured here."""
        return _CHECKSUMS.get(self.name, "unknown")


@dataclass(frozen=True, kw_only=True)
class LocatedFile:
    """A published file with its path, ``None`` if it is missing, and the candidates for it."""

    file: PublishedFile
    path: Path | None
    candidates: tuple[Path, ...]


def files_of(preset: Preset) -> list[PublishedFile]:
    """Return the files that a preset needs."""
    network = {
        "edm": "EDM's pickle, or its conversion by gas paper convert",
        "ldm": "CompVis's checkpoint with its first stage, or its conversion by gas paper convert",
        "sd": "a diffusers folder of Stable Diffusion",
    }[preset.kind]
    # Name, role, description, purpose.
    files = [(preset.network, "network", network, "everything")]
    if preset.critic_file:
        critic = "R3GAN's pickle, or its conversion by gas paper convert"
        files.append((preset.critic_file, "critic", critic, "--objective gas"))
    if preset.loss == "lpips":
        files.append(("vgg16-397923af.pth", "loss", "torchvision's VGG-16", "training"))
        files.append(("lpips-vgg.pth", "loss weights", "LPIPS's own weights of channels", "training"))
    if preset.kind == "sd":
        files.append(("prompts.txt", "prompts", "a UTF-8 file of one prompt a line", "everything"))
    return [_published(*entries) for entries in files]


def measuring_files_of(preset: Preset) -> list[PublishedFile]:
    """Return the files that a preset's metric needs: Inception's weights, and statistics or images of real data."""
    name = _REFERENCES[preset.name]
    images = name.startswith(_WITH_IMAGES)
    needed = "FID, recall and coverage" if images else "FID"
    return [
        _published(_INCEPTION, "features", "pytorch-fid's Inception-v3", "FID"),
        _published(name, "images" if images else "reference", preset.reference, needed),
    ]


def _published(name: str, role: str, description: str, needed_for: str) -> PublishedFile:
    return PublishedFile(name=name, role=role, description=description, needed_for=needed_for)


def find_files(preset: Preset, folder: Path) -> list[LocatedFile]:
    """Look for a preset's files.

    Each is looked for by its published name in the folder, then in its subfolder of the preset's name; weights also
    as safetensors, as ``gas paper convert`` writes them.
    """
    return [_locate(file, preset, folder) for file in files_of(preset)]


def find_measuring_files(preset: Preset, folder: Path) -> list[LocatedFile]:
    """Look for the files of a preset's metric, as :func:`find_files` does."""
    return [_locate(file, preset, folder) for file in measuring_files_of(preset)]


def _locate(file: PublishedFile, preset: Preset, folder: Path) -> LocatedFile:
    candidates = [folder / file.name, folder / preset.name / file.name]
    candidates += [c.with_suffix(".safetensors") for c in candidates if c.suffix in (".pkl", ".ckpt")]
    path = next((candidate for candidate in candidates if candidate.exists()), None)
    return LocatedFile(file=file, path=path, candidates=tuple(candidates))


def need(preset: Preset, role: str, folder: Path) -> Path:
    """Return the path of the file of a role.

    Raises:
        FileNotFoundError: names the file, where to put it and where to get it.
    """
    (located,) = (each for each in find_files(preset, folder) if each.file.role == role)
    if located.path is None:
        raise FileNotFoundError(
            f"preset {preset.name} needs {located.candidates[0]} (or name its folder by --preset-weights or "
            f"{WEIGHTS_VARIABLE}): gas paper doctor {preset.name} says what it is and where it is published"
        )
    return located.path


def prompts_path(preset: Preset, folder: Path, given: Path | None) -> Path | None:
    """Return the file of prompts, if the preset takes any.

    Raises:
        UserError: for prompts that the preset does not take.
        FileNotFoundError: when they are neither given nor in the folder.
    """
    if preset.kind != "sd":
        if given is not None:
            raise UserError(f"preset {preset.name} takes no --prompts")
        return None
    return need(preset, "prompts", folder) if given is None else given


def describe_file(located: LocatedFile) -> str:
    """Describe the contents of a file, read as data; nothing in it is executed.

    Raises:
        UserError: when it is damaged, unsafe, or another file than it should be.
    """
    path, role = located.path, located.file.role
    if path is None:
        return "missing"
    if path.is_dir():
        return _describe_folder(path)
    describe = {
        "prompts": _describe_prompts,
        "critic": _describe_critic,
        "reference": _describe_statistics,
        "images": _describe_statistics,
        "features": _describe_inception,
        "loss": _describe_state,
        "loss weights": _describe_state,
    }.get(role, _describe_network)
    return describe(path)


def _describe_prompts(path: Path) -> str:
    from gas.pipelines.loading import read_prompts

    return f"{len(read_prompts(path)):,} prompts"


def _describe_critic(path: Path) -> str:
    from gas.training.adversarial.r3gan import load_discriminator

    return _size(load_discriminator(path).state_dict().values(), "an R3GAN discriminator")


def _describe_statistics(path: Path) -> str:
    from gas.metrics.statistics import read_statistics

    return f"statistics of {len(read_statistics(path).mean):,} features"


def _describe_inception(path: Path) -> str:
    from gas.features.inception import Inception
    from gas.features.state import read_state

    return _size(Inception(read_state(path)).state_dict().values(), "Inception-v3")


def _describe_state(path: Path) -> str:
    from gas.features.state import read_state

    return _size(read_state(path).values(), "weights")


def _describe_network(path: Path) -> str:
    from gas.paper import edm, ldm

    if path.suffix == ".ckpt" or ldm.is_converted(path):
        model = ldm.read(path)
        first = "with" if model.part("first.") else "without"
        return _size(model.tensors.values(), f"latent diffusion {first} its first stage")
    weights = edm.read_weights(path)
    side = edm.build(weights).img_resolution
    return _size(weights.tensors.values(), f"an EDM network for {side} x {side}")


def _describe_folder(path: Path) -> str:
    from gas.model_folder import check_model_folder
    from gas.pipelines.loading import read_index

    name = str(read_index(path).get("_class_name"))
    check_model_folder(path)
    parts = ("unet", "vae", "text_encoder")
    if lacking := [part for part in parts if not list((path / part).glob("*.safetensors"))]:
        raise UserError(
            f"{path} has no safetensors in {', '.join(lacking)}; download it again as safetensors"
        )
    return f"a diffusers folder of {name}"


def _size(tensors: Iterable[Tensor], name: str) -> str:
    count = sum(tensor.numel() for tensor in tensors)
    return f"{name}, {count:,} numbers"
