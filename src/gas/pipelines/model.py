"""A diffusers pipeline as a model: the pipeline itself answers, one call of it a question."""

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
from gas.models.protocol import weights_hash
from gas.models.seeds import noise_of_seeds
from gas.pipelines.loading import TextCache
from gas.pipelines.process import Process, process_of, shift_of
from gas.pipelines.scheduler_config import config_of, translated
from gas.pipelines.specs import Family, spec_of
from gas.schedule import Flow, Schedule, check_t_end

__all__ = ["Answer", "PipelineModel", "Probe", "fed", "from_pipeline", "lent"]

# Arguments of a pipeline's call that the library sets itself.
_OURS = {"prompt", "negative_prompt", "latents", "class_labels", "batch_size", "guidance_scale", "generator"}
_OURS |= {"num_inference_steps", "timesteps", "sigmas", "output_type", "return_dict", "num_images_per_prompt"}


@dataclass(frozen=True, eq=False)
class PipelineModel:
    """A diffusers pipeline behind the library's model contract; make it with :func:`from_pipeline`.

    To ask for an answer, the pipeline is called for one step with a scheduler that tells it the time and stops it when
    its network has answered. Whatever the pipeline does around its network (guidance, prompts, sizes, casts, adapters,
    offloading) is therefore done as it will be when it samples, by its own code.

    Attributes:
        pipe: the pipeline, as it is.
        process: its forward process, what its network predicts and in which units it is told the time.
        prompts: what labels mean: label i is the i-th prompt.
        negative_prompt: what guidance leads away from; ``None`` for the pipeline's own default.
        arguments: of the pipeline's call, the same for all samples.
        name: what people call it.
        t_end: time that sampling ends at.
        feature_extractor: ``(B, *) -> (B, F)`` of decoded samples; ``None`` for pooled latents.
        reference: statistics of real data in the space of ``feature_extractor``.
    """

    pipe: Any
    family: Family
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
        network: nn.Module = getattr(self.pipe, self.family.network)
        return network

    @property
    def data_range(self) -> float | None:
        return self.family.data_range

    @property
    def classes(self) -> int:
        """How many labels there are: prompts, or the classes that the network knows."""
        return len(self.prompts) if self.family.classes is None else self.family.classes(self.pipe)

    @property
    def default_guidance(self) -> float:
        """The guidance scale that the pipeline's call has by default; 1, none, where it guides nothing."""
        parameter = self._parameters.get("guidance_scale")
        scale = None if parameter is None else parameter.default
        return float(scale) if isinstance(scale, (int, float)) and self.family.guided(self.pipe) else 1.0

    @property
    def device(self) -> torch.device:
        """Where the network runs (an offloaded one lies elsewhere)."""
        return torch.device(self.pipe._execution_device)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the pipeline denoises it: latents, packed where it packs them. Costs one call."""
        return tuple(self._first.sample.shape[1:])

    @cached_property
    def _first(self) -> Answer:
        """What the pipeline draws, and says of its resolution, by itself."""
        return self._ask(self._condition(None, 1), None, torch.tensor(500.0))

    @cached_property
    def _sha256(self) -> str:
        if any(weight.is_meta for weight in self.network.parameters()):
            raise UserError(
                f"the weights of {self.name} lie on no device, so that nothing says whose they are: "
                "offload with enable_model_cpu_offload() instead of one by one"
            )
        return weights_hash(self.network)

    @cached_property
    def _texts(self) -> TextCache:
        encode = self.family.encode
        if encode is None:
            raise UserError(f"{self.name} takes no prompts")
        return TextCache(lambda prompt: encode(self.pipe, prompt, self.negative_prompt, self.arguments))

    def fingerprint(self) -> dict[str, Any]:
        """Return name, hash of the denoising network's weights, what it predicts, shape, and a flow's shift."""
        config, mu = translated(config_of(self.pipe.scheduler)), self._first.mu
        shift: dict[str, float] = {}
        if isinstance(self.schedule, Flow) and not (mu is None and config.get("use_dynamic_shifting")):
            shift = {"shift": shift_of(config, mu)}
        return {
            "name": self.name,
            "sha256": self._sha256,
            "prediction": self.process.prediction,
            "sample_shape": list(self.sample_shape),
            **shift,
        }

    def conditions_fingerprint(self) -> dict[str, Any]:
        """Return what labels mean here, in plain JSON: pairs record it, solver files do not depend on it."""
        told = {
            "prompts": list(self.prompts),
            "negative_prompt": self.negative_prompt,
            "arguments": dict(self.arguments),
        }
        return {name: value for name, value in told.items() if value}

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Return the starts ``x_T`` ``(B, *sample_shape)`` of these seeds."""
        return noise_of_seeds(self.sample_shape, seeds).to(self.device)

    def denoise(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Estimate x_0 for the empty prompt, or for no class."""
        return self.bind(None)(x, t)

    def bind(self, labels: Tensor | None, guidance: float = 1.0) -> Denoiser:
        """Return the denoiser for these prompts or classes ``(B,)``, guided as the pipeline guides.

        Raises:
            ValueError: when a label is out of range, or the pipeline knows no such guidance.
        """
        self._check_guidance(labels, guidance)
        if labels is not None:
            labels = torch.as_tensor(labels, dtype=torch.long)
            wrong = labels[(labels < 0) | (labels >= self.classes)]
            if len(wrong):
                raise UserError(
                    f"label {int(wrong[0])} is out of range: {self.name} has {self.classes} prompts or classes"
                )
        guided = {"guidance_scale": guidance} if "guidance_scale" in self._parameters else {}

        def network(x: Tensor, told: Tensor) -> Tensor:
            asked = x.to(getattr(self.network, "dtype", x.dtype))
            output = self._ask({**self._condition(labels, len(x)), **guided}, asked, told[0]).output
            return output[: len(x)].to(x.dtype)

        return self.process.denoiser(network)

    def decode(self, latents: Tensor) -> Tensor:
        """Return what the pipeline makes of samples ``(B, *sample_shape)``: images ``(B, C, H, W)`` or frames of video
        ``(B, F, C, H, W)`` in [-1, 1], or audio as its autoencoder gives it. Differentiable."""
        latents = latents.to(self.device, getattr(self.network, "dtype", latents.dtype))
        if self.family.decode is not None:
            return self.family.decode(self.pipe, latents).clamp(-1, 1).float()
        told = {**self._condition(None, len(latents)), "latents": latents, "output_type": "pt"}
        with lent(self.pipe, Probe(self.pipe.scheduler.config)):
            made: Tensor = self._call(**told, num_inference_steps=1, return_dict=False)[0]
        return (2 * made - 1 if self.family.centre else made).float()

    def features(self, x: Tensor) -> Tensor:
        """Features ``(B, F)`` of samples by ``feature_extractor``, else latents averaged over at most 8 patches a
        side. A stand-in where no better space is known: compare its distances only with each other."""
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

    def _call(self, **told: Any) -> Any:
        """Call the pipeline as people do, but for its decorator that would forget the gradients."""
        return inspect.unwrap(type(self.pipe).__call__)(self.pipe, **self.arguments, **told)

    def _ask(self, told: Mapping[str, Any], x: Tensor | None, time: Tensor) -> Answer:
        """Call the pipeline for one step, at this state (or one that it draws) and told time."""
        alone = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 1}
        given = {} if x is None or not self.family.takes_latents else {"latents": x}
        probe = Probe(self.pipe.scheduler.config, time)
        with lent(self.pipe, probe), fed(self.network, None if given else x):
            try:
                self._call(**told, **given, **alone)
            except Answer as answer:
                return answer
        raise UserError(f"{self.name} never called its scheduler: it cannot be sampled step by step")

    def _condition(self, labels: Tensor | None, size: int) -> dict[str, Any]:
        """The arguments of the pipeline's call that say what ``size`` samples are to show."""
        if self.family.encode is not None:
            prompts = [""] * size if labels is None else [self.prompts[int(label)] for label in labels]
            return self._texts(prompts, self.device)
        if self.family.classes is not None:
            return {"class_labels": [self.classes] * size if labels is None else labels.tolist()}
        return {"batch_size": size}

    def _check_guidance(self, labels: Tensor | None, guidance: float) -> None:
        if guidance == 1.0 or (self.family.embedded(self.pipe) and guidance >= 0):
            return
        if not self.family.guided(self.pipe):
            raise UserError(f"guidance {guidance:g} means nothing to {self.name}, which takes none: use 1")
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

    The pipeline itself runs underneath: what is loaded into it, quantised or offloaded stays so. Its parts are frozen
    and put into evaluation mode; nothing is copied. One answer with classifier-free guidance counts as one network
    evaluation (NFE).

    Args:
        pipe: the pipeline, with the scheduler that it came with: it says how the network was trained.
        prompts: what labels mean; seed s gets prompt ``s mod len(prompts)``.
        negative_prompt: what guidance leads away from; by default what the pipeline does without one.
        name: what people call it; by default its repository's name, or its class's.
        process: of the network's training, by default as its scheduler's config says.
        t_end: time that sampling ends at; by default the first training step, and 0 of a flow.
        features: ``(B, *) -> (B, F)`` of decoded samples, the space that distributions are compared in; by default
            their latents, pooled.
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
    family = spec_of(pipe)
    title = name or _title(pipe)
    told = inspect.signature(type(pipe).__call__).parameters
    if wrong := sorted(a for a in arguments if a not in told or a in _OURS):
        raise UserError(
            f"{title} takes no argument {wrong[0]!r} here: give those of its call that say what it makes"
        )
    if isinstance(prompts, str) or (prompts and family.encode is None):
        raise UserError(
            f"prompts must be a list, for a pipeline that takes prompts, got {prompts!r} for {title}"
        )
    guided_by_text = family.encode is not None and family.negative
    if not guided_by_text and (negative_prompt is not None or (arguments.get("true_cfg_scale") or 1) != 1):
        raise UserError(
            f"negative_prompt and true_cfg_scale have no effect on {title[-80:]} here: leave them out"
        )
    process = process_of(config_of(pipe.scheduler)) if process is None else process
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    ending = process.t_end if t_end is None else t_end
    check_t_end(process.schedule, ending)
    means = (tuple(prompts), negative_prompt, arguments)
    return PipelineModel(pipe, family, process, *means, title, ending, features, reference)


def _title(pipe: Any) -> str:
    """The name of a pipeline's repository; of one from a folder, whose place says nothing, its class."""
    source = str(getattr(pipe, "name_or_path", "") or "")
    return source if source and not Path(source).exists() else type(pipe).__name__


class Answer(Exception):
    """What the pipeline handed to its scheduler: the network's output after guidance, the state it was of, and a flow's
    ``mu``, which stands for the resolution (``None`` where it hands over none)."""

    def __init__(self, output: Tensor, sample: Tensor, mu: float | None = None) -> None:
        super().__init__("a pipeline must not catch what its scheduler raises")
        self.output, self.sample, self.mu = output, sample, mu


class Probe:
    """What a pipeline takes for a scheduler, of one time or none.

    Of one, :meth:`step` raises :class:`Answer`: the pipeline has done everything that it does around its network, once,
    and stops there. Of none, the pipeline goes straight from its latents to its output: it decodes.

    Args:
        config: of the scheduler that it stands in for, which pipelines look into.
        time: what the network is told, a scalar tensor, or ``None``.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any], time: Tensor | None = None) -> None:
        self.config = config
        self.mu: float | None = None
        self.timesteps = torch.empty(0) if time is None else time.reshape(1)
        # What flow pipelines hand to their caches; no network sees it.
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
        """Put the one time where the pipeline wants it, whatever it asks for."""
        self.timesteps, self.mu = self.timesteps.to(device), mu

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Take no notice: there is one time."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the state as it is."""
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
        """Take the answer and end the pipeline's call."""
        raise Answer(model_output, sample, self.mu)


@contextmanager
def lent(pipe: Any, probe: Probe) -> Iterator[None]:
    """Lend a pipeline another scheduler, without a progress bar, and give back its own whatever happens."""
    kept = {name: vars(pipe)[name] for name in ("scheduler", "_progress_bar_config") if name in vars(pipe)}
    try:
        # Not setattr, by which a pipeline would write the stand-in into its configuration.
        vars(pipe).update(scheduler=probe, _progress_bar_config={"disable": True})
        yield
    finally:
        vars(pipe).pop("_progress_bar_config", None)
        vars(pipe).update(kept)


@contextmanager
def fed(network: nn.Module, x: Tensor | None) -> Iterator[None]:
    """Put x in the place of the network's first input, repeated where guidance has it twice."""
    if x is None:
        yield
        return

    def put(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (torch.cat([x] * (len(args[0]) // len(x))), *args[1:])

    handle = network.register_forward_pre_hook(put)
    try:
        yield
    finally:
        handle.remove()
