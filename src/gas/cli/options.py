"""Options that several commands share, alone and in groups, and the readers of their texts.

A group is a dataclass; ``app.command`` makes an option of each field. What a group means to the library is
one of its methods.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from gas.arguments import MAX_BATCH, MAX_ITERATIONS, MAX_NFE, MAX_ORDER_SEED, MAX_SEED, MAX_SEEDS
from gas.cli.checks import (
    existing_file,
    existing_folder,
    existing_path,
    imported,
    is_in,
    option,
    output_file,
    registered,
)
from gas.cli.loading import check_model_name, load_model, parse_call
from gas.errors import UserError

if TYPE_CHECKING:
    from gas.models.protocol import Model
    from gas.pairs.dataset import Pairs
    from gas.training.activation_checkpointing import Checkpointing
    from gas.training.adam import Adam
    from gas.training.adversarial.setup import Adversary
    from gas.training.gauss_newton import GaussNewton

# The paper's weight of the adversarial loss is 0.1; at thousands of times that, the solver follows nothing else.
_WEIGHTS = "[0, 1000000]"
# Values of --method; auto is gauss-newton for a sum of squares, else adam.
METHODS = ("auto", "gauss-newton", "adam", "paper")


def check_classical(text: str) -> None:
    """Refuse anything but ``SOLVER`` or ``SOLVER/GRID`` of a classical solver."""
    from gas.training.initialization import check_start

    if text in ("best", "uniform"):
        raise UserError(f"a classical solver is SOLVER or SOLVER/GRID, got {text!r}")
    check_start(text)


def check_grid(text: str) -> None:
    """Refuse anything but the name of a time grid or its times."""
    from gas.training.initialization import check_start

    check_start(f"ddim/{text}")


def check_space(features: str, weights: Path | None) -> None:
    """Refuse weights without a network's name, or a name without weights.

    Raises:
        UserError: says which of the two is missing.
    """
    if features == "model" and weights is not None:
        raise UserError("--weights are of a published network: name it with --features")
    if features != "model" and weights is None:
        raise UserError(f"--features {features} needs --weights: nothing is downloaded")


def require_matplotlib() -> None:
    """Refuse pictures where matplotlib is not installed."""
    from gas.plotting.style import require_matplotlib

    require_matplotlib()


# ---------------------------------------------------------------- single options

ModelName = Annotated[
    str,
    option(
        "Zoo model (digits, mnist; mnist-latent, mnist-flow) or the path of its .safetensors file; "
        "diffusers:FOLDER_OR_REPOSITORY; published:FILE, a network that gas paper convert reads; or preset:NAME, a "
        "setup of the paper.",
        check_model_name,
        names=("--model", "-m"),
    ),
]
ZooName = Annotated[
    str,
    option(
        "Zoo model of images (digits, mnist), or the path of its .safetensors file.", names=("--model", "-m")
    ),
]
Prompts = Annotated[
    Path | None,
    option("UTF-8 file of prompts for a pipeline, one a line: seed s takes line s mod lines.", existing_file),
]
Call = Annotated[str, option("Arguments of the pipeline's call, as height=512,width=512.", parse_call)]
Device = Annotated[str, option("Device of the network: cpu, cuda, cuda:1, mps.")]
Json = Annotated[bool, option("Print results as JSON on standard output.", names=("--json",))]
Precision = Annotated[
    str,
    option(
        "Precision of the network: float32, tf32 (10-bit products on CUDA), bf16 or fp16 (mixed; states and "
        "coefficients stay exact).",
        registered("precision", "gas.models.runtime:PRECISIONS"),
    ),
]
Compile = Annotated[
    bool, option("Run the network through torch.compile; slow to start.", names=("--compile",))
]
CudaGraphs = Annotated[
    bool,
    option(
        "Record the network and replay it where no gradient is needed: several times faster for small networks "
        "on CUDA. Not for pipelines.",
        names=("--cuda-graphs",),
    ),
]
Features = Annotated[
    str,
    option(
        "Feature space of the distances: the model's own (model), or inception, dinov2, clip with --weights.",
        registered("features", "gas.features.extractor:EXTRACTORS", "model"),
    ),
]
FeatureWeights = Annotated[
    Path | None,
    option(
        "Weights of --features: a file with the names of pt_inception-2015-12-05, or a transformers folder.",
        existing_path,
        names=("--weights",),
    ),
]
MetricWeights = Annotated[
    Path | None,
    option(
        "Folder with vgg16-397923af.pth, lpips-vgg.pth and the folder clip; default: GAS_WEIGHTS, or "
        "~/.cache/gas-solver/weights.",
        existing_folder,
    ),
]
Reference = Annotated[
    Path | None,
    option(
        "Statistics of real data in that space: from gas statistics, or the .npz of EDM or ADM.",
        existing_file,
    ),
]
Real = Annotated[
    Path | None,
    option(
        "Real images to measure against, with --features: an .npz with arr_0 (ADM's reference batch) or a "
        "folder of pictures; for mnist in its own features, a folder of MNIST's IDX files.",
        existing_path,
    ),
]
GasIterations = Annotated[
    int | None,
    option("Adam steps against the discriminator (GAS only); default: 250.", min=1, max=MAX_ITERATIONS),
]
SamplesBatch = Annotated[int, option("Samples a network call.", min=1, max=MAX_BATCH)]
Validation = Annotated[
    int | None,
    option(
        "Pairs, from the end, to validate on; default: 256, or a quarter of fewer than 512 pairs.",
        min=2,
        max=MAX_SEEDS,
    ),
]
Seed = Annotated[
    int,
    option("Seed of the order of the pairs and of the discriminator's weights.", min=0, max=MAX_ORDER_SEED),
]
PairsFolder = option("Folder of teacher pairs, as gas pairs writes it.", existing_folder)
Picture = Annotated[
    Path | None,
    option(
        "Also draw a .png: the learned times, or the error over NFE.",
        output_file(".png"),
        lambda _: require_matplotlib(),
    ),
]
SolverFile = Annotated[
    Path, option("Solver file, as gas train writes it.", existing_file, names=("--solver", "-s"))
]
ObjectiveName = Annotated[
    str, option("gs, or gas: go on against a discriminator.", lambda text: parse_objective(text))
]


# ---------------------------------------------------------------- groups


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The network and the way it runs."""

    panel: ClassVar[str] = "Network"

    model: ModelName = "mnist"
    prompts: Prompts = None
    call: Call = ""
    device: Device = "cpu"
    precision: Precision = "float32"
    compiled: Compile = False
    cuda_graphs: CudaGraphs = False

    def load(self, pairs: Path | None = None) -> Model:
        """Load the model; prompts that are not given come from a folder of pairs."""
        model = load_model(
            self.model,
            self.device,
            self.precision,
            self.compiled,
            prompts=self.prompts,
            call=self.call,
            pairs=pairs,
        )
        loaded: Model = recorded(model, self.cuda_graphs)
        return loaded


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Features that distributions are compared in, and real data in them."""

    panel: ClassVar[str] = "Features"

    features: Features = "model"
    weights: FeatureWeights = None
    reference: Reference = None
    real: Real = None


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """The loss, the start and the optimizer of a training; ``None`` is the method's own setting."""

    panel: ClassVar[str] = "Training"

    loss: Annotated[
        str,
        option("Distance to the teacher: l2, l1 or pseudo_huber.", registered("loss", "gas.losses:LOSSES")),
    ] = "l2"
    method: Annotated[
        str,
        option(
            "auto (gauss-newton for l2, else adam), gauss-newton, adam, or paper (its settings of Adam).",
            registered("method", METHODS),
        ),
    ] = "auto"
    start: Annotated[
        str,
        option(
            "Start of learned solvers: best (successive halving), uniform (the paper's), or SOLVER/GRID.",
            imported("gas.training.initialization:check_start"),
        ),
    ] = "best"
    iterations: Annotated[
        int | None, option("Optimizer steps for each NFE; default: 18 for l2.", min=0, max=MAX_ITERATIONS)
    ] = None
    batch: Annotated[
        int | None, option("Pairs a step; default: 24, growing for l2.", min=1, max=MAX_BATCH)
    ] = None
    learning_rate: Annotated[
        float | None, option("Learning rate (adam, paper).", is_in("learning_rate", "(0, 100]"))
    ] = None
    relax: Annotated[
        float | None,
        option(
            "Radius of the ball in which a pair's noise may move (adam, paper), as in LD3 and S4S; default: 0.",
            is_in("relax", "[0, 1000]"),
        ),
    ] = None
    seed: Seed = 0

    def config(self, checkpointing: Checkpointing = "auto") -> Adam | GaussNewton:
        """Return the method's settings, with those that were given.

        Args:
            checkpointing: activation checkpointing, as :class:`gas.Adam` takes it.

        Raises:
            UserError: for a setting that the method does not have.
        """
        from gas.losses import is_sum_of_squares, loss_by_name
        from gas.training.adam import PAPER, Adam
        from gas.training.distillation import FINISH
        from gas.training.gauss_newton import GaussNewton

        squares = is_sum_of_squares(loss_by_name(self.loss))
        method = self.method
        if method == "auto":
            method = "gauss-newton" if squares else "adam"
        given: dict[str, Any] = {
            "iterations": self.iterations,
            "batch": self.batch,
            "learning_rate": self.learning_rate,
            "relax": self.relax,
            "seed": self.seed,
        }
        base: Adam | GaussNewton
        if method == "gauss-newton":
            for name in ("learning_rate", "relax"):
                if given.pop(name) is not None:
                    raise UserError(f"gauss-newton has no {name}: choose --method adam or leave it out")
            if not squares:
                raise UserError(
                    f"gauss-newton needs --loss l2, a sum of squares, got {self.loss}: choose --method adam"
                )
            given["largest"] = None if self.batch is None else max(self.batch, GaussNewton().largest)
            base = FINISH if self.start == "best" else GaussNewton()
        else:
            given["checkpointing"] = checkpointing
            base = PAPER if method == "paper" else Adam()
        return replace(base, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class DiscriminatorOptions:
    """GAS: a discriminator to learn from after the pairs; ``None`` is the usual setting."""

    panel: ClassVar[str] = "Discriminator (GAS)"

    objective: ObjectiveName = "gs"
    weight: Annotated[
        float | None,
        option("Weight of the adversarial loss, the paper's w (GAS only).", is_in("weight", _WEIGHTS)),
    ] = None
    balance: Annotated[
        float | None,
        option(
            "The same weight in units of the loss that GS ends with (GAS only); default: 10.",
            is_in("balance", _WEIGHTS),
        ),
    ] = None
    critic: Annotated[
        str | None,
        option(
            "Discriminator loss (GAS only): relativistic (default) or classic.",
            registered("critic", "gas.training.adversarial.losses:OBJECTIVES"),
        ),
    ] = None
    pairing: Annotated[
        str | None,
        option(
            "Fakes and reals (GAS only): independent noise (default), or paired as in the authors' code.",
            registered("pairing", ("independent", "paired")),
        ),
    ] = None
    gas_iterations: GasIterations = None
    critic_weights: Annotated[
        Path | None,
        option(
            "Pretrained discriminator (GAS only): R3GAN's pickle, which is not executed, or safetensors.",
            existing_file,
        ),
    ] = None
    critic_steps: Annotated[
        int | None, option("Discriminator updates per solver update (GAS only); default: 1.", min=1, max=1000)
    ] = None

    def settings(self) -> dict[str, Any] | None:
        """Return the settings of GAS as a solver file records them, or ``None`` for GS.

        Raises:
            UserError: for settings of GAS without it, or both measures of the weight.
        """
        from gas.training.adversarial.setup import BALANCE, GAS

        usual = {
            "weight": None,
            "balance": None if self.weight is not None else BALANCE,
            "critic": "relativistic",
            "pairing": "independent",
            "gas_iterations": GAS.iterations,
            "critic_weights": None,
            "critic_steps": 1,
        }
        given = {name: getattr(self, name) for name in usual if getattr(self, name) is not None}
        if parse_objective(self.objective) == "gs":
            for name in given:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} is a setting of --objective gas: add that or leave it out")
            return None
        if self.weight is not None and self.balance is not None:
            raise UserError("--weight and --balance are two measures of one thing: leave one out")
        return {**usual, **given, "critic_weights": self.critic_weights and str(self.critic_weights)}

    def adversary(
        self,
        model: Model,
        pairs: Pairs,
        optimizer: OptimizerOptions,
        checkpointing: Checkpointing,
        precision: str,
    ) -> Adversary | None:
        """Return the adversarial training that the settings describe, or ``None`` for GS."""
        settings = self.settings()
        if settings is None:
            return None
        from gas.training.adversarial.r3gan import load_discriminator
        from gas.training.adversarial.setup import adversary_for
        from gas.training.adversarial.updates import check_single_process

        check_single_process()
        return adversary_for(
            model,
            pairs,
            weight=settings["weight"],
            balance=settings["balance"] or 0.0,
            objective=settings["critic"],
            pairing=settings["pairing"],
            config=adam_against(
                settings["gas_iterations"], optimizer.seed, optimizer.batch, checkpointing=checkpointing
            ),
            steps=settings["critic_steps"],
            network=None if self.critic_weights is None else load_discriminator(self.critic_weights),
            seed=optimizer.seed,
            precision=precision,
        )


