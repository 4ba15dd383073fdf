"""Options that several commands share, alone and in groups, and the readers of their texts.

A group is a dataclass; ``app.command`` makes an option of each field. What a group means to the library is
one of its methods.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import typer

import gas
from gas.arguments import (
    MAX_BATCH,
    MAX_ITERATIONS,
    MAX_NFE,
    MAX_ORDER_SEED,
    MAX_SEED,
    MAX_SEEDS,
    choice,
    number,
)
from gas.cli.checks import FILE, FOLDER, GUIDANCE, option, output_file, parse_duration
from gas.cli.loading import load_model
from gas.cli.screen import tracked

# Values of --method; auto is gauss-newton for a sum of squares, else adam.
METHODS = ("auto", "gauss-newton", "adam", "paper")
# The paper's weight of the adversarial loss is 0.1; at thousands of times that, the solver follows nothing else.
_WEIGHTS = {"min": 0, "max": 1_000_000}


# ---------------------------------------------------------------- single options

ModelName = Annotated[
    str,
    option(
        "Zoo model (digits, mnist; emoji, mnist-latent, mnist-flow) or the path of its .safetensors file; "
        "diffusers:FOLDER_OR_REPOSITORY; published:FILE, a network that gas paper convert reads; or preset:NAME, a "
        "setup of the paper.",
        names=("--model", "-m"),
    ),
]
ZooImages = Annotated[
    str,
    option("Zoo model of images (digits, mnist), or a .safetensors file of one.", names=("--model", "-m")),
]
ZooName = Annotated[
    str,
    option("Zoo model (gas zoo lists them), or a .safetensors file of one.", names=("--model", "-m")),
]
Prompts = Annotated[
    Path | None, option("UTF-8 file of prompts, one a line: seed s takes prompt s mod their number.", **FILE)
]
Device = Annotated[str, option("Device of the network: cpu, cuda, cuda:1, mps.")]
Json = Annotated[bool, option("Print results as JSON on standard output.")]
Precision = Annotated[
    str,
    option(
        "Precision of the network alone: float32, tf32 (10-bit products on CUDA), bf16 or fp16.",
        lambda name: gas.registry.named("precision", name, gas.models.PRECISIONS),
    ),
]
Compile = Annotated[bool, option("Run the network by torch.compile; slow to start.", names=("--compile",))]
MetricWeights = Annotated[
    Path | None,
    option("Folder with vgg16-397923af.pth, lpips-vgg.pth and clip; default: GAS_WEIGHTS.", **FOLDER),
]
GasIterations = Annotated[
    int | None, option("Solver steps against the discriminator; default: 250.", min=1, max=MAX_ITERATIONS)
]
SamplesBatch = Annotated[int, option("Samples a network call.", min=1, max=MAX_BATCH)]
Validation = Annotated[
    int | None,
    option("Last pairs, to validate on; default: 256, or a quarter of fewer than 512.", min=2, max=MAX_SEEDS),
]
Seed = Annotated[int, option("Seed of the order of pairs and the discriminator.", min=0, max=MAX_ORDER_SEED)]
GuidanceScale = Annotated[
    float | None, option("Guidance scale, of a file that serves several; default: the file's.", **GUIDANCE)
]
PairsFolder = option("Folder of teacher pairs, as gas pairs writes it.", **FOLDER)
Picture = Annotated[
    Path | None,
    option("Draw a .png: of the times (inspect), of errors over NFE (evaluate).", output_file(".png")),
]
SolverFile = Annotated[Path, option("Solver file, as gas train writes it.", names=("--solver", "-s"), **FILE)]
ObjectiveName = Annotated[str, option("gs, or gas: go on against a discriminator.")]


# ---------------------------------------------------------------- groups


def _known(kind: str, table: str) -> Callable[[str], object]:
    """Return a check of a name in a table of :mod:`gas.pipelines.loading`, which is loaded late."""
    return lambda name: gas.registry.named(kind, name, vars(gas.pipelines.loading)[table])


@dataclass(frozen=True, kw_only=True)
class ArrayOptions:
    """How one of many processes writes pairs."""

    panel: ClassVar[str] = "Job array"

    shared: Annotated[
        bool,
        option(
            "Share the folder with other processes, on any hosts, that run this command.", names=("--shared",)
        ),
    ] = False
    max_time: Annotated[
        str,
        option("Stop after this time, as 90m or 3h, with exit code 75 if pairs are left.", parse_duration),
    ] = ""
    shard: Annotated[
        int, option("Pairs a file, which one process makes and a kill may cost.", min=1, max=MAX_SEEDS)
    ] = 256


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The network and the way it runs."""

    panel: ClassVar[str] = "Network"

    model: ModelName = "mnist"
    prompts: Prompts = None
    call: Annotated[str, option("Arguments of the pipeline's call, as height=512,image=photo.png.")] = ""
    dtype: Annotated[
        str | None,
        option("Dtype of a pipeline's weights: float32, bf16 or fp16.", _known("dtype", "DTYPES")),
    ] = None
    quantize: Annotated[
        str | None,
        option(
            "Number format of the weights: fp8, int8 or int4; simulated but for pipelines.",
            _known("quantize", "QUANTIZATIONS"),
        ),
    ] = None
    offload: Annotated[
        str | None,
        option(
            "Leave a pipeline on the CPU and move to the device the model that runs, or a group of its layers.",
            _known("offload", "OFFLOADS"),
        ),
    ] = None
    device: Device = "cpu"
    max_batch: Annotated[
        int | None,
        option("Samples a network evaluation, at most: larger batches are split.", min=1, max=MAX_BATCH),
    ] = None
    precision: Precision = "float32"
    compiled: Compile = False
    cuda_graphs: Annotated[bool, option("Replay a small network by CUDA graphs, without gradients.")] = False

    def load(self, pairs: Path | None = None) -> gas.models.Model:
        """Load the model; prompts that are not given come from a folder of pairs."""
        return load_model(self, pairs)


