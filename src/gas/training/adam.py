"""First-order learning: Adam with an average of the solver, as the paper trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gas import distributed
from gas.arguments import number, one_of
from gas.errors import Diverged, UserError
from gas.losses import Loss
from gas.models.protocol import Model, precision_of
from gas.pairs.dataset import Pairs
from gas.sampling import sample
from gas.table import Table
from gas.training.activation_checkpointing import MODES, Recomputed, kept_calls
from gas.training.adversarial.losses import Critic
from gas.training.adversarial.updates import CriticSteps, check_one_process, scaler_for
from gas.training.batching import check_counts, check_turns, in_turn, visited

__all__ = ["PAPER", "Adam", "AdamSteps", "RelaxedStarts"]

BETAS = (0.9, 0.999)

# Updates averages in place from parameters, given the number of updates so far.
_Tensors = tuple[Tensor, ...] | list[Tensor]
_Average = Callable[[_Tensors, _Tensors, Tensor | int], None]


@dataclass(frozen=True)
class Adam:
    """Settings of Adam; the defaults are ours, :data:`PAPER` has the published ones.

    Args:
        iterations: optimiser steps.
        batch: pairs a step.
        learning_rate: of Adam.
        betas: of Adam: decays of its averages of gradients and of their squares.
        decay: ``"cosine"`` to zero, or ``"constant"``.
        clip: largest norm of the gradient.
        ema: decay of the averaged solver, which is what is validated and kept.
        ema_warmup: start the average at a decay of 2/11 that grows towards ``ema``, as the authors' code does:
            after n steps it is ``min(ema, (1 + n) / (10 + n))``. Without it the start stays in the average with
            weight ``ema**n``, which at 0.999 is a third after 1,000 steps.
        validate_every: iterations between validations.
        seed: of the batches' order.
        memory: ``"fast"`` keeps the graph of the whole run; ``"flat"`` that of its last three calls and asks the
            network again for the others (``Recomputed``); ``"least"`` that of one; ``"auto"`` those
            of as many calls as half of the free memory holds.
        alternate: iterations after which times and coefficients take turns; 0 learns all at once.
        relax: radius of the ball that a pair's start may move in (:class:`gas.training.RelaxedStarts`), in
            standard deviations; 0 keeps the starts.
        relax_rate: of those moves, as a share of the radius.

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
    memory: Literal["auto", "fast", "flat", "least"] = "auto"
    alternate: int = 0
    relax: float = 0.0
    relax_rate: float = 0.1
    betas: tuple[float, float] = BETAS
    ema_warmup: bool = False

    def __post_init__(self) -> None:
        one_of("memory", self.memory, MODES)
        check_counts(self)
        for name in ("learning_rate", "clip", "relax_rate"):
            number(name, getattr(self, name), "(0, inf)")
        number("relax", self.relax, "[0, inf)")
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise UserError(f"betas must be two numbers in [0, 1), got {self.betas!r}")
        for beta in self.betas:
            number("betas", beta, "[0, 1)")
        number("ema", self.ema, "[0, 1)")
        one_of("decay", self.decay, ("cosine", "constant"))


PAPER = Adam(
    iterations=10_000, learning_rate=1e-3, decay="constant", ema=0.999, ema_warmup=True, validate_every=500
)


