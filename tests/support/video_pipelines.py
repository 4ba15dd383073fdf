"""Offline pipelines of video, tiny and random."""

from __future__ import annotations

from support import components as parts

__all__ = ["CALLS", "FAMILIES"]


def hunyuan_video():
    """Guidance-distilled: guidance is an input of the network."""
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )

    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(2, 4, 4),
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    tokenizer = parts.clip_tokenizer()
    return HunyuanVideoPipeline(
        text_encoder=parts.llama(),
        tokenizer=parts.word_tokenizer(),
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=parts.clip(tokenizer, positions=77),
        tokenizer_2=tokenizer,
    )


def cogvideox():
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=32,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=16,
    )
    vae = AutoencoderKLCogVideoX(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2
    )
    return CogVideoXPipeline(
        tokenizer=parts.word_tokenizer(),
        text_encoder=parts.t5(),
        vae=vae,
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
    )


def mochi():
    """Its network's time runs from noise to data."""
    from diffusers import (
        AutoencoderKLMochi,
        FlowMatchEulerDiscreteScheduler,
        MochiPipeline,
        MochiTransformer3DModel,
    )

    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )
    return MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=vae,
        text_encoder=parts.t5(),
        tokenizer=parts.word_tokenizer(),
        transformer=transformer,
    )


def svd():
    """From an image, without a prompt; an EDM process."""
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )

    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=2,
        projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    return StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=parts.clip_vision(projection=True),
        unet=unet,
        scheduler=scheduler,
        feature_extractor=parts.image_processor(),
    )


def wan_i2v():
    """From an image, which is an input of the network."""
    from diffusers import WanImageToVideoPipeline

    parts.plain_text()
    return WanImageToVideoPipeline(
        **_wan(),
        transformer=_wan_transformer(in_channels=36, image_dim=4),
        image_encoder=parts.clip_vision(width=4),
        image_processor=parts.image_processor(),
    )


def wan22():
    """Two experts: one above a boundary of the noise level, one below."""
    from diffusers import WanPipeline

    experts = {"transformer": _wan_transformer(), "transformer_2": _wan_transformer()}
    return WanPipeline(**_wan(), **experts, boundary_ratio=0.875)


def _wan():
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler

    return {
        "tokenizer": parts.word_tokenizer(),
        "text_encoder": parts.umt5(),
        "vae": AutoencoderKLWan(
            base_dim=3,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        ),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }


def _wan_transformer(**more):
    from diffusers import WanTransformer3DModel

    kwargs = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 16,
        "text_dim": 32,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 1,
        "rope_max_seq_len": 32,
    }
    return WanTransformer3DModel(**{**kwargs, **more})


def wan():
    from diffusers import WanPipeline

    return WanPipeline(**_wan(), transformer=_wan_transformer())


def _size(frames, side=16):
    return {"height": side, "width": side, "num_frames": frames}


_PLAIN = {"prompt_template": {"template": "{}", "crop_start": 0}}

FAMILIES = {
    "wan": wan,
    "wan22": wan22,
    "wan_i2v": wan_i2v,
    "hunyuan_video": hunyuan_video,
    "cogvideox": cogvideox,
    "mochi": mochi,
    "svd": svd,
}
CALLS = {
    "wan": _size(5),
    "wan22": _size(5),
    "wan_i2v": {**_size(5), "image": parts.image(16)},
    "hunyuan_video": {**_size(5), **_PLAIN},
    "cogvideox": {**_size(9), "max_sequence_length": 16},
    "mochi": {**_size(7), "max_sequence_length": 16},
    "svd": {**_size(2, side=32), "image": parts.image(32), "max_guidance_scale": 2.5, "decode_chunk_size": 2},
}