@dataclass(frozen=True, kw_only=True)
class FeatureNetworkOptions:
    """Features that distributions are compared in."""

    panel: ClassVar[str] = "Features"

    features: Annotated[
        str, option("Space of the distances: model (its own), or inception, dinov2, clip with --weights.")
    ] = "model"
    weights: Annotated[
        Path | None,
        option("Weights of --features: a file as pt_inception-2015-12-05.pth, or a folder.", exists=True),
    ] = None

    def __post_init__(self) -> None:
        """Refuse weights without a network's name, or a name without weights."""
        if self.features == "model" and self.weights is not None:
            raise gas.UserError("--weights are of a published network: name it with --features")
        if self.features != "model" and self.weights is None:
            raise gas.UserError(f"--features {self.features} needs --weights: nothing is downloaded")


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(FeatureNetworkOptions):
    """Features that distributions are compared in, and real data in them."""

    reference: Annotated[
        Path | None, option("Statistics of real data: of gas statistics, or the .npz of EDM or ADM.", **FILE)
    ] = None
    real: Annotated[
        Path | None,
        option("Real images: an .npz with arr_0 or a folder; for mnist also MNIST's IDX files.", exists=True),
    ] = None

    def space(self, model: gas.models.Model) -> gas.evaluation.FeatureSpace:
        """Return the feature space of a model's samples, with a progress bar of real images."""
        return gas.evaluation.feature_space(
            model,
            self.features,
            self.weights,
            reference=self.reference,
            real=self.real,
            progress=lambda batches, count: tracked("real images", batches, count),
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """The loss, the start and the optimizer of a training; ``None`` is the method's own setting."""

    panel: ClassVar[str] = "Training"

    loss: Annotated[str, option("Distance to the teacher: l2, l1 or pseudo_huber.")] = "l2"
    method: Annotated[str, option("auto (gauss-newton for l2, else adam), gauss-newton, adam or paper.")] = (
        "auto"
    )
    start: Annotated[
        str, option("Start: best (a search), uniform (the paper's), SOLVER/GRID, or for train a solver file.")
    ] = "best"
    iterations: Annotated[
        int | None, option("Steps for each NFE; default: 18 for l2.", min=0, max=MAX_ITERATIONS)
    ] = None
    batch: Annotated[
        int | None, option("Pairs a step; default: 16, growing; adam: 24.", min=1, max=MAX_BATCH)
    ] = None
    learning_rate: Annotated[float | None, option("Learning rate (adam, paper).", min=0, max=100)] = None
    relax: Annotated[
        float | None, option("How far noise may move, as LD3 (adam, paper).", min=0, max=1000)
    ] = None
    seed: Seed = 0

    @cached_property
    def search(self) -> gas.training.StartSearch:
        """Return how the start is chosen; a solver file is read."""
        return gas.training.StartSearch(gas.load(self.start) if self.start.endswith(".json") else self.start)

    def config(
        self, checkpointing: gas.training.activation_checkpointing.Checkpointing = "auto"
    ) -> gas.Adam | gas.GaussNewton:
        """Return the method's settings, with those that were given."""
        squares = gas.losses.is_sum_of_squares(gas.losses.loss_by_name(self.loss))
        method = choice("method", self.method, METHODS)
        if method == "auto":
            method = "gauss-newton" if squares else "adam"
        names = ("iterations", "batch", "learning_rate", "relax", "seed")
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        base: gas.Adam | gas.GaussNewton
        if method == "gauss-newton":
            for name in ("learning_rate", "relax"):
                if given.pop(name) is not None:
                    raise gas.UserError(f"gauss-newton has no {name}: choose --method adam or leave it out")
            if not squares:
                raise gas.UserError(
                    f"gauss-newton needs --loss l2, a sum of squares, got {self.loss}: choose --method adam"
                )
            given["largest"] = None if self.batch is None else max(self.batch, gas.GaussNewton().largest)
            base = gas.training.plan.steps_after(self.search)
        else:
            given["checkpointing"] = checkpointing
            base = gas.PAPER if method == "paper" else gas.Adam()
        return replace(base, **{name: value for name, value in given.items() if value is not None})


def _refuse_settings(group: Any, switch: str, on: str) -> None:
    """Refuse the settings of a group that differ from their defaults while its switch is not on."""
    for each in fields(group):
        if each.name != switch and getattr(group, each.name) != each.default:
            name = each.name.replace("_", "-")
            raise gas.UserError(f"--{name} is a setting of {on}: add that or leave it out")


@dataclass(frozen=True, kw_only=True)
class DiscriminatorOptions:
    """GAS: a discriminator to learn from after the pairs; ``None`` is the usual setting."""

    panel: ClassVar[str] = "Discriminator (with --objective gas)"

    objective: ObjectiveName = "gs"
    weight: Annotated[float | None, option("Adversarial loss's weight, the paper's w.", **_WEIGHTS)] = None
    balance: Annotated[
        float | None,
        option("Weight of the adversarial loss in units of GS's final loss; default: 10.", **_WEIGHTS),
    ] = None
    critic: Annotated[str, option("Discriminator loss: relativistic or classic.")] = "relativistic"
    pairing: Annotated[str, option("Noise of fakes and reals: independent or paired.")] = "independent"
    gas_iterations: GasIterations = None
    critic_weights: Annotated[
        Path | None, option("Discriminator: R3GAN's pickle, or safetensors.", **FILE)
    ] = None
    critic_steps: Annotated[int, option("Discriminator updates a step.", min=1, max=1000)] = 1

    def settings(self, usual: gas.Adam | None = None) -> dict[str, Any] | None:
        """Return the settings of GAS, by ``usual`` steps, as a solver file records them, or ``None`` for GS."""
        settings = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "objective"}
        if parse_objective(self.objective) == "gs":
            _refuse_settings(self, "objective", "--objective gas")
            return None
        if self.weight is not None and self.balance is not None:
            raise gas.UserError("--weight and --balance are two measures of one thing: leave one out")
        if self.weight is None and self.balance is None:
            settings["balance"] = gas.training.adversarial.setup.BALANCE
        if self.gas_iterations is None:
            settings["gas_iterations"] = adam_against(None, usual).iterations
        return {**settings, "critic_weights": self.critic_weights and str(self.critic_weights)}

    def adversary(
        self,
        model: gas.models.Model,
        pairs: gas.Pairs,
        optimizer: OptimizerOptions,
        checkpointing: gas.training.activation_checkpointing.Checkpointing,
        precision: str,
        usual: gas.Adam | None = None,
    ) -> gas.Adversary | None:
        """Return the adversarial training that the settings describe, by ``usual`` steps, or ``None`` for GS."""
        settings, path = self.settings(usual), self.critic_weights
        if settings is None:
            return None
        return gas.adversary_for(
            model,
            pairs,
            weight=self.weight,
            balance=settings["balance"] or 0.0,
            objective=self.critic,
            pairing=self.pairing,
            config=adam_against(
                self.gas_iterations,
                usual,
                seed=optimizer.seed,
                batch=optimizer.batch,
                checkpointing=checkpointing,
            ),
            steps=self.critic_steps,
            network=None if path is None else gas.training.adversarial.load_discriminator(path),
            seed=optimizer.seed,
            precision=precision,
        )


