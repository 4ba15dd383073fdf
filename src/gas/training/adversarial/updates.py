"""Discriminator updates: one optimizer step on fakes and reals, and the discriminators' part of the solver's loss.

Processes share the rows of a batch. Losses, logs and gradients of the rows of one are sums over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gas.errors import UserError
from gas.models.protocol import weights_hash
from gas.registry import origin
from gas.training.adversarial.losses import Discriminator, gradient_penalty, objective_by_name
from gas.training.batching import sum_shares

# Labels of fakes and of reals.
_Labels = tuple[Tensor | None, Tensor | None]


def scaler_for(half: bool) -> torch.amp.GradScaler:
    """Return a loss scaler, so that small gradients survive fp16; without ``half``, one that does nothing."""
    return torch.amp.GradScaler(
        "cuda" if torch.cuda.is_available() else "cpu", init_scale=2.0**12, enabled=half
    )


class DiscriminatorUpdates:
    """The optimizers and logs of several discriminators.

    Args:
        discriminators: those of weight 0 are left alone, so that training with them is training without any, bit for
            bit.
    """

    def __init__(self, discriminators: Sequence[Discriminator]) -> None:
        names = [discriminator.name for discriminator in discriminators]
        if len(set(names)) != len(names):
            raise UserError(f"discriminators must have different names, got {', '.join(names)}")
        self.active = [discriminator for discriminator in discriminators if discriminator.weight > 0]
        self.optimizers = [
            torch.optim.Adam(
                discriminator.network.parameters(), lr=discriminator.learning_rate, betas=(0.0, 0.99)
            )
            for discriminator in self.active
        ]
        self.scalers = [scaler_for(discriminator.precision == "fp16") for discriminator in self.active]
        self.logs: dict[str, list[float]] = {}

    @property
    def half(self) -> bool:
        """Whether gradients through a discriminator need scaling on their way to the solver."""
        return any(discriminator.precision == "fp16" for discriminator in self.active)

    @property
    def rounds(self) -> int:
        """Most updates of a discriminator for one step of the solver."""
        return max((discriminator.steps for discriminator in self.active), default=0)

    def update(self, fake: Tensor, real: Tensor, labels: _Labels, turn: int = 0, share: float = 1.0) -> None:
        """Update every discriminator that takes more than ``turn`` steps for one of the solver.

        Args:
            fake: the student's samples ``(B, *)``; no gradient flows into them.
            real: the teacher's ``(B, *)``, as many.
            labels: of fakes and of reals.
            turn: number of this update, from 0.
            share: of the batch's rows, that these are.
        """
        for discriminator, optimizer, scaler in self._parts():
            if turn >= discriminator.steps:
                continue
            discriminator.network.requires_grad_(True)
            penalized = discriminator.penalty > 0
            inputs = [
                discriminator.inputs(x.detach()).detach().requires_grad_(penalized) for x in (fake, real)
            ]
            logits = [discriminator.logits(x, y) for x, y in zip(inputs, labels, strict=True)]
            _, adversarial = objective_by_name(discriminator.objective)(*logits)
            loss = adversarial.mean()
            above = (logits[1] > logits[0]).double().mean()
            logs = {"discriminator": loss, "real_above_fake": above}
            if penalized:
                scale = float(scaler.get_scale())
                both = zip(logits, inputs, strict=True)
                r2, r1 = (gradient_penalty(y, x, scale).mean() for y, x in both)
                loss = loss + discriminator.penalty / 2 * (r1 + r2)
                logs |= {"r1": r1, "r2": r2}
            optimizer.zero_grad()
            scaler.scale(share * loss).backward()
            self._log(discriminator, logs, share, discriminator.network.parameters())
            scaler.step(optimizer)
            scaler.update()

    def generator_loss(
        self, iteration: int, fake: Tensor, real: Tensor, labels: _Labels, share: float = 1.0
    ) -> Tensor | None:
        """Return ``sum w L_adv`` of the student's samples, or ``None`` while every discriminator warms up.

        Arguments as in :meth:`update`; gradients flow into ``fake``.
        """
        total: Tensor | None = None
        for discriminator in self.active:
            if iteration < discriminator.warmup:
                continue
            discriminator.network.requires_grad_(False)
            with torch.no_grad():
                real_logits = discriminator.logits(discriminator.inputs(real), labels[1])
            fake_logits = discriminator.logits(discriminator.inputs(fake), labels[0])
            loss = objective_by_name(discriminator.objective)(fake_logits, real_logits)[0].mean()
            self._log(discriminator, {"generator": loss}, share)
            weighted = share * discriminator.weight * loss
            total = weighted if total is None else total + weighted
        return total

    def report(self) -> dict[str, float]:
        """Return the means of the logs since the last report, as ``NAME.quantity``."""
        means = {name: math.fsum(values) / len(values) for name, values in self.logs.items()}
        self.logs = {}
        return means

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return everything that decides the discriminators' bits: their settings and initial weights."""
        return [
            {
                **discriminator.config(),
                "view": origin(discriminator.view),
                "weights": weights_hash(discriminator.network),
            }
            for discriminator in self.active
        ]

    def state(self) -> dict[str, Any]:
        """Return networks and optimizers."""
        return {
            discriminator.name: {
                "network": discriminator.network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
            }
            for discriminator, optimizer, scaler in self._parts()
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        for discriminator, optimizer, scaler in self._parts():
            discriminator.network.load_state_dict(state[discriminator.name]["network"])
            optimizer.load_state_dict(state[discriminator.name]["optimizer"])
            scaler.load_state_dict(state[discriminator.name]["scaler"])

    def _parts(self) -> zip[tuple[Discriminator, torch.optim.Adam, torch.amp.GradScaler]]:
        return zip(self.active, self.optimizers, self.scalers, strict=True)

    def _log(
        self,
        discriminator: Discriminator,
        means: dict[str, Tensor],
        share: float,
        parameters: Iterable[nn.Parameter] = (),
    ) -> None:
        """Log means over all rows, and sum the gradients of parameters over the processes on the way."""
        values = sum_shares(
            parameters, torch.stack([share * mean.detach().double() for mean in means.values()])
        )
        for name, value in zip(means, values.tolist(), strict=True):
            self.logs.setdefault(f"{discriminator.name}.{name}", []).append(value)
