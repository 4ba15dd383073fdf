"""Calls of an unmodified diffusers pipeline whose scheduler hands states in and predictions out.

Whatever a pipeline does between its network and its scheduler (guidance, prompts, packing, casts, control networks,
conditioning frames, two experts) is its own code in its own loop::

    for t in scheduler.timesteps:
        output = network(latents, t)
        latents = scheduler.step(output, t, latents)

A prediction at ``(x, t)`` is a call of two steps, both at ``t``. The first step replaces the pipeline's state by x:
the network is not evaluated for it, since only the shape of its output matters. The second step is the prediction, and
ends the call.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from gas.errors import UserError
from gas.pipelines.process import Process
from gas.pipelines.prompts import PromptCache

# Times of the first call: both experts of a pipeline of two run (Wan 2.2 changes at 0.875 or 0.9).
_PROBE_TIMES = (1.0, 0.9, 0.05)

# Encodings of images that are kept: those of a run are few, and one may have 10 MB.
_MAX_ENCODINGS = 64

_State = Callable[[Tensor], Tensor]


class StepReached(Exception):
    """Ends a pipeline's call at a step; its argument is the network's output there, after guidance."""


class StepOutput(NamedTuple):
    """What a scheduler's step returns, as a tuple or by name."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class Start(NamedTuple):
    """What the first call of a pipeline shows.

    ``sample`` is its first state for one sample, ``(1, *)`` or ``(2, *)`` with guidance; ``mu`` a flow's, for the
    resolution; ``networks`` names the components that run in every step, the denoiser last.
    """

    sample: Tensor
    mu: float | None
    networks: tuple[str, ...]


class ControlledScheduler:
    """The pipeline's own scheduler but for its steps, which return given states, then raise :class:`StepReached`.

    It visits ``timesteps`` ``(N,)``, network times, whatever number of steps the pipeline wants; ``states`` are
    functions of the pipeline's state, which return the next.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, scheduler: Any, process: Process, timesteps: Tensor, states: Sequence[_State]) -> None:
        self._scheduler, self._process, self._states = scheduler, process, states
        self.config = scheduler.config
        self.timesteps = timesteps
        # Flow pipelines pass these to their caches; no network reads them.
        self.sigmas = torch.cat([timesteps.detach().cpu() / len(self), torch.zeros(1)])
        self.mu: float | None = None
        self.times: list[float] = []
        self.samples: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

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
        """Move the times to the device, whatever times the pipeline wants."""
        self.timesteps, self.mu = self.timesteps.to(device), mu

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Do nothing: every run starts at the first time."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """Return the pipeline's state ``a x_0 + s eps`` at the first of ``timesteps``."""
        time = torch.as_tensor(timesteps).detach().flatten()[0].cpu()
        a, s = self._process.signal_and_noise(self._process.time(time))
        return float(a) * original_samples + float(s) * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        return self.add_noise(sample, noise, timestep)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        per_token_timesteps: Tensor | None = None,
        pred_original_sample: Tensor | None = None,
    ) -> StepOutput:
        """Return the next given state, or end the pipeline's call."""
        if per_token_timesteps is not None or pred_original_sample is not None:
            kind = "a time for every token" if pred_original_sample is None else "a step back"
            raise UserError(f"this pipeline's scheduler does {kind} in a step, which no prediction can")
        n = len(self.samples)
        self.samples.append(sample)
        self.times.append(float(torch.as_tensor(timestep).detach().flatten()[0]))
        if n == len(self._states):
            raise StepReached(model_output)
        state = self._states[n](sample)
        return StepOutput(state, state)


