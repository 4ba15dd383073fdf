"""Offline pipelines of every family, tiny and random, built by the libraries' own classes: no download, no cache."""

from __future__ import annotations

import pytest
import torch

import gas
from support import components as parts, image_pipelines, video_pipelines

__all__ = ["CALLS", "FAMILIES", "UNPROMPTED", "build"]

SEED = 7


def build(family):
    """A fresh pipeline, the same weights every time; skips a test where this diffusers does not have it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            pipe = FAMILIES[family]()
        except ImportError as error:
            pytest.skip(str(error))
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def ddpm():
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(parts.unet2d(3, sample_size=8), DDPMScheduler())


def ldm():
    from diffusers import DDIMScheduler, LDMPipeline, VQModel

    vq = VQModel(
        block_out_channels=[16, 16],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=3,
        norm_num_groups=8,
        scaling_factor=0.5,
    )
    scheduler = DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False
    )
    return LDMPipeline(vq, parts.unet2d(3, sample_size=4), scheduler)


def dit():
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        attention_bias=True,
    )
    return DiTPipeline(transformer, parts.vae(), DDIMScheduler(clip_sample=False))


def sd1():
    """Stable Diffusion 1.x: predicts the noise."""
    return _stable_diffusion(prediction_type="epsilon", attention=2)


def sd2():
    """Stable Diffusion 2.x: predicts v."""
    return _stable_diffusion(prediction_type="v_prediction", attention=(2, 4))


def sdxl():
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    unet = parts.unet_text(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        cross_attention_dim=32,
        use_linear_projection=True,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
    )
    tokenizer = parts.clip_tokenizer()
    return StableDiffusionXLPipeline(
        vae=parts.vae(),
        text_encoder=parts.clip(tokenizer),
        text_encoder_2=parts.clip(tokenizer, projection=True),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def sd3():
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
    )
    tokenizer = parts.clip_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=parts.vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=parts.clip(tokenizer, projection=True),
        text_encoder_2=parts.clip(tokenizer, projection=True),
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
    )


def flux():
    """Guidance-distilled: guidance is an input of the network."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    tokenizer = parts.clip_tokenizer()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=parts.vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=parts.clip(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=parts.t5(),
        tokenizer_2=parts.word_tokenizer(),
        transformer=transformer,
    )


def ltx():
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=32,
    )
    vae = AutoencoderKLLTXVideo(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=parts.t5(),
        tokenizer=parts.word_tokenizer(),
        transformer=transformer,
    )


def stable_audio():
    from diffusers import AutoencoderOobleck, StableAudioDiTModel, StableAudioPipeline
    from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

    transformer = StableAudioDiTModel(
        sample_size=8,
        in_channels=3,
        num_layers=1,
        attention_head_dim=8,
        num_key_value_attention_heads=2,
        num_attention_heads=2,
        out_channels=3,
        cross_attention_dim=4,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )
    vae = AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    # What the published scheduler_config.json says; the class itself needs torchsde, this library does not.
    cosine = {
        "_class_name": "CosineDPMSolverMultistepScheduler",
        "sigma_min": 0.3,
        "sigma_max": 500,
        "sigma_data": 1.0,
    }
    projection = StableAudioProjectionModel(
        text_encoder_dim=32, conditioning_dim=4, min_value=0, max_value=32
    )
    return StableAudioPipeline(
        vae=vae,
        text_encoder=parts.t5(),
        projection_model=projection,
        tokenizer=parts.word_tokenizer(),
        transformer=transformer,
        scheduler=gas.GASScheduler.from_config(cosine),
    )


def _stable_diffusion(prediction_type, attention):
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    tokenizer = parts.clip_tokenizer()
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return StableDiffusionPipeline(
        vae=parts.vae(),
        text_encoder=parts.clip(tokenizer),
        tokenizer=tokenizer,
        unet=parts.unet_text(attention_head_dim=attention),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


FAMILIES = {
    "ddpm": ddpm,
    "ldm": ldm,
    "dit": dit,
    "sd1": sd1,
    "sd2": sd2,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "ltx": ltx,
    "stable_audio": stable_audio,
    **image_pipelines.FAMILIES,
    **video_pipelines.FAMILIES,
}
CALLS = {
    "flux": {"height": 16, "width": 16},
    "ltx": {"height": 32, "width": 32, "num_frames": 9},
    **image_pipelines.CALLS,
    **video_pipelines.CALLS,
}
UNPROMPTED = ("ddpm", "ldm", "dit", "svd")
