"""A diffusers pipeline as a model: every prediction is a call of the unmodified pipeline."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

from gas.denoise import Denoiser
from gas.errors import UserError
from gas.metrics.frechet import FeatureStatistics
from gas.models.protocol import check_labels, weights_hash
from gas.models.seeds import noise_of_seeds
from gas.pipelines.branches import NEGATIVE, PipelineBranches
from gas.pipelines.call import ControlledPipeline, Start
from gas.pipelines.process import Process, process_of, shift_of
from gas.pipelines.prompts import UnequalEncodings
from gas.pipelines.scheduler_config import config_of, translate
from gas.schedule import Flow, Schedule, check_t_end

# Arguments of a pipeline's call that the library sets itself.
_RESERVED = {
    "prompt",
    "negative_prompt",
    "latents",
    "class_labels",
    "batch_size",
    "generator",
    "num_inference_steps",
    "timesteps",
    "sigmas",
    "true_cfg_scale",
    "output_type",
    "return_dict",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "callback_on_step_end",
}


@dataclass(frozen=True, eq=False)
class PipelineModel:
    """A diffusers pipeline as a :class:`gas.models.Model`; made by :func:`from_pipeline`.

    Everything that the pipeline does around its network (guidance, prompts, images, sizes, casts, adapters, offloading)
    is done by its own code, as when it samples; see :mod:`gas.pipelines.call`.

    Attributes:
        process: forward process, prediction and time of its network.
        prompts: label i is the i-th prompt.
        negative_prompt: prompt that guidance leads away from; ``None`` for the pipeline's default.
        arguments: of the pipeline's call, the same for all samples.
        t_end: time that sampling ends at.
        controlled: calls of the pipeline.
        feature_extractor: ``(B, *) -> (B, F)`` of decoded samples; ``None`` for pooled latents.
        reference: statistics of real data in that space.
    """

    pipe: Any
    process: Process
    prompts: tuple[str, ...]
    negative_prompt: str | None
    arguments: Mapping[str, Any]
    name: str
    t_end: float
    controlled: ControlledPipeline = field(repr=False)
    feature_extractor: Callable[[Tensor], Tensor] | None = None
    reference: FeatureStatistics | None = None
    _effects: dict[float, bool] = field(default_factory=dict, init=False, repr=False)
    _mixtures: dict[float, bool] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        name, arguments, parameters = self.name, self.arguments, self._parameters
        if wrong := sorted(key for key in arguments if key not in parameters or key in _RESERVED):
            raise UserError(f"{name} takes no argument {wrong[0]!r} here: misspelled, or set by gas")
        if self.prompts and not self.takes_prompts:
            raise UserError(f"prompts are for a pipeline that takes prompts, got {self.prompts!r} for {name}")
        if self.negative_prompt is not None and "negative_prompt" not in parameters:
            raise UserError(f"{name[-80:]} takes no negative_prompt: leave it out")
        if arguments.get("strength", 1.0) != 1.0:
            raise UserError(
                f"strength must be 1 for a table, which starts at the first time, got {arguments['strength']!r}: "
                "a shorter run is served by a classical solver"
            )
        if self.guidance_argument in arguments:
            raise UserError(f"{name} takes no argument {self.guidance_argument!r} here: it is the guidance")
        given = {"self", *arguments, *self._condition(None, 1)}
        for key, parameter in parameters.items():
            is_required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
            if is_required and key not in given:
                raise UserError(f"{name} needs {key}: from_pipeline(pipe, prompts, {key}=...)")

    def ending_at(self, t_end: float) -> PipelineModel:
        return replace(self, t_end=t_end)

    @property
    def schedule(self) -> Schedule:
        return self.process.schedule

    @property
    def network(self) -> nn.Module:
        """The component that denoises; of two experts the one at high noise."""
        names = self._start.networks
        name = next((name for name in ("transformer", "unet", "prior") if name in names), names[-1])
        network: nn.Module = getattr(self.pipe, name)
        return network

    @property
    def data_range(self) -> float | None:
        """Largest minus smallest value of a sample: 2 for images, ``None`` for latents."""
        parts = self.pipe.components.values()
        return None if any(isinstance(part, nn.Module) and hasattr(part, "decode") for part in parts) else 2.0

    @property
    def takes_prompts(self) -> bool:
        return "prompt" in self._parameters

    @property
    def classes(self) -> int:
        """Number of prompts, or of the network's classes."""
        if "class_labels" not in self._parameters:
            return len(self.prompts)
        return int(self._configured("num_embeds_ada_norm") or 0)

    @cached_property
    def guidance_argument(self) -> str | None:
        """Name of the call's guidance scale; that of extrapolation from a negative prompt where a pipeline has both."""
        names = [name for name in ("true_cfg_scale", "guidance_scale") if name in self._parameters]
        if len(names) == 2 and self.negative_prompt is None and self._embeds_guidance:
            return "guidance_scale"
        return names[0] if names else None

    @property
    def default_guidance(self) -> float:
        """Default guidance scale of the pipeline's call; 1 for a pipeline without guidance."""
        scale = self._parameters[self.guidance_argument].default if self.guidance_argument else 1.0
        is_number = isinstance(scale, (int, float)) and scale != 1
        return float(scale) if is_number and self._has_effect(float(scale)) else 1.0

    @property
    def device(self) -> torch.device:
        """Where the network runs (when offloaded, it is stored elsewhere)."""
        return torch.device(self.pipe._execution_device)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the pipeline denoises it, packed if it packs latents; first asks the pipeline once."""
        return tuple(self._start.sample.shape[1:])

    def fingerprint(self) -> dict[str, Any]:
        """Return name, hash of the weights that run in every step, prediction type, shape, and a flow's shift.

        ``guidance`` is ``"input"`` where the scale is an input of the network, not a mixture of two forward passes.
        """
        fingerprint: dict[str, Any] = {
            "name": self.name,
            "sha256": self._sha256,
            "prediction": self.process.prediction,
            "sample_shape": list(self.sample_shape),
        }
        if self._guidance_is_input:
            fingerprint["guidance"] = "input"
        if isinstance(self.schedule, Flow):
            config, mu = translate(config_of(self.pipe.scheduler)), self._start.mu
            # That of Flux 2 depends on the number of steps.
            if not config.get("use_dynamic_shifting") or (
                mu is not None and mu == self.controlled.first_step(self._condition(None, 1), steps=50).mu
            ):
                fingerprint["shift"] = shift_of(config, mu)
        return fingerprint

    def conditions_fingerprint(self) -> dict[str, Any]:
        """Return prompts, negative prompt and call arguments, where there are any, in plain JSON; images by hash."""
        conditions = {
            "prompts": list(self.prompts),
            "negative_prompt": self.negative_prompt,
            "arguments": {name: _plain(value) for name, value in self.arguments.items()},
        }
        return {name: value for name, value in conditions.items() if value}

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return noise_of_seeds(self.sample_shape, seeds).to(self.device)

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Predict x_0 for the empty prompt, or without a class."""
        return self.bind(None)(x, t)

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for these prompts or classes ``(B,)``, with the pipeline's own guidance.

        A guided one is a :class:`gas.pipelines.branches.PipelineBranches`.

        Raises:
            ValueError: for a label out of range, or a guidance scale that has no effect on the pipeline.
        """
        if labels is not None:
            labels = torch.as_tensor(labels, dtype=torch.long)
            check_labels(labels, self.classes, self.name)
        self._check_guidance(labels, guidance)
        denoise = self._denoiser(labels, guidance)
        if labels is None or guidance == 1.0 or self._guidance_is_input:
            return denoise
        return PipelineBranches(
            denoise, labels, partial(self._denoiser, guidance=1.0), partial(self._is_mixture, guidance)
        )

    def _denoiser(self, labels: Tensor | None, guidance: float) -> Denoiser:
        def network(x: Tensor, time: Tensor) -> Tensor:
            return self._predict(labels, guidance, x, time[0]).to(x.dtype)

        return self.process.denoiser(network)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode samples ``(B, *sample_shape)`` as the pipeline does, differentiably.

        They become images ``(B, C, H, W)`` or videos ``(B, F, C, H, W)`` in [-1, 1], or the autoencoder's audio.
        """
        latents = latents.to(self.device)
        if len(latents) > 1 and not self.takes_batches:
            return torch.cat([self.decode(x) for x in latents.split(1)])
        result, decoded = self.controlled.finish(self._condition(None, len(latents)), latents)
        if not isinstance(result, Tensor):  # pipelines of 2022 return arrays, which have no gradients
            result = latents if decoded is None else decoded
            return result.clamp(-1, 1).float()
        is_picture = hasattr(self.pipe, "image_processor") or hasattr(self.pipe, "video_processor")
        return (2 * result - 1 if is_picture else result).float()

    def features(self, x: Tensor) -> Tensor:
        """Return features ``(B, F)`` of samples.

        Without a ``feature_extractor`` these are latents averaged over patches, at most 8 a side: a stand-in whose
        distances compare only with each other.
        """
        if self.feature_extractor is not None:
            return self.feature_extractor(self.decode(x))
        pools: list[Callable[..., Tensor]] = [adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d]
        pooled = pools[x.ndim - 3](x.to(self.device).float(), [min(size, 8) for size in x.shape[2:]])
        return pooled.flatten(1)

    def to(self, device: torch.device | str) -> PipelineModel:
        self.pipe.to(device)
        return self

    def free_text_encoders(self, *scales: float) -> None:
        """Encode every prompt, then remove the text encoders from the pipeline, in place.

        The encodings stay on the CPU. Other prompts are refused from then on, as are guidance scales but these and 1.
        """
        if not self.takes_prompts or not hasattr(type(self.pipe), "encode_prompt"):
            return
        for empty in (None, torch.tensor([NEGATIVE])):
            self.controlled.first_step(self._condition(empty, 1))
        for scale in {1.0, *scales}:
            for label in range(len(self.prompts)):
                self.controlled.first_step(self._condition(torch.tensor([label]), 1, scale))
            if self.prompts and self.takes_batches:  # once, to see how encodings form a batch
                with suppress(UnequalEncodings):
                    self.controlled.first_step(self._condition(torch.zeros(2, dtype=torch.long), 2, scale))
        self.controlled.free_text_encoders()

    # --- calls of the pipeline ------------------------------------------------------------------------------

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return self.controlled.parameters

    @cached_property
    def _start(self) -> Start:
        return self.controlled.start(self._condition(None, 1))

    @property
    def _embeds_guidance(self) -> bool:
        """Whether the network takes a guidance scale as an input (guidance distillation)."""
        return bool(self._configured("guidance_embeds"))

    @property
    def _guidance_is_input(self) -> bool:
        """Whether the guidance scale of the call is that input."""
        return self.guidance_argument == "guidance_scale" and self._embeds_guidance

    def _configured(self, key: str) -> Any:
        """The value of a key in the config of the pipeline's networks, ``None`` where none has it."""
        parts = [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]
        values = [getattr(getattr(part, "config", None), key, None) for part in parts]
        return next((value for value in values if value is not None), None)

    @cached_property
    def takes_batches(self) -> bool:
        """Whether the pipeline's call makes several samples at once, each of its own prompt."""
        try:
            sample = self.controlled.first_step(self._condition(None, 2)).samples[0]
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:  # of any class: image pipelines check the number of images each in its own way
            return False
        return sample.shape[1:] == self.sample_shape and len(sample) % 2 == 0

    @property
    def _networks(self) -> list[nn.Module]:
        return [getattr(self.pipe, name) for name in self._start.networks]

    @cached_property
    def _stores_fp8(self) -> bool:
        return any(weight.dtype.itemsize == 1 for part in self._networks for weight in part.parameters())

    @cached_property
    def _sha256(self) -> str:
        if any(weight.is_meta for network in self._networks for weight in network.parameters()):
            raise UserError(
                f"the weights of {self.name} lie on no device, so they cannot be hashed: "
                "offload with enable_model_cpu_offload() instead of one by one"
            )
        first, *others = sorted(map(weights_hash, self._networks))
        return hashlib.sha256(" ".join([first, *others]).encode()).hexdigest() if others else first

    def _predict(self, labels: Tensor | None, guidance: float, x: Tensor, time: Tensor) -> Tensor:
        """The network's output, guided; sample by sample where the pipeline makes one a call."""
        if (x.requires_grad or time.requires_grad) and self._stores_fp8:
            raise UserError(
                f"{self.name} stores its weights in fp8, which have no gradients: learn by Gauss-Newton (loss l2)"
            )
        self.sample_shape  # noqa: B018 (a pipeline that cannot be sampled is refused here)
        if len(x) == 1 or self.takes_batches:
            try:
                return self.controlled.predict(self._condition(labels, len(x), guidance), x, time)
            except UnequalEncodings:
                if len(x) == 1:
                    raise
        rows = [None] * len(x) if labels is None else labels.split(1)
        return torch.cat([self._predict(row, guidance, x[n : n + 1], time) for n, row in enumerate(rows)])

    def _condition(self, labels: Tensor | None, size: int, guidance: float = 1.0) -> dict[str, Any]:
        """The call arguments that condition ``size`` samples."""
        name, negative = self.guidance_argument, self.negative_prompt
        if negative is None and name == "true_cfg_scale" and guidance != 1:
            negative = ""  # pipelines of this argument ignore it without any
        rows: list[Any] = [None] * size if labels is None else labels.tolist()
        condition: dict[str, Any] = {"batch_size": size}
        condition["class_labels"] = [self.classes if row in (None, NEGATIVE) else row for row in rows]
        if self.takes_prompts:
            others = {None: "", NEGATIVE: self.negative_prompt or ""}
            condition["prompt"] = [others[row] if row in others else self.prompts[row] for row in rows]
        if name is not None:
            condition[name] = guidance
        if negative is not None:
            condition["negative_prompt"] = [negative] * size
        return {key: value for key, value in condition.items() if key in self._parameters}

    # --- guidance -------------------------------------------------------------------------------------------

    def _check_guidance(self, labels: Tensor | None, guidance: float) -> None:
        if guidance == 1.0 or (self._guidance_is_input and guidance >= 0):
            return
        if self.guidance_argument is None:
            raise UserError(f"{self.name} takes no guidance: use 1, got {guidance:g}")
        if labels is None:
            raise UserError(f"guidance {guidance:g} needs prompts or classes to guide towards, got none")
        if not guidance > 1:
            raise UserError(f"guidance must be 1 (none) or more for {self.name}, got {guidance:g}")
        if not self._has_effect(guidance):
            raise UserError(f"{self.name} takes no guidance: use 1, {guidance:g} has no effect")

    @torch.no_grad()
    def _is_mixture(self, guidance: float) -> bool:
        """Whether a guided output is the mixture of two without guidance; not if it is rescaled, say."""
        if guidance not in self._mixtures:
            x, label = self.noise([0]), torch.zeros(1, dtype=torch.long)
            time = self.process.network_time(torch.tensor(1.0, dtype=torch.float64)).float()
            conditional, unconditional = (
                self._predict(each, 1.0, x, time) for each in (label, label + NEGATIVE)
            )
            guided = self._predict(label, guidance, x, time)
            # A hundredth of what guidance changes: weights and encodings may be half precision.
            error = guided - torch.lerp(unconditional, conditional, guidance)
            self._mixtures[guidance] = bool(error.norm() <= 0.01 * (guided - conditional).norm())
        return self._mixtures[guidance]

    def _has_effect(self, guidance: float) -> bool:
        """Whether a guidance scale changes what the pipeline's networks compute."""
        if self._guidance_is_input:
            return True
        if guidance not in self._effects:
            labels = torch.zeros(1, dtype=torch.long) if self.classes else None
            x, start = self.noise([0]), torch.tensor(1.0, dtype=torch.float64)
            runs = []
            for scale in (1.0, guidance):
                before = self.controlled.evaluated
                with torch.no_grad():
                    output = self._predict(labels, scale, x, self.process.network_time(start).float())
                runs.append((self.controlled.evaluated - before, output.tolist()))
            self._effects[guidance] = runs[0] != runs[1]
        return self._effects[guidance]


