"""Critics at work: one step each against the student's samples, and their share of the student's loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gas import distributed
from gas.errors import UserError
from gas.models.protocol import weights_hash
from gas.registry import origin
from gas.training.adversarial.losses import Critic, gradient_penalty, objective_by_name

__all__ = ["CriticSteps", "check_one_process", "scaler_for"]


def check_one_process() -> None:
    """Refuse to share a training with critics: their steps amplify rounding, so that the solver would be another.

    Raises:
        ValueError: in several processes.
    """
    if distributed.world_size() > 1:
        raise UserError(
            "a critic learns in one process: train gas without torchrun (pairs, statistics and gs may be shared)"
        )


def scaler_for(half: bool) -> torch.amp.GradScaler:
    """Return a scaler of losses, so that small gradients survive fp16; without ``half``, one that does nothing."""
    return torch.amp.GradScaler(
        "cuda" if torch.cuda.is_available() else "cpu", init_scale=2.0**12, enabled=half
    )


class CriticSteps:
    """The optimisers and logs of several critics.

    Args:
        critics: each with its own weight, view and optimiser; those of weight 0 are left alone, so that
            training without them is training without any, bit for bit.
    """

    def __init__(self, critics: Sequence[Critic]) -> None:
        names = [critic.name for critic in critics]
        if len(set(names)) != len(names):
            raise UserError(f"critics must have different names, got {', '.join(names)}")
        self.critics = [critic for critic in critics if critic.weight > 0]
        self.optimizers = [
            torch.optim.Adam(critic.network.parameters(), lr=critic.learning_rate, betas=(0.0, 0.99))
            for critic in self.critics
        ]
        self.scalers = [scaler_for(critic.precision == "fp16") for critic in self.critics]
        self.logs: dict[str, list[float]] = {}

    @property
    def half(self) -> bool:
        """Whether a critic's gradients need scaling on their way to the solver."""
        return any(critic.precision == "fp16" for critic in self.critics)

    @property
    def rounds(self) -> int:
        """Most steps that a critic takes for one of the solver."""
        return max((critic.steps for critic in self.critics), default=0)

    def learn(
        self, fake: Tensor, real: Tensor, labels: tuple[Tensor | None, Tensor | None], turn: int = 0
    ) -> None:
        """Take one step of every critic that takes more than ``turn`` steps for one of the solver.

        Args:
            fake: the student's samples ``(B, *)``; no gradient flows into them.
            real: the teacher's ``(B, *)``, as many.
            labels: the classes of both.
            turn: how many steps were taken before.
        """
        for critic, optimizer, scaler in zip(self.critics, self.optimizers, self.scalers, strict=True):
            if turn >= critic.steps:
                continue
            critic.network.requires_grad_(True)
            penalised = critic.penalty > 0
            seen = [critic.seen(x.detach()).detach().requires_grad_(penalised) for x in (fake, real)]
            logits = [critic.logits(x, y) for x, y in zip(seen, labels, strict=True)]
            _, adversarial = objective_by_name(critic.objective)(*logits)
            loss = adversarial.mean()
            if penalised:
                scale = float(scaler.get_scale())
                both = zip(logits, seen, strict=True)
                r2, r1 = (gradient_penalty(answer, x, scale).mean() for answer, x in both)
                loss = loss + critic.penalty / 2 * (r1 + r2)
                self._log(critic, {"r1": r1, "r2": r2})
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            # Which share of reals the critic places above the fakes: 1 is a critic that wins outright.
            ranks = (logits[1] > logits[0]).double().mean()
            self._log(critic, {"critic": adversarial.mean(), "ranks": ranks})

    def generator_loss(
        self,
        iteration: int,
        fake: Tensor,
        real: Tensor,
        labels: tuple[Tensor | None, Tensor | None],
    ) -> Tensor | None:
        """Return ``sum_critics w L_adv`` for the student, or ``None`` while no critic has a say.

        Arguments as in :meth:`learn`; gradients flow into ``fake``.
        """
        total: Tensor | None = None
        for critic in self.critics:
            if iteration < critic.warmup:
                continue
            critic.network.requires_grad_(False)
            with torch.no_grad():
                of_real = critic.logits(critic.seen(real), labels[1])
            of_fake = critic.logits(critic.seen(fake), labels[0])
            loss = objective_by_name(critic.objective)(of_fake, of_real)[0].mean()
            self._log(critic, {"generator": loss})
            total = critic.weight * loss if total is None else total + critic.weight * loss
        return total

    def report(self) -> dict[str, float]:
        """Return the means of what was logged since the last report, as ``critic.quantity``."""
        means = {name: math.fsum(values) / len(values) for name, values in self.logs.items()}
        self.logs = {}
        return means

    def identity(self) -> list[dict[str, Any]]:
        """Return what decides the critics' bits: their settings and their weights as they came."""
        return [
            {
                **critic.settings(),
                "view": origin(critic.view),
                "weights": weights_hash(critic.network),
            }
            for critic in self.critics
        ]

    def state(self) -> dict[str, Any]:
        """Return networks and optimisers."""
        return {
            critic.name: {
                "network": critic.network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
            }
            for critic, optimizer, scaler in zip(self.critics, self.optimizers, self.scalers, strict=True)
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        for critic, optimizer, scaler in zip(self.critics, self.optimizers, self.scalers, strict=True):
            critic.network.load_state_dict(state[critic.name]["network"])
            optimizer.load_state_dict(state[critic.name]["optimizer"])
            scaler.load_state_dict(state[critic.name]["scaler"])

    def _log(self, critic: Critic, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.logs.setdefault(f"{critic.name}.{name}", []).append(float(value.detach()))