@dataclass(eq=False)
class ControlledPipeline:
    """Calls of a pipeline for single predictions and decoding; the pipeline is the same after every call as before.

    Attributes:
        arguments: of every call.
        parameters: of the pipeline's call.
        networks: names of the components that run in every step, as far as calls showed them; the last is the denoiser.
        evaluated: number of samples that they were evaluated for.
    """

    pipe: Any
    process: Process
    arguments: Mapping[str, Any]
    name: str
    networks: dict[str, None] = field(default_factory=dict, init=False)
    evaluated: int = field(default=0, init=False)
    _outputs: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _encodings: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _prompts: PromptCache | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.parameters = inspect.signature(type(self.pipe).__call__).parameters
        if hasattr(type(self.pipe), "encode_prompt"):
            self._prompts = PromptCache(self.pipe)

    def start(self, condition: Mapping[str, Any]) -> Start:
        """Call the pipeline for three steps of one sample, and refuse one that cannot be sampled step by step."""
        times = self.process.network_time(torch.tensor(_PROBE_TIMES, dtype=torch.float64)).float()
        halved = [lambda x: 0.5 * x] * 2
        with torch.no_grad():
            scheduler, _ = self._run(condition, times, halved)
        visited = [int((times - time).abs().argmin()) for time in scheduler.times]
        if visited != [0, 1, 2]:
            often = "more than once" if len(set(visited)) < len(visited) else f"in {len(visited)} of 3 steps"
            raise UserError(f"{self.name} calls its scheduler {often}: one call a step can be sampled")
        first, *later = scheduler.samples
        if not all(torch.equal(x, 0.5 * before) for before, x in zip([first, *later], later, strict=False)):
            raise UserError(
                f"{self.name} changes its states between steps, where a sampler does not see it: use a network that "
                "takes the known pixels as an input, or serve a text-to-image solver in this pipeline"
            )
        if not self.networks:
            raise UserError(f"{self.name} has no network of torch that runs in its steps")
        self._encodings = {
            key: value for key, value in self._encodings.items() if key.partition(" ")[0] not in self.networks
        }
        return Start(sample=first, mu=scheduler.mu, networks=tuple(self.networks))

    def first_step(self, condition: Mapping[str, Any], steps: int | None = None) -> ControlledScheduler:
        """Call the pipeline up to its first step, whose state is the first of ``samples``."""
        with torch.no_grad():
            return self._run(condition, self._time(1.0), [], steps=steps)[0]

    def predict(self, condition: Mapping[str, Any], x: Tensor, network_time: Tensor) -> Tensor:
        """Return the network's output ``(B, *)`` at the pipeline's states x ``(B, *)``, after guidance."""
        _, output = self._run(condition, network_time.reshape(1).expand(2), [self._repeated(x)])
        output = output[: len(x)]
        # Of twice the channels, the other half is a learned variance.
        prediction: Tensor = output[:, : x.shape[1]] if output.shape[1:2] == (2 * x.shape[1],) else output
        return prediction

    def finish(self, condition: Mapping[str, Any], x: Tensor) -> tuple[Any, Tensor | None]:
        """Return what the pipeline makes of final latents, and the output of its decoder, ``None`` without one."""
        decoded: list[Tensor] = []

        def capturing(decode: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(decode)
            def captured(*args: Any, **kwargs: Any) -> Any:
                output = decode(*args, **kwargs)
                decoded.append(output[0] if isinstance(output, tuple) else output.sample)
                return output

            return captured

        parts = [part for _, part in self._modules() if hasattr(part, "decode")]
        with replaced([(part, {"decode": capturing(part.decode)}) for part in parts]):
            _, result = self._run(condition, self._time(0.05), [self._repeated(x)])
        return result[0], decoded[-1] if decoded else None

    def _repeated(self, x: Tensor) -> _State:
        """A step to x, once for each block of rows that guidance adds to the pipeline's state."""

        def state(sample: Tensor) -> Tensor:
            if sample.shape[1:] != x.shape[1:] or len(sample) % len(x):
                raise UserError(f"states of {self.name} are {tuple(sample.shape)}, got x {tuple(x.shape)}")
            return x.to(sample.dtype).repeat(len(sample) // len(x), *[1] * (x.ndim - 1))

        return state

    def free_text_encoders(self) -> None:
        """Remove the text encoders from the pipeline; only prompts that were encoded can be used from then on."""
        if self._prompts is not None:
            self._prompts.freed = True
            for name in self.pipe.components:
                if name.startswith("text_encoder"):
                    vars(self.pipe)[name] = None

    # --- the call -------------------------------------------------------------------------------------------

    def _time(self, t: float) -> Tensor:
        return self.process.network_time(torch.tensor([t], dtype=torch.float64)).float()

    def _run(
        self,
        condition: Mapping[str, Any],
        timesteps: Tensor,
        states: Sequence[_State],
        steps: int | None = None,
    ) -> tuple[ControlledScheduler, Any]:
        """Call the pipeline; return its scheduler, and the output of the last step or, where it ends, the result."""
        scheduler = ControlledScheduler(vars(self.pipe)["scheduler"], self.process, timesteps, states)
        wanted = {
            **condition,
            "num_inference_steps": steps or max(len(timesteps), 2),  # Mochi has no grid of one step
            "generator": torch.Generator().manual_seed(0),  # keeps the global one untouched
            "strength": 1.0,
            "output_type": "pt",
            "return_dict": True,
        }
        call = {name: value for name, value in wanted.items() if name in self.parameters}
        with replaced(self._replacements(scheduler)):
            try:
                # Without the torch.no_grad() that decorates it.
                result = inspect.unwrap(type(self.pipe).__call__)(self.pipe, **{**call, **self.arguments})
            except StepReached as step:
                return scheduler, step.args[0]
        if len(scheduler.samples) != len(timesteps) or len(states) < len(timesteps):
            often = f"called it {len(scheduler.samples)} times in {len(timesteps)} steps"
            raise UserError(
                f"{self.name} {often if scheduler.samples else 'never called its scheduler'}: it cannot be sampled "
                "step by step"
            )
        return scheduler, result

    def _modules(self) -> list[tuple[str, Any]]:
        """The pipeline's networks, encoders and decoders, each once."""
        parts = {
            id(part): (name, part)
            for name, part in self.pipe.components.items()
            if isinstance(part, nn.Module)
        }
        return list(parts.values())

    def _replacements(self, scheduler: ControlledScheduler) -> list[tuple[object, dict[str, Any]]]:
        # By vars, since setattr would write the scheduler into the pipeline's config.
        ours: dict[str, Any] = {"scheduler": scheduler, "_progress_bar_config": {"disable": True}}
        if self._prompts is not None:
            ours["encode_prompt"] = self._prompts
        # SDXL casts its autoencoder to and fro in every call, of which diffusers warns.
        casts = logging.getLogger("diffusers.models.modeling_utils")
        replacements: list[tuple[object, dict[str, Any]]] = [(self.pipe, ours), (casts, {"disabled": True})]
        for name, module in self._modules():
            methods = [method for method in ("forward", "encode") if hasattr(module, method)]
            new = {each: self._forward(name, getattr(module, each), scheduler) for each in methods}
            replacements.append((module, new))
        return replacements

    def _forward(
        self, name: str, forward: Callable[..., Any], scheduler: ControlledScheduler
    ) -> Callable[..., Any]:
        """A method of a component: evaluated after the first step, skipped or remembered before."""

        @functools.wraps(forward)  # some pipelines look at its parameters
        def controlled(*args: Any, **kwargs: Any) -> Any:
            if scheduler.samples:
                self.networks.setdefault(name)
                output = forward(*args, **kwargs)
                self.evaluated += next((len(x) for x in tree_leaves(output) if isinstance(x, Tensor)), 1)
                return output
            if name in self.networks:
                return self._skip(f"{name} {_shapes((args, kwargs))}", forward, args, kwargs)
            return self._remember(name, forward, args, kwargs)

        return controlled

    def _skip(self, key: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Zeros of the shape of a network's output; evaluated once for each shape of its inputs."""
        if key not in self._outputs:
            with torch.no_grad():
                output = forward(*args, **kwargs)
            self._outputs[key] = tree_map_only(Tensor, lambda x: x.new_zeros(()).expand(x.shape), output)
            return output
        return tree_map_only(Tensor, torch.clone, self._outputs[key])

    def _remember(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """An encoder's output; computed once for each content of its inputs."""
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(x, Tensor) and (x.requires_grad or x.is_meta) for x in leaves):
            return forward(*args, **kwargs)
        key = f"{name} {getattr(forward, '__name__', '')} {_digest(leaves)}"
        if key not in self._encodings:
            if len(self._encodings) >= _MAX_ENCODINGS:
                self._encodings.clear()
            with torch.no_grad():
                self._encodings[key] = forward(*args, **kwargs)
        return self._encodings[key]


@contextmanager
def replaced(replacements: Sequence[tuple[object, Mapping[str, Any]]]) -> Iterator[None]:
    """Replace attributes of objects within the context, past their ``__setattr__``."""
    before = [{name: vars(owner)[name] for name in new if name in vars(owner)} for owner, new in replacements]
    try:
        for owner, new in replacements:
            vars(owner).update(new)
        yield
    finally:
        for (owner, new), old in zip(replacements, before, strict=True):
            for name in new:
                vars(owner).pop(name, None)
            vars(owner).update(old)


def _shapes(arguments: Any) -> str:
    """The shapes of tensors and the values of other arguments."""
    return str(
        tree_map(lambda x: (tuple(x.shape), x.dtype) if isinstance(x, Tensor) else repr(x)[:40], arguments)
    )


def _digest(leaves: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            digest.update(f"{tuple(leaf.shape)} {leaf.dtype} {leaf.device}".encode())
            integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[leaf.dtype.itemsize]
            digest.update(leaf.detach().cpu().view(integers).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