class AdamSteps:
    """Minimises ``E loss(student, teacher)``, and what critics say, by Adam on gradients through the whole run.

    Args:
        solver: changed in place.
        model: whose denoiser to ask.
        pairs: teacher pairs.
        loss: distance of paired samples.
        config: settings.
        critics: adversaries, trained in place; their reals are other pairs' than the batch's.
        pairing: ``"independent"`` (the paper's: fakes and reals of different noise) or ``"paired"`` (the authors'
            code's: a critic learns on students of fresh noise, and the solver on the batch's own teachers).

    References:
        arXiv 2510.17699, equations 15 and 22, section 4.
    """

    def __init__(
        self,
        solver: nn.Module,
        model: Model,
        pairs: Pairs,
        loss: Loss,
        config: Adam,
        critics: Sequence[Critic] = (),
        pairing: str = "independent",
    ) -> None:
        if pairing not in ("independent", "paired"):
            raise UserError(f"pairing must be 'independent' or 'paired', got {pairing!r}")
        self.critics, self.pairing = CriticSteps(critics), pairing
        if self.critics.critics and 2 * config.batch > len(pairs):
            raise UserError(
                f"critics need at least two batches of pairs ({2 * config.batch}), got {len(pairs)}: "
                "lower batch or make more pairs"
            )
        if self.critics.critics:
            check_one_process()
        self.solver, self.model, self.pairs, self.loss, self.config = solver, model, pairs, loss, config
        self.average = AveragedModel(solver, multi_avg_fn=_averaging(config.ema, config.ema_warmup))
        self.average.update_parameters(solver)  # the first update copies, so that the start is averaged in
        self.optimizer = torch.optim.Adam(solver.parameters(), lr=config.learning_rate, betas=config.betas)
        self.iteration, self.evaluations = 0, 0
        check_turns((name for name, _ in solver.named_parameters()), config.alternate)
        self.relaxed = (
            RelaxedStarts(pairs.load_noise(), config.relax, config.relax_rate) if config.relax else None
        )
        self.kept: int | None = None
        self.scaler = scaler_for(precision_of(model) == "fp16" or self.critics.half)

    def averaged(self) -> nn.Module:
        """Return the averaged solver, which is what is validated."""
        average: nn.Module = self.average.module
        return average

    def step(self) -> float:
        """Take one step; return its batch's loss.

        Raises:
            Diverged: when the loss or its gradient is not finite.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * self._decay()
        indices = self._indices()
        parts = distributed.shard_slices(len(indices))
        own = indices[parts[distributed.rank()]]
        chosen = self.pairs.subset(own)
        noise = chosen.noise.to(self.model.device)
        start = noise if self.relaxed is None else self.relaxed.of(own, noise)
        try:
            table: Table = self.solver()
        except ValueError as error:
            raise Diverged(f"iteration {self.iteration}: {error}; lower learning_rate") from error
        denoise = self.model.bind(chosen.labels, self.pairs.guidance)
        if self.kept is None:
            kept = kept_calls(config.memory, denoise, noise, table.times[0], table.nfe)
            self.kept = min(distributed.all_gather(kept))
            self.evaluations += len(indices) if config.memory == "auto" else 0  # the call that was measured
        again = table.nfe - self.kept
        made = sample(Recomputed(denoise, again), start, table.folded())
        loss = self.loss(made, chosen.target.to(made)).mean()
        if len(parts) > 1:
            loss = loss * (len(own) / len(indices))
        adversarial = self._adversarial(made, chosen, table)
        if adversarial is not None:
            loss = loss + adversarial
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        loss = self._summed(loss.detach())
        self.scaler.unscale_(self.optimizer)
        self._wait_for_turn()
        norm = nn.utils.clip_grad_norm_(self.solver.parameters(), config.clip)
        # Scaled gradients that overflow are passed over, with a smaller scale from then on.
        overflow = self.scaler.get_scale() > 1
        if not (overflow or bool(torch.isfinite(norm))) or not bool(torch.isfinite(loss)):
            raise Diverged(f"iteration {self.iteration}: loss {float(loss):g}; lower learning_rate")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.relaxed is not None:
            self.relaxed.move(own, noise, start)
            self.relaxed.offsets[indices] = torch.cat(distributed.all_gather(self.relaxed.offsets[own]))
        self.average.update_parameters(self.solver)
        self.iteration += 1
        # A gradient through a call costs about two more calls, and one more where it is made again.
        self.evaluations += (3 * table.nfe + again) * len(indices)
        return float(loss)

    def _summed(self, loss: Tensor) -> Tensor:
        """The loss of all processes' shares of the batch, whose gradients become the solver's; alone, of the batch."""
        if distributed.world_size() == 1:
            return loss
        learned = {p: p.grad for p in self.solver.parameters() if p.grad is not None}
        told = [loss, *learned.values()]
        flat = distributed.all_reduce_sum(torch.cat([part.cpu().double().flatten() for part in told]))
        loss, *gradients = flat.split([part.numel() for part in told])
        for parameter, gradient in zip(learned, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter)
        return loss

    def _indices(self) -> Tensor:
        """Which pairs the iteration sees."""
        size = min(self.config.batch, len(self.pairs))
        return visited(len(self.pairs), self.iteration * size, size, self.config.seed)

    def _wait_for_turn(self) -> None:
        """Take the gradient, and with it the step, from parameters whose turn it is not."""
        for name, parameter in self.solver.named_parameters():
            if not in_turn(name, self.iteration, self.config.alternate):
                parameter.grad = None

    def _others(self, chosen: Pairs, turn: int = 0) -> Pairs:
        """As many other pairs, so that no real is the teacher's answer to a fake's noise."""
        others = (~torch.isin(self.pairs.seeds, chosen.seeds)).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(self._draw(turn))
        return self.pairs.subset(others[torch.randperm(len(others), generator=generator)[: len(chosen)]])

    def _adversarial(self, made: Tensor, chosen: Pairs, table: Table) -> Tensor | None:
        """Let the critics learn, then return what they say of the samples."""
        if not self.critics.critics:
            return None
        for turn in range(self.critics.rounds):
            other = chosen if self.pairing == "paired" else self._others(chosen, turn)
            fake = made.detach() if self.pairing == "independent" else self._fresh(chosen, table, turn)
            real = other.target.to(made)
            labels = (self._here(chosen.labels), self._here(other.labels))
            self.critics.learn(fake, real, labels, turn)
        return self.critics.generator_loss(self.iteration, made, real, labels)

    def _draw(self, turn: int) -> int:
        """A number of its own for every turn of every iteration of every seed."""
        return turn * 1_000_000_007 + self.config.seed * 1_000_003 + self.iteration

    def _here(self, labels: Tensor | None) -> Tensor | None:
        return None if labels is None else labels.to(self.model.device)

    @torch.no_grad()
    def _fresh(self, like: Pairs, table: Table, turn: int) -> Tensor:
        """The student's samples of noise that is in no pair, for the labels of the batch."""
        first = 2**40 + self._draw(turn) * len(like)
        noise = self.model.noise(range(first, first + len(like)))
        self.evaluations += len(like) * table.nfe
        return sample(self.model.bind(like.labels, self.pairs.guidance), noise, table.folded())

    def report(self) -> dict[str, float]:
        """Return what the critics logged since the last report."""
        return self.critics.report()

    def identity(self) -> dict[str, Any]:
        """Return what decides this training's bits; how the graph is kept does not."""
        settings = {name: value for name, value in asdict(self.config).items() if name != "memory"}
        for name, default in (("betas", BETAS), ("ema_warmup", False)):
            if settings[name] == default:  # so that states of before this setting can go on
                del settings[name]
        pairing = self.pairing if self.critics.critics else ""
        return {"Adam": settings, "pairing": pairing, "critics": self.critics.identity()}

    def state(self) -> dict[str, Any]:
        """Return everything that :meth:`restore` needs to go on with the same bits."""
        return {
            "solver": self.solver.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critics": self.critics.state(),
            "iteration": self.iteration,
            "evaluations": self.evaluations,
            "offsets": None if self.relaxed is None else self.relaxed.offsets,
            "kept": self.kept,
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.solver.load_state_dict(state["solver"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.critics.restore(state["critics"])
        self.scaler.load_state_dict(state["scaler"])
        self.iteration, self.evaluations = state["iteration"], state["evaluations"]
        if self.relaxed is not None:
            self.relaxed.offsets = state["offsets"]
        if self.config.memory == "auto":  # free memory may be another today; the bits are not to be
            self.kept = state["kept"]

    def _decay(self) -> float:
        if self.config.decay == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self.iteration / self.config.iterations))


def _averaging(decay: float, warmup: bool) -> _Average:
    """Return the update of an exponential moving average of all parameters.

    With warm-up it is that of torch-ema 0.3, which the authors' code uses.
    """

    def update(averages: _Tensors, parameters: _Tensors, steps: Tensor | int) -> None:
        # AveragedModel copies the start as its update 0, so that ``steps`` is 1 at the first step of training.
        n = int(steps)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, parameters, n)

    return update if warmup else get_ema_multi_avg_fn(decay)


class RelaxedStarts:
    """Minimises over ``x_T'`` with ``|x_T' - x_T|_2 <= r sqrt(d)``, one projected step at each visit of a pair.

    The step goes down the pair's own loss, by a share of the radius whatever the gradient's size, and what leaves
    the ball is brought back to its surface. Validation and sampling start from ``x_T`` itself.

    Args:
        like: noise of all pairs ``(S, *)``.
        radius: r, in standard deviations of the noise.
        rate: length of a step as a share of the ball's radius.

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
        offset = (start.detach() - noise).flatten(1) + self.rate * self.reach * down
        size = torch.linalg.vector_norm(offset, dim=1, keepdim=True)
        offset = offset * (self.reach / size.clamp(min=self.reach))
        self.offsets[indices] = offset.view_as(noise).to(self.offsets)
