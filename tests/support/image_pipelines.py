"""Offline pipelines of images, tiny and random: transformers, and pipelines that an image conditions."""

from __future__ import annotations

import torch

from support import components as parts

__all__ = ["CALLS", "FAMILIES"]


def qwen_image():
    """Extrapolates from a negative prompt by ``true_cfg_scale``."""
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return QwenImagePipeline(
        scheduler=_flow(use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9),
        vae=vae,
        text_encoder=parts.qwen_vl(),
        tokenizer=parts.word_tokenizer(),
        transformer=transformer,
    )


def z_image():
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 32, 32],
    )
    return ZImagePipeline(
        scheduler=_flow(shift=3.0),
        vae=_vae(),
        text_encoder=parts.qwen3(),
        tokenizer=parts.word_tokenizer(),
        transformer=parts.randomized(transformer),
    )


def flux2():
    from diffusers import AutoencoderKLFlux2, Flux2Pipeline, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return Flux2Pipeline(
        scheduler=_flow(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=parts.mistral3(),
        tokenizer=parts.word_tokenizer(),
        transformer=transformer,
    )


def pixart():
    """Learned variance, in the other half of the channels."""
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        cross_attention_dim=16,
    )
    return PixArtSigmaPipeline(
        tokenizer=parts.word_tokenizer(),
        text_encoder=parts.t5(),
        vae=parts.vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )


def sana():
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=8,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return SanaPipeline(
        tokenizer=parts.word_tokenizer(),
        text_encoder=parts.gemma2(),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )


def lumina2():
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 32, 32),
        cap_feat_dim=16,
    )
    return Lumina2Pipeline(
        transformer=transformer,
        scheduler=_flow(shift=6.0),
        vae=_vae(),
        text_encoder=parts.gemma2(),
        tokenizer=parts.word_tokenizer(),
    )


def hunyuan_dit():
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    transformer = HunyuanDiT2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        hidden_size=16,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
    )
    return HunyuanDiTPipeline(
        vae=parts.vae(),
        text_encoder=parts.bert(),
        tokenizer=parts.word_tokenizer(),
        text_encoder_2=parts.t5(),
        tokenizer_2=parts.word_tokenizer(),
        transformer=transformer,
        scheduler=DDPMScheduler(
            beta_schedule="scaled_linear", beta_end=0.018, prediction_type="v_prediction"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def chroma():
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return ChromaPipeline(
        scheduler=_flow(),
        vae=_vae(),
        text_encoder=parts.t5(),
        tokenizer=parts.word_tokenizer(),
        transformer=transformer,
    )


def aura_flow():
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    return AuraFlowPipeline(
        tokenizer=parts.word_tokenizer(),
        text_encoder=parts.umt5(),
        vae=parts.vae(),
        transformer=transformer,
        scheduler=_flow(shift=1.73),
    )


def sd_inpaint():
    """The masked image is an input of the network, of nine channels."""
    from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline

    tokenizer = parts.clip_tokenizer()
    return StableDiffusionInpaintPipeline(
        vae=parts.vae(),
        text_encoder=parts.clip(tokenizer),
        tokenizer=tokenizer,
        unet=parts.unet_text(in_channels=9),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl_img2img():
    from diffusers import StableDiffusionXLImg2ImgPipeline

    return StableDiffusionXLImg2ImgPipeline(**_components("sdxl"), add_watermarker=False)


def sdxl_controlnet():
    from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline

    components = _components("sdxl")
    controlnet = ControlNetModel.from_unet(components["unet"], conditioning_embedding_out_channels=(16, 32))
    return StableDiffusionXLControlNetPipeline(
        **components, controlnet=parts.randomized(controlnet), add_watermarker=False
    )


def flux_img2img():
    from diffusers import FluxImg2ImgPipeline

    return FluxImg2ImgPipeline(**_components("flux"))


def flux_controlnet():
    from diffusers import FluxControlNetModel, FluxControlNetPipeline

    components = _components("flux")
    controlnet = FluxControlNetModel.from_transformer(
        components["transformer"],
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        load_weights_from_transformer=False,
    )
    return FluxControlNetPipeline(**components, controlnet=parts.randomized(controlnet))


def _components(family):
    from support.pipelines import FAMILIES

    components = FAMILIES[family]().components
    return {
        name: part for name, part in components.items() if name not in ("image_encoder", "feature_extractor")
    }


def _flow(**config):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def _vae():
    """An autoencoder of four channels as Flux has it, without convolutions around the latents."""
    return parts.vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False)


_SIZE = {"height": 16, "width": 16}
_MASK = torch.ones(1, 1, 16, 16)
_MASK[..., :8] = 0

FAMILIES = {
    "qwen_image": qwen_image,
    "z_image": z_image,
    "flux2": flux2,
    "pixart": pixart,
    "sana": sana,
    "lumina2": lumina2,
    "hunyuan_dit": hunyuan_dit,
    "chroma": chroma,
    "aura_flow": aura_flow,
    "sd_inpaint": sd_inpaint,
    "sdxl_img2img": sdxl_img2img,
    "sdxl_controlnet": sdxl_controlnet,
    "flux_img2img": flux_img2img,
    "flux_controlnet": flux_controlnet,
}
CALLS = {
    "qwen_image": _SIZE,
    "z_image": _SIZE,
    "flux2": {**_SIZE, "text_encoder_out_layers": (1,)},
    "pixart": {**_SIZE, "use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 16},
    "sana": {
        "height": 32,
        "width": 32,
        "use_resolution_binning": False,
        "complex_human_instruction": None,
        "clean_caption": False,
    },
    "lumina2": {"height": 32, "width": 32},
    "hunyuan_dit": {**_SIZE, "use_resolution_binning": False},
    "chroma": _SIZE,
    "aura_flow": _SIZE,
    "sd_inpaint": {**_SIZE, "image": parts.image(16), "mask_image": _MASK},
    "sdxl_img2img": {"image": parts.image(16)},
    "sdxl_controlnet": {"image": parts.image(16)},
    "flux_img2img": {**_SIZE, "image": parts.image(16)},
    "flux_controlnet": {**_SIZE, "control_image": parts.image(16)},
}