def adam_against(iterations: int | None, seed: int, batch: int | None = None, **more: Any) -> Adam:
    """Return the settings of Adam against a discriminator, with those that are given."""
    from gas.training.adversarial.setup import GAS

    steps = GAS.iterations if iterations is None else iterations
    every = min(GAS.validate_every, steps)
    pairs = GAS.batch if batch is None else batch
    return replace(GAS, iterations=steps, batch=pairs, validate_every=every, seed=seed, **more)


# ---------------------------------------------------------------- readers


def was_given(context: typer.Context, name: str) -> bool:
    """Return whether a parameter was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def parse_checkpointing(text: str) -> Checkpointing:
    """Return a value of ``--checkpointing``, as :class:`gas.Adam` takes it."""
    from gas.training.activation_checkpointing import check_checkpointing

    return check_checkpointing(int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text)


def parse_objective(text: str) -> Literal["gs", "gas"]:
    """Read ``gs`` or ``gas``.

    Raises:
        UserError: for anything else.
    """
    if text not in ("gs", "gas"):
        raise UserError(f"objective must be gs or gas, got {text!r}")
    return "gas" if text == "gas" else "gs"


def parse_seeds(text: str) -> range:
    """Read ``A:B`` (A up to, not including, B) or ``N`` (0 up to N) as a range of seeds.

    Raises:
        UserError: shows both forms, or the bounds.
    """
    form = re.fullmatch(r"\s*(?:(\d{1,30})\s*:)?\s*(\d{1,30})\s*", text, re.ASCII)
    first, stop = (int(form[1] or 0), int(form[2])) if form else (0, 0)
    if not first < stop:
        raise UserError(f"seeds must be like 1024 or 50000:51024 with first < last, got {text[:60]!r}")
    if stop - first > MAX_SEEDS or stop > MAX_SEED:
        raise UserError(f"seeds must be at most {MAX_SEEDS:,} and below 2^63, got {text!r}")
    return range(first, stop)


def measured_seeds(text: str) -> range:
    """Read seeds to measure on: two at least, as an interval needs a spread.

    Raises:
        UserError: as :func:`parse_seeds`, and for a single seed.
    """
    seeds = parse_seeds(text)
    if len(seeds) < 2:
        raise UserError(f"at least two seeds are needed to measure on, got {text!r}")
    return seeds


def split_pairs(pairs: Pairs, validation: int | None) -> tuple[Pairs, Pairs]:
    """Return the pairs to train on and those to validate on, as ``--validation`` says."""
    count = len(pairs)
    if validation is None:
        validation = 256 if count >= 512 else count // 4
        if validation < 2:
            raise UserError(f"{count} pairs are too few to learn from and to choose on: make more")
    if not validation < count:
        raise UserError(
            f"--validation must be below the {count} pairs, got {validation}: leave it out, or make more pairs"
        )
    return pairs.split(validation)


def parse_nfes(text: str) -> list[int]:
    """Read ``3-6,8,10`` as a sorted list of NFE.

    Raises:
        UserError: shows the form, or the bounds.
    """
    nfes: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d{1,30})\s*(?:-\s*(\d{1,30}))?\s*", part, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, 0)
        if first < 1:
            raise UserError(f"nfe must be like 4 or 3-6,8,10 with numbers from 1 up, got {text[:60]!r}")
        if max(first, last) > MAX_NFE:
            raise UserError(f"nfe must be from 1 to {MAX_NFE:,}, got {text[:60]!r}")
        if first > last:
            raise UserError(f"nfe {text[:60]!r} has a range from high to low: write {last}-{first}")
        nfes.update(range(first, last + 1))
    return sorted(nfes)


def interpolation(around: tuple[int, int]) -> str:
    """Name the two trained NFE that a table is interpolated from."""
    return f"interpolated from NFE {around[0]} and {around[1]}"


def recorded(model: Any, graphs: bool) -> Any:
    """Return the model, recorded as CUDA graphs if ``graphs``."""
    if not graphs:
        return model
    from gas.models.runtime import CudaGraphs

    return CudaGraphs(model)
