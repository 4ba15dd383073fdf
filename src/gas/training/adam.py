"""Adam: first-order training through the whole run, with an average of the solver, as in the paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gas import distributed
from gas.arguments import choice, number
from gas.errors import Diverged, UserError
from gas.losses import Loss
from gas.models.protocol import Model, precision_of
from gas.pairs.dataset import Pairs
from gas.sampling import sample
from gas.table import Table, table_of
from gas.training.activation_checkpointing import (
    Checkpointed,
    Checkpointing,
    check_checkpointing,
    stored_calls,
)
from gas.training.adversarial.losses import Discriminator
from gas.training.adversarial.updates import DiscriminatorUpdates, scaler_for
from gas.training.batching import check_counts, check_turns, in_turn, share_of, sum_shares, visited

# Updates averages in place from parameters, given the number of updates so far.
_Tensors = tuple[Tensor, ...] | list[Tensor]
_Average = Callable[[_Tensors, _Tensors, Tensor | int], None]


@dataclass(frozen=True)
class Adam:
    """Settings of Adam; the defaults are ours, :meth:`paper` has the published ones.

    Args:
        iterations: optimizer steps.
        batch: pairs a step.
        learning_rate: Adam's learning rate.
        decay: of the learning rate: ``"cosine"`` to zero, or ``"constant"``.
        clip: largest norm of the gradient.
        ema: decay of the averaged solver, which is validated and returned.
        validate_every: iterations between validations.
        seed: of the batches' order.
        checkpointing: activation checkpointing: ``"none"`` stores the activations of all network calls; a number k
            stores those of the last k calls and recomputes the others in the backward pass; ``"auto"`` stores as many
            as half of the free memory holds. The trained solver does not depend on it.
        alternate: iterations after which times and coefficients take turns; 0 trains all at once.
        relax: radius of the ball that a pair's start may move in (:class:`gas.training.RelaxedStarts`), in
            standard deviations; 0 fixes the starts.
        relax_rate: step size of those moves, as a share of the radius.
        betas: decay rates of Adam's averages of gradients and of their squares.
        ema_warmup: start the average with a decay of 2/11 that grows towards ``ema``, as the authors' code does:
            after n steps it is ``min(ema, (1 + n) / (10 + n))``. Without it the start stays in the average with
            weight ``ema**n``, which at 0.999 is a third after 1,000 steps.

    Raises:
        ValueError: names the setting that is out of range.
    """

    iterations: int = 1000
    batch: int = 24
    learning_rate: float = 1e-2
    decay: Literal["cosine", "constant"] = "cosine"
    clip: float = 1.0
    ema: float = 0.98
    validate_every: int = 50
    seed: int = 0
    checkpointing: Checkpointing = "auto"
    alternate: int = 0
    relax: float = 0.0
    relax_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    ema_warmup: bool = False

    def __post_init__(self) -> None:
        check_checkpointing(self.checkpointing)
        check_counts(self)
        for name in ("learning_rate", "clip", "relax_rate"):
            number(name, getattr(self, name), "(0, inf)")
        number("relax", self.relax, "[0, inf)")
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise UserError(f"betas must be two numbers in [0, 1), got {self.betas!r}")
        for beta in self.betas:
            number("betas", beta, "[0, 1)")
        number("ema", self.ema, "[0, 1)")
        choice("decay", self.decay, ("cosine", "constant"))

    @classmethod
    def paper(cls) -> Adam:
        """Return the published settings (arXiv 2510.17699, section 5 and its appendix on settings)."""
        return cls(
            iterations=10_000,
            learning_rate=1e-3,
            decay="constant",
            ema=0.999,
            ema_warmup=True,
            validate_every=500,
        )

    def config(self) -> dict[str, Any]:
        """Return the settings in plain JSON, as solver files record them: ``checkpointing`` is ``memory`` there."""
        return {"memory" if name == "checkpointing" else name: x for name, x in asdict(self).items()}

    def optimizer(self, **arguments: Any) -> AdamSteps:
        """Return an optimizer with these settings; further arguments as in :class:`AdamSteps`."""
        return AdamSteps(config=self, **arguments)


PAPER = Adam.paper()


class AdamSteps:
    """Minimizes ``E loss(student, teacher) + sum w L_adv`` by Adam on gradients through the whole run.

    Args:
        solver: changed in place.
        model: whose denoiser to call.
        pairs: teacher pairs.
        loss: distance of paired samples.
        config: settings.
        discriminators: trained in place; their reals are of other pairs than the batch's.
        pairing: ``"independent"`` (the paper's: fakes and reals of different noise) or ``"paired"`` (the authors'
            code's: a discriminator learns on students of fresh noise, and the solver on the batch's own teachers).

    References:
        arXiv 2510.17699, equations 15 and 22, section 4.
    """

    _MODULES = ("solver", "average", "optimizer", "scaler")

    def __init__(
        self,
        solver: nn.Module,
        model: Model,
        pairs: Pairs,
        loss: Loss,
        config: Adam,
        discriminators: Sequence[Discriminator] = (),
        pairing: str = "independent",
    ) -> None:
        choice("pairing", pairing, ("independent", "paired"))
        self.discriminators, self.pairing = DiscriminatorUpdates(discriminators), pairing
        if self.discriminators.active and 2 * config.batch > len(pairs):
            raise UserError(
                f"discriminators need at least two batches of pairs ({2 * config.batch}), got {len(pairs)}: "
                "lower batch or make more pairs"
            )
        self.solver, self.model, self.pairs, self.loss, self.config = solver, model, pairs, loss, config
        self.nfe = table_of(solver).nfe
        self.average = AveragedModel(solver, multi_avg_fn=_averaging(config.ema, config.ema_warmup))
        self.average.update_parameters(solver)  # the first update copies, so that the start is averaged in
        self.optimizer = torch.optim.Adam(solver.parameters(), lr=config.learning_rate, betas=config.betas)
        self.iteration, self.evaluations = 0, 0
        check_turns((name for name, _ in solver.named_parameters()), config.alternate)
        self.relaxed = (
            RelaxedStarts(pairs.load_noise(), config.relax, config.relax_rate) if config.relax else None
        )
        # Calls of a run whose activations are stored; known from the first step on.
        self.stored: int | None = None
        self.scaler = scaler_for(precision_of(model) == "fp16" or self.discriminators.half)

    def averaged(self) -> nn.Module:
        """Return the averaged solver, which is validated."""
        average: nn.Module = self.average.module
        return average

    def step_cost(self) -> int:
        """Return the most network evaluations of a step."""
        active, pairing = self.discriminators.active, self.pairing
        fresh = self.nfe * self.discriminators.rounds if active and pairing == "paired" else 0
        return self.config.batch * (4 * self.nfe + 1 + fresh)

    def step(self, limit: float = math.inf) -> float:
        """Take one step; return its batch's loss. A step has no trials, so :meth:`step_cost` has to fit the limit.

        Raises:
            Diverged: when the loss or its gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._decay()
        indices = self._indices()
        share = share_of(indices)
        batch = self.pairs.subset(share)
        noise = batch.noise.to(self.model.device)
        start = noise if self.relaxed is None else self.relaxed.of(share, noise)
        try:
            table: Table = self.solver()
        except ValueError as error:
            raise Diverged(f"iteration {self.iteration}: {error}; lower learning_rate") from error
        samples = self._sample(table, batch, noise, start, len(indices))
        loss = self.loss(samples, batch.target.to(samples)).mean() * (len(share) / len(indices))
        adversarial_loss = self._adversarial_loss(samples, batch, table, indices)
        if adversarial_loss is not None:
            loss = loss + adversarial_loss
        value = self._update(loss)
        if self.relaxed is not None:
            self.relaxed.move(share, noise, start)
            self.relaxed.offsets[indices] = torch.cat(distributed.all_gather(self.relaxed.offsets[share]))
        self.average.update_parameters(self.solver)
        self.iteration += 1
        return value

    def _sample(self, table: Table, batch: Pairs, noise: Tensor, start: Tensor, count: int) -> Tensor:
        """Sample with a graph, and count the evaluations of all ``count`` pairs of the step."""
        denoise = self.model.bind(batch.labels, self.pairs.guidance)
        if self.stored is None:
            stored = stored_calls(self.config.checkpointing, denoise, noise, table.times[0], table.nfe)
            self.stored = min(distributed.all_gather(stored))
            # The call that was measured.
            self.evaluations += count if self.config.checkpointing == "auto" else 0
        recomputed = table.nfe - self.stored
        # A gradient through a call costs about two more calls, and one more where it is recomputed.
        self.evaluations += (3 * table.nfe + recomputed) * count
        return sample(Checkpointed(denoise, recomputed), start, table.folded())

    def _update(self, loss: Tensor) -> float:
        """Differentiate the loss and update the solver; return the loss of the whole batch."""
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        (loss,) = sum_shares(self.solver.parameters(), loss.detach()[None])
        self.scaler.unscale_(self.optimizer)
        # Without a gradient, Adam leaves a parameter alone: it is not its turn.
        for name, parameter in self.solver.named_parameters():
            if not in_turn(name, self.iteration, self.config.alternate):
                parameter.grad = None
        norm = nn.utils.clip_grad_norm_(self.solver.parameters(), self.config.clip)
        # The scaler skips steps whose scaled gradients overflow, and lowers its scale.
        may_overflow = self.scaler.get_scale() > 1
        if not (may_overflow or bool(torch.isfinite(norm))) or not bool(torch.isfinite(loss)):
            raise Diverged(f"iteration {self.iteration}: loss {float(loss):g}; lower learning_rate")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(loss)

    def _indices(self) -> Tensor:
        """Return the pairs of this iteration."""
        size = min(self.config.batch, len(self.pairs))
        return visited(len(self.pairs), self.iteration * size, size, self.config.seed)

    def _others(self, indices: Tensor, turn: int) -> Pairs:
        """Return as many other pairs, so that no real is the teacher's sample of a fake's noise."""
        others = (~torch.isin(self.pairs.seeds, self.pairs.seeds[indices])).nonzero()[:, 0]
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(self._draw(turn)))
        return self.pairs.subset(share_of(others[order[: len(indices)]]))

    def _adversarial_loss(
        self, samples: Tensor, batch: Pairs, table: Table, indices: Tensor
    ) -> Tensor | None:
        """Update the discriminators, then return their loss of the samples; ``indices`` are those of all processes."""
        if not self.discriminators.active:
            return None
        count, share = len(indices), len(batch) / len(indices)
        for turn in range(self.discriminators.rounds):
            other = batch if self.pairing == "paired" else self._others(indices, turn)
            fake = (
                samples.detach() if self.pairing == "independent" else self._fresh(batch, count, table, turn)
            )
            real = other.target.to(samples)
            labels = self._labels(batch), self._labels(other)
            self.discriminators.update(fake, real, labels, turn, share)
        return self.discriminators.generator_loss(self.iteration, samples, real, labels, share)

    def _labels(self, pairs: Pairs) -> Tensor | None:
        return None if pairs.labels is None else pairs.labels.to(self.model.device)

    def _draw(self, turn: int) -> int:
        """Return another number for every turn of every iteration of every seed: the strides are large and coprime."""
        return turn * 1_000_000_007 + self.config.seed * 1_000_003 + self.iteration

    @torch.no_grad()
    def _fresh(self, like: Pairs, count: int, table: Table, turn: int) -> Tensor:
        """Return the student's samples of noise that is in no pair (seeds from 2^40 on), for the batch's labels."""
        first = 2**40 + self._draw(turn) * count
        noise = self.model.noise(share_of(torch.arange(first, first + count)).tolist())
        self.evaluations += count * table.nfe
        return sample(self.model.bind(like.labels, self.pairs.guidance), noise, table.folded())

    def report(self) -> dict[str, float]:
        """Return means of the discriminators' logs since the last report."""
        return self.discriminators.report()

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that decides the bits of this training; checkpointing does not."""
        settings = {name: value for name, value in asdict(self.config).items() if name != "checkpointing"}
        pairing = self.pairing if self.discriminators.active else ""
        return {"Adam": settings, "pairing": pairing, "discriminators": self.discriminators.fingerprint()}

    def state(self) -> dict[str, Any]:
        """Return everything that :meth:`restore` needs to go on with the same bits."""
        return {
            **{name: getattr(self, name).state_dict() for name in self._MODULES},
            "discriminators": self.discriminators.state(),
            "iteration": self.iteration,
            "evaluations": self.evaluations,
            "offsets": None if self.relaxed is None else self.relaxed.offsets,
            "stored": self.stored,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        for name in self._MODULES:
            getattr(self, name).load_state_dict(state[name])
        self.discriminators.restore(state["discriminators"])
        self.iteration, self.evaluations = state["iteration"], state["evaluations"]
        if self.relaxed is not None:
            self.relaxed.offsets = state["offsets"]
        if self.config.checkpointing == "auto":  # free memory may have changed; the bits must not
            self.stored = state["stored"]

    def _decay(self) -> float:
        if self.config.decay == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self.iteration / self.config.iterations))


def _averaging(decay: float, warmup: bool) -> _Average:
    """Return the update of an exponential moving average of all parameters.

    With warm-up it is the one of torch-ema 0.3, which the authors' code uses.
    """

    def update(averages: _Tensors, parameters: _Tensors, steps: Tensor | int) -> None:
        # AveragedModel copies the start as its update 0, so that ``steps`` is 1 at the first step of training.
        n = int(steps)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, parameters, n)

    return update if warmup else get_ema_multi_avg_fn(decay)


class RelaxedStarts:
    """Minimizes over ``x_T'`` with ``|x_T' - x_T|_2 <= r sqrt(d)``, one projected step at each visit of a pair.

    A step goes down the gradient of the pair's loss; its length is a share of the radius, whatever the gradient's. A
    start that leaves the ball is projected onto its surface. Validation and sampling start from ``x_T`` itself.

    Args:
        like: noise of all pairs ``(S, *)``.
        radius: r, in standard deviations of the noise.
        rate: length of a step as a share of the radius.

    References:
        Tong et al., arXiv 2405.15506, equation 8; arXiv 2502.17423, equation 8.
    """

    def __init__(self, like: Tensor, radius: float, rate: float) -> None:
        self.reach, self.rate = radius * math.sqrt(like[0].numel()), rate
        self.offsets = torch.zeros_like(like)

    def of(self, indices: Tensor, noise: Tensor) -> Tensor:
        """Return the starts ``(B, *)`` of these pairs, ready for a gradient."""
        return (noise + self.offsets[indices].to(noise)).requires_grad_()

    def move(self, indices: Tensor, noise: Tensor, start: Tensor) -> None:
        """Take the step of these pairs, once the loss has been differentiated in :meth:`of`'s starts."""
        if start.grad is None:
            raise RuntimeError("a start without gradient cannot move")
        down = -start.grad.flatten(1)
        down = down / torch.linalg.vector_norm(down, dim=1, keepdim=True).clamp(min=1e-30)
        # A gradient in fp16 that overflowed moves no start, as the scaler lets it move no parameter.
        down = torch.where(down.isfinite().all(1, keepdim=True), down, torch.zeros_like(down))
        offset = (start.detach() - noise).flatten(1) + self.rate * self.reach * down
        size = torch.linalg.vector_norm(offset, dim=1, keepdim=True)
        offset = offset * (self.reach / size.clamp(min=self.reach))
        self.offsets[indices] = offset.view_as(noise).to(self.offsets)
