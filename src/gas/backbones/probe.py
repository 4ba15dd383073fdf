"""A scheduler that puts one question to a pipeline: it tells the time and takes the network's answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

__all__ = ["Answer", "Probe", "fed", "lent"]


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
