"""The six setups of arXiv 2510.17699, as data."""

from __future__ import annotations

from typing import Any

from gas.names import named
from gas.presets.preset import Preset

__all__ = ["PRESETS", "preset_by_name"]

_EDM: dict[str, Any] = {
    "kind": "edm",
    "teacher": "unipc-3-bh1",
    "teacher_grid": "log_snr",
    "teacher_nfe": 20,
    "teacher_t_end": 1e-4,
    "loss": "lpips",
    "batch": 24,
    "iterations": 10_000,
    "iterations_gas": 10_000,
    "nfes": (4, 6, 8, 10),
    "reference": "EDM's statistics",
}
_LDM: dict[str, Any] = {
    "kind": "ldm",
    "size": 256,
    "t_end": 1e-3,
    "teacher": "unipc-3-bh2",
    "teacher_t_end": 1e-3,
    "loss": "l1",
    "batch": 8,
    "iterations": 30_000,
    "iterations_gas": 30_000,
    "nfes": (4, 5, 6, 7),
    "reference": "ADM's reference batch",
}
_ALL = (
    Preset(
        name="cifar10",
        title="CIFAR-10, 32 x 32, EDM (VP), unconditional",
        network="edm-cifar10-32x32-uncond-vp.pkl",
        critic_file="R3GAN-CIFAR10.pkl",
        size=32,
        t_end=1e-3,
        pairs_gas=1400,
        weight=0.1,
        critic_widths=(768,) * 4,
        critic_groups=(96,) * 4,
        critic_blocks=(2,) * 4,
        **_EDM,
    ),
    Preset(
        name="ffhq",
        title="FFHQ, 64 x 64, EDM (VP)",
        network="edm-ffhq-64x64-uncond-vp.pkl",
        critic_file="R3GAN-FFHQ-64x64.pkl",
        size=64,
        t_end=1e-4,
        **_EDM,
    ),
    Preset(
        name="afhqv2",
        title="AFHQv2, 64 x 64, EDM (VP)",
        network="edm-afhqv2-64x64-uncond-vp.pkl",
        critic_file="R3GAN-FFHQ-64x64.pkl",
        size=64,
        t_end=1e-4,
        **_EDM,
    ),
    Preset(
        name="lsun",
        title="LSUN-Bedroom, 256 x 256, latent diffusion (VQ-f4)",
        network="lsun_bedrooms/model.ckpt",
        teacher_grid="time_uniform",
        teacher_nfe=20,
        **_LDM,
    ),
    Preset(
        name="imagenet",
        title="ImageNet, 256 x 256, latent diffusion (cin256-v2, VQ-f4), guided",
        network="cin256-v2/model.ckpt",
        guidance=2.0,
        teacher_grid="time_quadratic",
        teacher_nfe=10,
        **_LDM,
    ),
    Preset(
        name="coco",
        title="MS-COCO, 512 x 512, Stable Diffusion 1.5, guided",
        kind="sd",
        network="stable-diffusion-v1-5",
        size=512,
        t_end=1e-3,
        guidance=7.5,
        teacher="ipndm-2",
        teacher_grid="gits-sd15",
        teacher_nfe=0,
        teacher_t_end=1e-3,
        teacher_seeds=(0, 30_000),
        validation=128,
        loss="l1",
        batch=4,
        iterations=1000,
        iterations_gas=2000,
        validate_every=100,
        nfes=(4, 5, 6, 7),
        evaluation_seeds=(30_000, 60_000),
        samples=30_000,
        reference="MS-COCO's validation images",
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def preset_by_name(name: str) -> Preset:
    """Return a preset of :data:`PRESETS`.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    return named("preset", name, PRESETS)
