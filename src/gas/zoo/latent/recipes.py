"""Everything that decides the latent models' weights, given MNIST."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gas.zoo.train import Recipe

__all__ = ["AUTOENCODER", "LATENT", "PLACES", "Kind"]

# Places of no text after the prompt's: SD3 fills those of its third encoder, where there is none, with 256 zeros.
PLACES = (1, 256)

AUTOENCODER = Recipe(
    network={
        "block_out_channels": [8, 16, 32],
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    },
    steps=2_000,
    batch=32,
    learning_rate=2e-3,
)


@dataclass(frozen=True)
class Kind:
    """One of the two latent models: its network, the scheduler it is trained for, and how."""

    kind: str
    scheduler: Mapping[str, Any]
    recipe: Recipe


LATENT = {
    "mnist-latent": Kind(
        "unet",
        {
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "prediction_type": "v_prediction",
        },
        Recipe(
            network={
                "sample_size": 8,
                "in_channels": 4,
                "out_channels": 4,
                "block_out_channels": [32, 64],
                "layers_per_block": 1,
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
                "cross_attention_dim": 64,
                "attention_head_dim": 4,
                "norm_num_groups": 8,
            },
            steps=1_900,
            horizon=5_000,
        ),
    ),
    "mnist-flow": Kind(
        "transformer",
        {"shift": 1.0},
        Recipe(
            network={
                "sample_size": 8,
                "patch_size": 2,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 4,
                "attention_head_dim": 24,
                "num_attention_heads": 4,
                "joint_attention_dim": 128,
                "caption_projection_dim": 96,
                "pooled_projection_dim": 128,
                "pos_embed_max_size": 8,
                "qk_norm": "rms_norm",
            },
            steps=2_400,
            horizon=7_000,
        ),
    ),
}