@dataclass(frozen=True, kw_only=True)
class LiftOptions:
    """A residual network at the last row of every solver; ``None`` is the usual setting."""

    panel: ClassVar[str] = "Lifting (with --lift)"

    lift: Annotated[
        bool, option("Add a small network to the last row and train it, against a discriminator for gas.")
    ] = False
    lift_iterations: Annotated[
        int | None, option("Steps on the pairs; default: 1500.", min=1, max=MAX_ITERATIONS)
    ] = None
    lift_width: Annotated[
        int | None, option("Channels of its hidden layers; default: by --lift-share.", min=1, max=10_000)
    ] = None
    lift_patch: Annotated[
        int | None, option("Side of its patches of images; default: by --lift-share.", min=1, max=16)
    ] = None
    lift_share: Annotated[
        float | None, option("Most time of it, in network calls; default: 0.03.", min=0, max=100)
    ] = None

    def __post_init__(self) -> None:
        """Refuse settings without --lift, and a share beside the sizes that it decides."""
        if not self.lift:
            _refuse_settings(self, "lift", "--lift")
        if (self.lift_width is None) != (self.lift_patch is None):
            raise gas.UserError("--lift-width and --lift-patch are the size together: give both or neither")
        if self.lift_width is not None and self.lift_share is not None:
            raise gas.UserError("--lift-share chooses --lift-width and --lift-patch: leave it or these out")
        if self.lift_share is not None:
            number("lift_share", self.lift_share, "(0, inf)")

    def check(self, model: gas.models.Model, nfes: list[int]) -> None:
        """Refuse a size that does not fit the model's samples."""
        if self.lift_width is not None:
            gas.training.lifting.new_residual(model.sample_shape, max(nfes), self.config(0))

    def recorded(self) -> dict[str, Any]:
        """Return what a solver file records; sizes are those of its residuals."""
        if not self.lift:
            return {}
        config = self.config(0)  # the seed is recorded already
        return {"lift": {name: getattr(config, name) for name in ("iterations", "batch", "learning_rate")}}

    def against(self) -> gas.Adam:
        """Return the usual settings of training against a discriminator."""
        return gas.training.lifting.GAS_LIFTING if self.lift else gas.training.adversarial.setup.GAS

    def config(self, seed: int) -> gas.training.Lifting:
        """Return the settings of lifting, but for a size that ``--lift-share`` decides."""
        names = {"iterations": self.lift_iterations, "width": self.lift_width, "patch": self.lift_patch}
        given: dict[str, Any] = {name: value for name, value in names.items() if value is not None}
        return replace(gas.training.Lifting(seed=seed), **given)