def from_pipeline(
    pipe: Any,
    prompts: Sequence[str] = (),
    *,
    negative_prompt: str | None = None,
    name: str | None = None,
    process: Process | None = None,
    t_end: float | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
    reference: FeatureStatistics | None = None,
    **arguments: Any,
) -> PipelineModel:
    """Make a model of a diffusers pipeline, to take pairs from and to train and measure solvers on.

    The pipeline itself runs underneath, with its loaded adapters, quantization and offloading. Its components are
    frozen and put into evaluation mode; nothing is copied. One prediction with classifier-free guidance counts as one
    network evaluation (NFE).

    Args:
        pipe: the pipeline, with the scheduler that it came with, whose config describes the network's training.
        prompts: label i is the i-th prompt; seed s gets prompt ``s mod len(prompts)``.
        negative_prompt: prompt that guidance leads away from; default that of the pipeline.
        name: for messages and solver files; default the name of its repository, or its class.
        process: of the network's training; default that of its scheduler's config.
        t_end: time that sampling ends at; default the first training step, 0 of a flow.
        features: ``(B, *) -> (B, F)`` of decoded samples, the space in which distributions are compared; default
            pooled latents.
        reference: statistics of real data in that space.
        arguments: more arguments of the pipeline's call: ``height=512, num_frames=17``.

    Raises:
        ValueError: for a pipeline or scheduler that is not supported, or arguments that do not fit the pipeline.

    >>> from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    >>> unet = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=8, add_attention=False,
    ...     down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    >>> from_pipeline(DDPMPipeline(unet, DDPMScheduler())).noise(range(2)).shape
    torch.Size([2, 1, 8, 8])
    """
    # A repository's name; the path of a folder identifies nothing.
    source = str(getattr(pipe, "name_or_path", "") or "")
    name = name or (source if source and not Path(source).exists() else type(pipe).__name__)
    if "scheduler" not in getattr(pipe, "components", ()):
        raise UserError(
            f"{type(pipe).__name__[:40]} is not a pipeline with a scheduler: make a gas.OwnModel of a denoise(x, t) of "
            "yours around its network"
        )
    if isinstance(prompts, str):
        raise UserError(f"prompts must be a list, got {prompts!r} for {name}")
    process = process_of(config_of(pipe.scheduler)) if process is None else process
    for key, part in pipe.components.items():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
        if getattr(
            part, "is_cache_enabled", False
        ):  # FirstBlockCache, TaylorSeer and other hooks of diffusers
            raise UserError(
                f"{name} caches layers between steps, so that a prediction depends on the steps before it: "
                f"call pipe.{key}.disable_cache() first"
            )
    t_end = process.t_end if t_end is None else t_end
    check_t_end(process.schedule, t_end)
    return PipelineModel(
        pipe=pipe,
        process=process,
        prompts=tuple(prompts),
        negative_prompt=negative_prompt,
        arguments=arguments,
        name=name,
        t_end=t_end,
        controlled=ControlledPipeline(pipe, process, arguments, name),
        feature_extractor=features,
        reference=reference,
    )


def _plain(value: Any) -> Any:
    """A call argument in plain JSON: numbers and texts themselves, images and arrays by their hash."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    content = value if isinstance(value, Tensor) else torch.as_tensor(np.array(value))
    data = content.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "shape": list(content.shape)}
