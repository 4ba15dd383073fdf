"""Every table as a diffusers scheduler."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gas.arguments import integer
from gas.compatibility import differences
from gas.errors import UserError
from gas.integrations.diffusers.caller import guidance_of_call
from gas.integrations.diffusers.planning import Plan, Planner, Run, UnshiftedTimes, check_policy
from gas.integrations.diffusers.serialization import SavedScheduler, SchedulerMixin, solver_file
from gas.pipelines.process import PREDICTIONS, Process, StepValues, alpha_ratios, process_of, shift_of
from gas.schedule import VPDiscrete
from gas.solver_file import Artefact

import diffusers  # isort: skip (serialization.py says what to install without it)
from diffusers.configuration_utils import register_to_config
from diffusers.utils.outputs import BaseOutput

__all__ = ["GASScheduler", "GASSchedulerOutput", "SchedulerMixin"]


@dataclass
class GASSchedulerOutput(BaseOutput):
    """Result of a step: the next state, and this step's prediction of the clean sample."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class GASScheduler(SavedScheduler):
    """Runs any table, artefact or family in a diffusers pipeline: VP, v-prediction, EDM and flow.

    Each step is one row of the table, on the pipeline's own states and network outputs. Make one from a pipeline's
    config, ``GASScheduler.from_config(pipe.scheduler.config, solver="solver.json")``, or from a saved one,
    ``GASScheduler.from_pretrained("folder-or-file")``.

    Args:
        num_train_timesteps, ..., variance_type: the model's process, as in diffusers.
        sigma_min, sigma_max, sigma_data, level_embedding: an EDM model's; ``sigma_data`` makes it one.
        shift, ..., use_flow_sigmas: a flow model's, with ``prediction_type="flow_prediction"``.
        invert_sigmas: the time of a flow's network runs from noise at 0 to data, as Mochi's does.
        stochastic_sampling: for flow pipelines that pass it; has no effect.
        solver: a path, :class:`gas.Table`, solver module, :class:`gas.Artefact` or the content of a solver file; the
            config names it ``solver.json``, the file that ``save_pretrained`` writes. ``None`` runs ``base``.
        missing_nfe: for a number of steps without a table, ``"base"`` runs ``base`` and warns, ``"error"`` refuses.
        base: a classical ``SOLVER/GRID``, grid ``shifted`` for a flow's own; default the start of the nearest table's
            training. It also finishes runs that start in the middle (img2img, inpainting).
        schedule: ``"learned"`` uses only the number of ``sigmas`` or ``timesteps`` that a pipeline passes,
            ``"pipeline"`` runs ``base`` at exactly those.
        timestep_dtype: dtype that the network's times are rounded to: that of a pipeline that casts them.
        guidance_scale: of the network in a sampling loop of your own, to be compared with the solver's, or to choose
            among those of several scales; the scale of a pipeline's call is detected.
        strict: refuse a pipeline that the solver was not made for, instead of warning.

    Raises:
        ValueError: names the argument that is wrong.
    """

    __module__ = "gas"  # the name in saved pipelines: frozen, and loadable after a bare ``import gas``
    order = 1
    artefact: Artefact | None = None
    num_inference_steps: int | None = None
    _step_index: int | None = None
    _begin_index: int | None = None
    _plan: Plan | None = None
    _run: Run | None = None
    # The BranchGuider of the same modular pipeline, which then runs the file's tables with branches.
    guider: Any = None
    # The state that the next step should get, and that of an earlier run which was not finished.
    _returned: Tensor | None = None
    _unfinished: Tensor | None = None

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float | None = None,
        variance_type: str | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        level_embedding: str = "log",
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        shift_terminal: float | None = None,
        time_shift_type: str = "exponential",
        use_flow_sigmas: bool = False,
        invert_sigmas: bool = False,
        stochastic_sampling: bool = False,
        solver: Any = None,
        missing_nfe: str = "base",
        base: str | None = None,
        schedule: str = "learned",
        timestep_dtype: str = "float32",
        guidance_scale: float | None = None,
        strict: bool = False,
    ) -> None:
        check_policy(self.config)
        if solver is not None:
            self.register_to_config(solver=solver_file(solver))
            self.artefact = self.config["solver"].artefact
        self.process = process_of(self.config)
        if trained_betas is not None:
            self.register_to_config(trained_betas=torch.as_tensor(trained_betas).tolist())
        if isinstance(self.process.schedule, VPDiscrete):
            alphas_cumprod = torch.tensor(self.process.schedule.alphas_cumprod, dtype=torch.float32)
            self.alphas_cumprod = alphas_cumprod.as_subclass(StepValues)
            self.alphas = alpha_ratios(self.process.schedule).to(torch.float32).as_subclass(StepValues)
            self.betas = 1 - self.alphas
        self._planner = Planner(self.process, self.artefact, self.config, self._warn)
        self._warnings: set[str] = set()
        self._checked_uses: set[tuple[Any, ...]] = set()
        self._clock: Process | UnshiftedTimes = self.process
        steps = self.process.steps
        self._set_times(torch.linspace(1, 1 / steps, steps, dtype=torch.float64), None)
        self.init_noise_sigma = float(1 / self.process.schedule(1.0)[0]) if sigma_data is not None else 1.0

    @property
    def step_index(self) -> int | None:
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    @property
    def branches(self) -> tuple[str, ...]:
        """The branch of every step, of a table with branches."""
        return () if self._plan is None else self._plan.table.branches or ()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start in the middle, where the pipeline's first state is noised data."""
        self._begin_index = begin_index

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the table for a number of steps and forget earlier runs.

        Args:
            num_inference_steps: network evaluations N.
            timesteps, sigmas: the pipeline's own times or levels, used as ``schedule`` in the config says. With both,
                ``timesteps`` are the times of a flow's network.
            mu: a flow's, for this resolution, as pipelines compute it.

        Raises:
            ValueError: when no number of steps is given, two things disagree on it, there is no table for it and
                ``missing_nfe="error"``, or a solver of several guidance scales does not serve that of the call.
        """
        planner = replace(self._planner, artefact=self._artefact_of_call(), branched=self.guider is not None)
        self._plan = planner.plan(num_inference_steps, timesteps, sigmas, mu)
        self.num_inference_steps = self._plan.table.nfe
        if self.guider is not None:
            self.guider.row = -1  # the first row comes with its state
        self._unfinished, self._returned = self._returned, None
        self._run = self._step_index = self._begin_index = None
        self._start_is_corrected = False
        self._shift = shift_of(self.config, mu) if self.process.kind == "flow" else None
        self._clock = self.process
        if timesteps is not None and sigmas is not None:
            self._clock = UnshiftedTimes(timesteps, sigmas, self._shift or 1.0, self.process.steps)
        self._set_times(self._plan.t, device)
        self.init_noise_sigma = self._plan.scale

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Return the network's input: the state itself, but for EDM; the first one as a residual corrects it."""
        corrects_start = self._plan is not None and -1 in (self._plan.table.residuals or ())
        if self.process.kind != "edm" and not corrects_start:
            return sample
        n = self._step_index
        n = self._index(timestep) if n is None or n >= len(self._times) else n
        if corrects_start and n == 0:
            self._start_is_corrected = True
            sample = Run(self._plan, self.process).start(sample)  # type: ignore[arg-type]
        if self.process.kind != "edm":
            return sample
        return sample * float(self.process.input_scale(self._times[n]))

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        per_token_timesteps: Tensor | None = None,
        pred_original_sample: Tensor | None = None,
    ) -> GASSchedulerOutput | tuple[Tensor, Tensor]:
        """Run the next row of the table; return the next state and the prediction of the clean sample.

        Args:
            model_output: of the network, guided.
            timestep: one of ``timesteps``; read in the first step of a run, and when ``sample`` is not the state that
                the last step returned, to warn if it is the time of another step.
            sample: the state at which the network was evaluated, ``(B, *)``.
            eta, use_clipped_model_output, generator, variance_noise: for samplers that add noise; no table does.
            per_token_timesteps: ``(B, L)`` of a flow's tokens ``(B, L, C)``: this step's timestep, or 0 for tokens that
                condition the others and stay unchanged. ``model_output`` is then the negative velocity, as in
                diffusers.
            pred_original_sample: refused: pipelines that pass it take a step back for it.

        Raises:
            ValueError: before :meth:`set_timesteps`; when sample or output are not of the shape of the run's first; or
                with ``strict`` when the solver is for another pipeline.
        """
        if pred_original_sample is not None:
            raise UserError(
                "pred_original_sample is not supported: this pipeline takes a step back for its guidance, "
                "after which a table has a false history; keep diffusers' own scheduler in it"
            )
        n = self._step_index
        if n is None or n >= len(self._times) or self._run is None:
            n = self._begin(timestep, sample, eta)
        elif sample is not self._returned:  # otherwise skipped: reading the time may wait for the device
            self._check_run(n, timestep, sample)
        if self.branches and self.guider.row != n:
            raise UserError(
                f"step {n} evaluates the branch {self.branches[n]!r} alone: run this scheduler in a modular pipeline "
                "with its BranchGuider, or make one without a guider"
            )
        if model_output.ndim == sample.ndim > 1 and model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]  # the other half is a learned variance
        run: Run = self._run  # type: ignore[assignment]
        sample = sample if n else run.start(sample)
        if per_token_timesteps is None:
            state, x0 = run.step(model_output, sample)
        else:
            moving = self._moving_tokens(n, per_token_timesteps)
            state, x0 = run.step(-model_output, sample)
            state = torch.where(moving, state, sample)
        self._step_index = n + 1
        self._returned = state if n + 1 < len(self._times) else None
        if not return_dict:
            return state, x0
        return GASSchedulerOutput(prev_sample=state, pred_original_sample=x0)

    def _moving_tokens(self, n: int, per_token_timesteps: Tensor) -> Tensor:
        """The tokens that a step moves, ``(B, L, 1)``: those at its time. The others must be clean."""
        times = per_token_timesteps.detach().to(torch.float64)
        moving = (times - float(self._rounded_times[n])).abs() < 1e-3
        if not bool((moving | (times < 1e-3)).all()):
            raise UserError(
                "per_token_timesteps must be the step's timestep or 0: tokens that start at another (a conditioning "
                "strength between 0 and 1) lack the history that a table weighs"
            )
        return moving[..., None]

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``a x_0 + s eps``, the pipeline's state at each of ``timesteps`` ``(B,)``."""
        times = torch.as_tensor(timesteps).detach().to("cpu", torch.float64).flatten()
        a, s = self.process.signal_and_noise(torch.stack([self._time(time) for time in times]))
        shape = [-1] + [1] * (original_samples.ndim - 1)
        a, s = (v.to(original_samples.device, original_samples.dtype).reshape(shape) for v in (a, s))
        return a * original_samples + s * noise

    def scale_noise(self, sample: Tensor, timestep: float | Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            raise UserError("noise must be a tensor of the shape of sample, got None")
        return self.add_noise(sample, noise, torch.as_tensor(timestep))

    def _begin(self, timestep: float | Tensor, sample: Tensor, eta: float) -> int:
        """Start a run: from the first row, or as the base solver from the middle."""
        if self._plan is None:
            raise UserError("call set_timesteps(num_inference_steps) before step")
        begin, plan = self._begin_index if self._step_index is None else None, self._plan
        n = self._index(timestep) if begin is None else integer("begin_index", begin, 0, len(self._times) - 1)
        if n:
            plan = self._planner.from_the_middle(plan, n)
        elif -1 in (plan.table.residuals or ()) and not self._start_is_corrected:
            raise UserError(
                "this solver corrects the start in scale_model_input, which this pipeline does not call before its "
                "network: train one without a residual of the start"
            )
        self._check_use(sample)
        if eta:
            self._warn(f"eta={eta:g} has no effect: a table adds no noise")
        self._run = Run(plan, self.process)
        return n

    def _guidance(self) -> float | None:
        """The guidance scale of the running call or of the config, where one is known."""
        called = guidance_of_call(self)
        scale: float | None = self.config["guidance_scale"] if called is None else called
        return scale

    def _artefact_of_call(self) -> Artefact | None:
        """The artefact for the guidance scale of the running call, of one that serves several."""
        artefact = self.artefact
        if artefact is None or artefact.document.guidance_range is None:
            return artefact
        if (guidance := self._guidance()) is None:
            guidance = artefact.document.guidance
            self._warn(
                f"{artefact.source} serves guidance {artefact.document.served}, and that of this call is not known: "
                f"running the solver of {guidance:g}; guidance_scale=... names another"
            )
        return artefact.at(guidance)

    def _check_use(self, sample: Tensor) -> None:
        """Warn, or refuse, when the solver was made for another pipeline or use; once for each use."""
        guidance, shape, artefact = self.config["guidance_scale"], sample.shape[1:], self.artefact
        if artefact is not None and artefact.document.model is not None:
            # A table without a model does not record the guidance that it was learned at.
            guidance = self._guidance()
        use = (shape, sample.dtype, self._shift, self.num_inference_steps, guidance)
        if use in self._checked_uses:
            return
        if artefact is not None:
            facts: dict[str, Any] = {"shift": self._shift, "sample_shape": shape}
            if self._shift is None:  # no flow
                del facts["shift"]
            if (artefact.document.model or {}).get("prediction") in PREDICTIONS:
                facts = {"prediction": self.process.prediction, **facts}
            # An EDM network takes noise levels, so any VP schedule of times fits.
            schedule = None if self.process.kind == "edm" else self.process.schedule
            if wrong := differences(artefact.document, facts, schedule, guidance, user="this pipeline"):
                text = f"{artefact.source} was made for another model or use: {'; '.join(wrong)}"
                if self.config["strict"]:
                    raise UserError(text)
                self._warn(text)
        self._checked_uses.add(use)
        self._check_rounding(sample.dtype)

    def _check_rounding(self, dtype: torch.dtype) -> None:
        """Warn when times cast to the pipeline's dtype are not those of the table."""
        narrow, times = str(dtype).removeprefix("torch."), self._rounded_times
        if dtype.itemsize != 2 or self.config["timestep_dtype"] == narrow:
            return
        errors = (times.to(dtype).to(torch.float64) - times).abs()
        if bool(errors.max() > 0):
            n = int(errors.argmax())
            self._warn(
                f"this pipeline computes in {narrow}: if it casts times too, its network gets "
                f"{float(times[n].to(dtype)):g} for {float(times[n]):g}; timestep_dtype={narrow!r} "
                "makes the scheduler round times itself"
            )

    def _check_run(self, n: int, timestep: float | Tensor, sample: Tensor) -> None:
        """Warn of a state of another run: one at another step's time, or one that an unfinished run returned."""
        time = torch.as_tensor(timestep).detach()
        is_other = time.numel() == 1 and self._rounded_times[self._index(time)] != self._rounded_times[n]
        if is_other or sample is self._unfinished:
            warnings.warn(
                f"step {n} of this run is at timestep {float(self._rounded_times[n]):g}, but a sample of another run "
                f"came, at {time.flatten()[0].item():g}: a scheduler serves one run at a time and mixes two; give each "
                "its own, copy.deepcopy(scheduler)",
                stacklevel=3,
            )

    def _index(self, timestep: float | Tensor | None) -> int:
        time = torch.as_tensor(timestep).detach().to("cpu", torch.float64)
        return int((self._rounded_times - time).abs().argmin())

    def _time(self, network_time: Tensor) -> Tensor:
        """The time of a network's time; exactly that of a step, if it is one's."""
        match = (self._rounded_times == network_time).nonzero()
        return self._times[match[0, 0]] if len(match) else self._clock.time(network_time)

    def _set_times(self, t: Tensor, device: str | torch.device | None) -> None:
        """Set the public ``timesteps``, network times ``(N,)``, and ``sigmas``, N levels and that of data."""
        self._times = t
        times = (
            self._clock.network_time(t).to(getattr(torch, self.config["timestep_dtype"])).to(torch.float32)
        )
        self._rounded_times = times.to(torch.float64)
        self.timesteps = times.to(device)
        a, s = self.process.signal_and_noise(t)
        level = (a if self.process.inverted else s) if self.process.kind == "flow" else s / a
        last = torch.full((1,), float(self.process.inverted), dtype=torch.float64)
        self.sigmas = torch.cat([level, last]).to(torch.float32)

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.add(text)
            warnings.warn(text, stacklevel=3)


# Diffusers looks up the class of a config by its name in its own namespace. Without this entry, every switch from this
# class to another would warn of the arguments that only this class has.
setattr(diffusers, "GASScheduler", GASScheduler)  # noqa: B010 (no attribute of it to a type checker)