def adam_against(iterations: int | None, usual: gas.Adam | None = None, **settings: Any) -> gas.Adam:
    """Return the settings of Adam against a discriminator, with those that are not ``None``."""
    usual = gas.training.adversarial.setup.GAS if usual is None else usual
    steps = usual.iterations if iterations is None else iterations
    given = {name: value for name, value in settings.items() if value is not None}
    return replace(usual, iterations=steps, **{"validate_every": min(usual.validate_every, steps), **given})


# ---------------------------------------------------------------- readers


def load_solver(path: Path, guidance: float | None) -> gas.Artefact:
    """Load a solver file, for one guidance scale if that was given."""
    artefact = gas.load(path)
    return artefact if guidance is None else artefact.at(guidance)


def was_given(context: typer.Context, *names: str) -> bool:
    """Return whether any of these parameters was given on the command line."""
    sources = map(context.get_parameter_source, names)
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


def parse_checkpointing(text: str) -> gas.training.activation_checkpointing.Checkpointing:
    """Return a value of ``--checkpointing``, as :class:`gas.Adam` takes it."""
    return gas.training.activation_checkpointing.check_checkpointing(
        int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text
    )


def parse_objective(text: str) -> Literal["gs", "gas"]:
    """Read ``gs`` or ``gas``."""
    return "gas" if choice("objective", text, ("gs", "gas")) == "gas" else "gs"


