from . import (
    comfyui as comfyui,
    diffusers as diffusers,
    k_diffusion as k_diffusion,
    onnx as onnx,
    table_transforms as table_transforms,
)
