"""A diffusers pipeline as a model: a prediction is one call of the pipeline, stopped after its network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

from gas.denoise import Denoiser
from gas.errors import UserError
from gas.metrics.frechet import FeatureStatistics
from gas.models.protocol import check_labels, weights_hash
from gas.models.seeds import noise_of_seeds
from gas.pipelines.loading import TextCache
from gas.pipelines.process import Process, process_of, shift_of
from gas.pipelines.scheduler_config import config_of, translate
from gas.pipelines.specs import PipelineSpec, spec_of
from gas.schedule import Flow, Schedule, check_t_end

__all__ = ["PipelineModel", "from_pipeline"]

# Arguments of a pipeline's call that the library sets itself.
_RESERVED = {
    "prompt",
    "negative_prompt",
    "latents",
    "class_labels",
    "batch_size",
    "guidance_scale",
    "generator",
}
_RESERVED |= {
    "num_inference_steps",
    "timesteps",
    "sigmas",
    "output_type",
    "return_dict",
    "num_images_per_prompt",
}


@dataclass(frozen=True, eq=False)
class PipelineModel:
    """A diffusers pipeline as a :class:`gas.models.Model`; made by :func:`from_pipeline`.

    For a prediction, the pipeline is called for one step with a scheduler that gives it the time and stops it once its
    network has answered. Everything that the pipeline does around its network (guidance, prompts, sizes, casts,
    adapters, offloading) is therefore done by its own code, as when it samples.

    Attributes:
        pipe: the pipeline, unchanged.
        spec: of the pipeline's class.
        process: forward process, prediction and time of its network.
        prompts: label i is the i-th prompt.
        negative_prompt: prompt that guidance leads away from; ``None`` for the pipeline's default.
        arguments: of the pipeline's call, the same for all samples.
        name: for messages and solver files.
        t_end: time that sampling ends at.
        feature_extractor: ``(B, *) -> (B, F)`` of decoded samples; ``None`` for pooled latents.
        reference: statistics of real data in that space.
    """

    pipe: Any
    spec: PipelineSpec
    process: Process
    prompts: tuple[str, ...]
    negative_prompt: str | None
    arguments: Mapping[str, Any]
    name: str
    t_end: float
    feature_extractor: Callable[[Tensor], Tensor] | None = None
    reference: FeatureStatistics | None = None

    def ending_at(self, t_end: float) -> PipelineModel:
        """Return the model for runs that end at another time."""
        return replace(self, t_end=t_end)

    @property
    def schedule(self) -> Schedule:
        """The forward process in the library's time."""
        return self.process.schedule

    @property
    def network(self) -> nn.Module:
        """The component that denoises."""
        network: nn.Module = getattr(self.pipe, self.spec.network)
        return network

    @property
    def data_range(self) -> float | None:
        return self.spec.data_range

    @property
    def classes(self) -> int:
        """Number of prompts, or of the network's classes."""
        return len(self.prompts) if self.spec.classes is None else self.spec.classes(self.pipe)

    @property
    def default_guidance(self) -> float:
        """Default guidance scale of the pipeline's call; 1 for a pipeline without guidance."""
        parameter = self._parameters.get("guidance_scale")
        scale = None if parameter is None else parameter.default
        return float(scale) if isinstance(scale, (int, float)) and self.spec.guided(self.pipe) else 1.0

    @property
    def device(self) -> torch.device:
        """Where the network runs (when offloaded, it is stored elsewhere)."""
        return torch.device(self.pipe._execution_device)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the pipeline denoises it: latents, packed if it packs them.

        The first access calls the pipeline once.
        """
        return tuple(self._first_step.sample.shape[1:])

    @cached_property
    def _first_step(self) -> StepReached:
        """A step from the pipeline's own noise, which has its shape and its ``mu``."""
        return self._step(self._condition(None, 1), None, torch.tensor(500.0))

    @cached_property
    def _sha256(self) -> str:
        if any(weight.is_meta for weight in self.network.parameters()):
            raise UserError(
                f"the weights of {self.name} lie on no device, so they cannot be hashed: "
                "offload with enable_model_cpu_offload() instead of one by one"
            )
        return weights_hash(self.network)

    @cached_property
    def _encodings(self) -> TextCache:
        encode = self.spec.encode
        if encode is None:
            raise UserError(f"{self.name} takes no prompts")
        return TextCache(lambda prompt: encode(self.pipe, prompt, self.negative_prompt, self.arguments))

    def fingerprint(self) -> dict[str, Any]:
        """Return name, hash of the denoising network's weights, prediction type, shape, and a flow's shift."""
        fingerprint: dict[str, Any] = {
            "name": self.name,
            "sha256": self._sha256,
            "prediction": self.process.prediction,
            "sample_shape": list(self.sample_shape),
        }
        config, mu = translate(config_of(self.pipe.scheduler)), self._first_step.mu
        if isinstance(self.schedule, Flow) and not (mu is None and config.get("use_dynamic_shifting")):
            fingerprint["shift"] = shift_of(config, mu)
        return fingerprint

    def conditions_fingerprint(self) -> dict[str, Any]:
        """Return prompts, negative prompt and call arguments, where there are any, in plain JSON."""
        conditions = {
            "prompts": list(self.prompts),
            "negative_prompt": self.negative_prompt,
            "arguments": dict(self.arguments),
        }
        return {name: value for name, value in conditions.items() if value}

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Return the starts ``x_T`` ``(B, *sample_shape)`` of these seeds."""
        return noise_of_seeds(self.sample_shape, seeds).to(self.device)

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Predict x_0 for the empty prompt, or without a class."""
        return self.bind(None)(x, t)

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for these prompts or classes ``(B,)``, with the pipeline's own guidance.

        Raises:
            ValueError: for a label out of range, or a guidance scale that the pipeline does not take.
        """
        self._check_guidance(labels, guidance)
        if labels is not None:
            labels = torch.as_tensor(labels, dtype=torch.long)
            check_labels(labels, self.classes, self.name)
        scale = {"guidance_scale": guidance} if "guidance_scale" in self._parameters else {}

        def network(x: Tensor, time: Tensor) -> Tensor:
            state = x.to(getattr(self.network, "dtype", x.dtype))
            output = self._step({**self._condition(labels, len(x)), **scale}, state, time[0]).output
            return output[: len(x)].to(x.dtype)

        return self.process.denoiser(network)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode samples ``(B, *sample_shape)`` as the pipeline does. Differentiable.

        Returns:
            Images ``(B, C, H, W)`` or frames of video ``(B, F, C, H, W)`` in [-1, 1], or the autoencoder's audio.
        """
        latents = latents.to(self.device, getattr(self.network, "dtype", latents.dtype))
        if self.spec.decode is not None:
            return self.spec.decode(self.pipe, latents).clamp(-1, 1).float()
        kwargs = {**self._condition(None, len(latents)), "latents": latents, "output_type": "pt"}
        with swapped_scheduler(self.pipe, OneStepScheduler(self.pipe.scheduler.config)):
            decoded: Tensor = self._call(**kwargs, num_inference_steps=1, return_dict=False)[0]
        return (2 * decoded - 1 if self.spec.centre else decoded).float()

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
        """Move the pipeline to a device, in place; return the model."""
        self.pipe.to(device)
        return self

    @cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(type(self.pipe).__call__).parameters

    def _call(self, **kwargs: Any) -> Any:
        """Call the pipeline without its ``torch.no_grad()`` decorator."""
        return inspect.unwrap(type(self.pipe).__call__)(self.pipe, **self.arguments, **kwargs)

    def _step(self, condition: Mapping[str, Any], x: Tensor | None, network_time: Tensor) -> StepReached:
        """Call the pipeline for one step from a state, or from its own noise if ``None``."""
        latents = {} if x is None or not self.spec.takes_latents else {"latents": x}
        scheduler = OneStepScheduler(self.pipe.scheduler.config, network_time)
        generator = torch.Generator().manual_seed(0)  # keeps the global one untouched
        with swapped_scheduler(self.pipe, scheduler), network_input(self.network, None if latents else x):
            try:
                self._call(**condition, **latents, generator=generator, num_inference_steps=1)
            except StepReached as step:
                return step
        raise UserError(f"{self.name} never called its scheduler: it cannot be sampled step by step")

    def _condition(self, labels: Tensor | None, size: int) -> dict[str, Any]:
        """The call arguments that condition ``size`` samples."""
        if self.spec.encode is not None:
            prompts = [""] * size if labels is None else [self.prompts[int(label)] for label in labels]
            return self._encodings(prompts, self.device)
        if self.spec.classes is not None:
            return {"class_labels": [self.classes] * size if labels is None else labels.tolist()}
        return {"batch_size": size}

    def _check_guidance(self, labels: Tensor | None, guidance: float) -> None:
        if guidance == 1.0 or (self.spec.embedded(self.pipe) and guidance >= 0):
            return
        if not self.spec.guided(self.pipe):
            raise UserError(f"{self.name} takes no guidance: use 1, got {guidance:g}")
        if labels is None:
            raise UserError(f"guidance {guidance:g} needs prompts or classes to guide towards, got none")
        if not guidance > 1:
            raise UserError(f"guidance must be 1 (none) or more for {self.name}, got {guidance:g}")


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
        arguments: more arguments of the pipeline's call, the same for all samples: ``height=512, num_frames=17``.

    Raises:
        ValueError: for a pipeline or scheduler that is not supported, or arguments that do not fit the pipeline.

    >>> from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    >>> unet = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=8, add_attention=False,
    ...     down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    >>> from_pipeline(DDPMPipeline(unet, DDPMScheduler())).noise(range(2)).shape
    torch.Size([2, 1, 8, 8])
    """
    spec = spec_of(pipe)
    name = name or _default_name(pipe)
    parameters = inspect.signature(type(pipe).__call__).parameters
    if wrong := sorted(a for a in arguments if a not in parameters or a in _RESERVED):
        raise UserError(
            f"{name} takes no argument {wrong[0]!r} here: pass only call arguments that the library does not set"
        )
    if isinstance(prompts, str) or (prompts and spec.encode is None):
        raise UserError(
            f"prompts must be a list, for a pipeline that takes prompts, got {prompts!r} for {name}"
        )
    has_negative_prompt = spec.encode is not None and spec.negative
    if not has_negative_prompt and (
        negative_prompt is not None or (arguments.get("true_cfg_scale") or 1) != 1
    ):
        raise UserError(
            f"negative_prompt and true_cfg_scale have no effect on {name[-80:]} here: leave them out"
        )
    process = process_of(config_of(pipe.scheduler)) if process is None else process
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    t_end = process.t_end if t_end is None else t_end
    check_t_end(process.schedule, t_end)
    return PipelineModel(
        pipe=pipe,
        spec=spec,
        process=process,
        prompts=tuple(prompts),
        negative_prompt=negative_prompt,
        arguments=arguments,
        name=name,
        t_end=t_end,
        feature_extractor=features,
        reference=reference,
    )


def _default_name(pipe: Any) -> str:
    """The name of a pipeline's repository; its class for one from a folder, whose path identifies nothing."""
    source = str(getattr(pipe, "name_or_path", "") or "")
    return source if source and not Path(source).exists() else type(pipe).__name__