def parse_seeds(text: str, least: int = 1) -> range:
    """Read ``A:B`` (A up to, not including, B) or ``N`` (0 up to N) as a range of at least so many seeds."""
    form = re.fullmatch(r"\s*(?:(\d{1,30})\s*:)?\s*(\d{1,30})\s*", text, re.ASCII)
    first, stop = (int(form[1] or 0), int(form[2])) if form else (0, 0)
    if not first < stop:
        raise gas.UserError(f"seeds must be like 1024 or 50000:51024 with first < last, got {text[:60]!r}")
    if not least <= stop - first <= MAX_SEEDS or stop > MAX_SEED:
        raise gas.UserError(f"seeds must be from {least} to {MAX_SEEDS:,}, all below 2^63, got {text!r}")
    return range(first, stop)


def measured_seeds(text: str) -> range:
    """Read seeds to measure on: two at least, as an interval needs a spread."""
    return parse_seeds(text, least=2)


def split_pairs(pairs: gas.Pairs, validation: int | None) -> tuple[gas.Pairs, gas.Pairs]:
    """Return the pairs to train on and those to validate on, as ``--validation`` says."""
    return pairs.split(validation_count(len(pairs), validation))


def validation_count(pairs: int, validation: int | None) -> int:
    """Return how many of some pairs are to validate on, as ``--validation`` says."""
    if validation is None:
        validation = 256 if pairs >= 512 else pairs // 4
        if validation < 2:
            raise gas.UserError(f"{pairs} pairs are too few to learn from and to choose on: make more")
    if not validation < pairs:
        raise gas.UserError(
            f"--validation must be below the {pairs} pairs, got {validation}: leave it out, or make more pairs"
        )
    return validation


def parse_nfes(text: str) -> list[int]:
    """Read ``3-6,8,10`` as a sorted list of NFE."""
    nfes: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,30})\s*(?:-\s*(\d{1,30}))?\s*", part, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if first < 1:
            raise gas.UserError(f"nfe must be like 4 or 3-6,8,10 with numbers from 1 up, got {text[:60]!r}")
        if max(first, last) > MAX_NFE:
            raise gas.UserError(f"nfe must be from 1 to {MAX_NFE:,}, got {text[:60]!r}")
        if first > last:
            raise gas.UserError(f"nfe {text[:60]!r} has a range from high to low: write {last}-{first}")
        nfes.update(range(first, last + 1))
    return sorted(nfes)


def interpolation(around: tuple[int, int]) -> str:
    """Name the two trained NFE that a table is interpolated from."""
    return f"interpolated from NFE {around[0]} and {around[1]}"