class StepReached(Exception):
    """Ends a pipeline's call at its first step, with the arguments of that step.

    Attributes:
        output: of the network, after guidance.
        sample: the state at which the network was evaluated.
        mu: a flow's, for the resolution; ``None`` when the pipeline passes none.
    """

    def __init__(self, output: Tensor, sample: Tensor, mu: float | None = None) -> None:
        super().__init__("a pipeline must not catch what its scheduler raises")
        self.output, self.sample, self.mu = output, sample, mu


class OneStepScheduler:
    """A scheduler of one time, whose :meth:`step` raises :class:`StepReached`; or of none, to decode only.

    With one time, the pipeline does everything around its network once and stops there. Without, it goes straight from
    its latents to its output.

    Args:
        config: of the pipeline's scheduler, which pipelines read.
        network_time: a scalar tensor, or ``None``.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any], network_time: Tensor | None = None) -> None:
        self.config = config
        self.mu: float | None = None
        self.timesteps = torch.empty(0) if network_time is None else network_time.reshape(1)
        # Flow pipelines pass these to their caches; no network reads them.
        self.sigmas = torch.cat([self.timesteps.detach().cpu() / len(self), torch.zeros(1)])

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Move the one time to the device, whatever times the pipeline wants."""
        self.timesteps, self.mu = self.timesteps.to(device), mu

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Do nothing: there is one time."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the state unchanged."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Any = None,
        return_dict: bool = True,
    ) -> NoReturn:
        """End the pipeline's call."""
        raise StepReached(output=model_output, sample=sample, mu=self.mu)


@contextmanager
def swapped_scheduler(pipe: Any, scheduler: OneStepScheduler) -> Iterator[None]:
    """Replace a pipeline's scheduler and hide its progress bar within the context."""
    before = {name: vars(pipe)[name] for name in ("scheduler", "_progress_bar_config") if name in vars(pipe)}
    try:
        # By vars, since setattr would write the scheduler into the pipeline's config.
        vars(pipe).update(scheduler=scheduler, _progress_bar_config={"disable": True})
        yield
    finally:
        vars(pipe).pop("_progress_bar_config", None)
        vars(pipe).update(before)


@contextmanager
def network_input(network: nn.Module, x: Tensor | None) -> Iterator[None]:
    """Replace the network's first input by ``x``, repeated for guidance; do nothing for ``None``."""
    if x is None:
        yield
        return

    def replaced(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (torch.cat([x] * (len(args[0]) // len(x))), *args[1:])

    handle = network.register_forward_pre_hook(replaced)
    try:
        yield
    finally:
        handle.remove()
