"""The six setups of the paper with all their settings, as data."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import nn

from gas.arguments import MAX_NFE, MAX_SEED, MAX_SEEDS, choice, integer, number
from gas.classical.registry import Classical
from gas.errors import UserError
from gas.learned.registry import kind_by_name
from gas.registry import named
from gas.training.activation_checkpointing import Checkpointing
from gas.training.adam import Adam
from gas.training.adversarial.losses import Critic, objective_by_name
from gas.training.adversarial.r3gan import R3GANDiscriminator, stages
from gas.training.initialization import check_start

Objective = Literal["gs", "gas"]

# Fields that identify a preset and cannot be changed.
FIXED = ("name", "title", "kind")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Every setting of one setup of the paper; :meth:`changed` makes another of it.

    Args:
        kind: of the network: ``"edm"``, ``"ldm"`` (CompVis) or ``"sd"`` (a diffusers folder).
        network: its file or folder, by the published name.
        critic_file: the published discriminator that GAS starts from; empty for random weights.
        size: side of the images in pixels.
        t_end: time at which the student ends.
        guidance: scale of classifier-free guidance; 1 is none.
        teacher_nfe: its network evaluations; 0 for one more than the student's.
        teacher_seeds: first and last + 1; pairs take the first of them, training pairs before validation pairs.
        pairs, pairs_gas: training pairs of GS and of GAS, without those for validation.
        solver: parameterization that is learned, a key of :data:`gas.learned.SOLVERS`.
        start: ``"uniform"``, DPM-Solver++(3M) on even times, or ``"SOLVER/GRID"``.
        loss: of the distillation: ``"lpips"`` or a name of :data:`gas.losses.LOSSES`.
        iterations_gas: of GAS, which has its discriminator from the first step on.
        keep: solver that a GS training returns: ``"best"`` on the validation pairs, or ``"last"``.
        keep_gas: likewise for GAS, whose discriminator makes the paired loss larger on purpose.
        weight: w of the adversarial loss.
        objective: of the discriminator, ``"relativistic"`` or ``"classic"``.
        pairing: of fakes and reals, as in :class:`gas.training.AdamSteps`.
        critic_widths, critic_groups, critic_blocks: sizes of a discriminator without a file, one number a stage, from
            the highest resolution down.
        nfes: columns of the paper's table.
        evaluation_seeds: first and last + 1 of the seeds that are measured.
        samples: how many the paper measures.
        reference: real data that samples are measured against.

    The other settings are those of :class:`gas.Adam` and, with ``critic_`` before them, of :class:`gas.Critic`.

    Raises:
        UserError: names the setting that is out of range.

    References:
        arXiv 2510.17699, section 5 and its appendix on settings.
    """

    name: str
    title: str
    kind: Literal["edm", "ldm", "sd"]
    network: str
    critic_file: str = ""
    size: int
    t_end: float
    guidance: float = 1.0
    teacher: str
    teacher_grid: str
    teacher_nfe: int
    teacher_t_end: float
    teacher_seeds: tuple[int, int] = (0, 50_000)
    pairs: int = 1400
    pairs_gas: int = 5000
    validation: int = 1000
    solver: str = "gs"
    start: str = "uniform"
    loss: str
    iterations: int
    iterations_gas: int
    batch: int
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    decay: Literal["cosine", "constant"] = "constant"
    clip: float = 1.0
    ema: float = 0.999
    ema_warmup: bool = True
    validate_every: int = 500
    relax: float = 0.0
    checkpointing: Checkpointing = "auto"
    seed: int = 0
    keep: Literal["best", "last"] = "best"
    keep_gas: Literal["best", "last"] = "last"
    weight: float = 1.0
    objective: Literal["relativistic", "classic"] = "relativistic"
    pairing: Literal["independent", "paired"] = "independent"
    critic_learning_rate: float = 1e-5
    critic_penalty: float = 0.2
    critic_steps: int = 1
    critic_warmup: int = 0
    critic_widths: tuple[int, ...] = (384, 768, 768, 768, 768)
    critic_groups: tuple[int, ...] = (48, 96, 96, 96, 96)
    critic_blocks: tuple[int, ...] = (2, 2, 2, 2, 2)
    nfes: tuple[int, ...]
    evaluation_seeds: tuple[int, int] = (50_000, 100_000)
    samples: int = 50_000
    reference: str

    def __post_init__(self) -> None:
        for name in ("size", "pairs", "pairs_gas", "validation", "samples", "validate_every"):
            integer(name, getattr(self, name), 1, MAX_SEEDS)
        number("guidance", self.guidance, "(-inf, inf)")
        for name in ("t_end", "teacher_t_end"):
            number(name, getattr(self, name), "(0, 1)")
        check_start(self.start)
        choice("pairing", self.pairing, ("independent", "paired"))
        for name in ("teacher_seeds", "evaluation_seeds"):
            first, stop = getattr(self, name)
            if not 0 <= first < stop <= MAX_SEED:
                raise UserError(f"{name} must be FIRST,STOP with 0 <= first < stop, got {first},{stop}")
        if not self.nfes or min(self.nfes) < 1 or max(self.nfes) > MAX_NFE:
            raise UserError(f"nfes must be numbers from 1 to {MAX_NFE}, got {reprlib.repr(self.nfes)}")
        integer("teacher_nfe (0 is N + 1)", self.teacher_nfe, 0, MAX_NFE)
        first, stop = self.teacher_seeds
        for name in ("pairs", "pairs_gas"):
            if (count := getattr(self, name)) + self.validation > stop - first:
                raise UserError(
                    f"{name} and validation must fit into teacher_seeds, got {count} + {self.validation}"
                )
        self.teacher_for(1)
        kind_by_name(self.solver)
        objective_by_name(self.objective)
        self.training("gs")
        self.training("gas")
        Critic("samples", nn.Identity(), **self.critic_settings())  # refuses settings out of range

    def changed(self, changes: Iterable[str]) -> Preset:
        """Return the preset with settings changed, each as ``name=value``.

        Raises:
            UserError: for another form, an unknown name (with the nearest known one), or a value of another type or
                out of range.

        >>> from gas.paper import PRESETS
        >>> PRESETS["ffhq"].changed(["batch=8", "betas=0.9,0.99"]).betas
        (0.9, 0.99)
        """
        types = {name: kind for name, kind in get_type_hints(Preset).items() if name not in FIXED}
        values: dict[str, Any] = {}
        for change in changes:
            name, equals, text = (part.strip() for part in change.partition("="))
            if not equals:
                raise UserError(f"a setting must be like batch=8, got {change!r}")
            values[name] = _parse(name, text, named("setting", name, types))
        return replace(self, **values)

    def settings(self, without: Collection[str] = ()) -> dict[str, str]:
        """Return every setting as ``--set`` takes it."""
        names = [f.name for f in fields(self) if f.name not in (*FIXED, *without)]
        return {name: _text(getattr(self, name)) for name in names}

    def changes(self) -> dict[str, str]:
        """Return the settings that differ from the published ones, as ``--set`` takes them."""
        published = preset_by_name(self.name).settings()
        return {name: value for name, value in self.settings().items() if value != published[name]}

    def training(self, objective: Objective) -> Adam:
        """Return the optimizer's settings for GS or GAS."""
        shared = {f.name: getattr(self, f.name) for f in fields(Adam) if hasattr(self, f.name)}
        iterations = self.iterations_gas if objective == "gas" else self.iterations
        every = max(1, min(self.validate_every, iterations))
        return Adam(**shared | {"iterations": iterations, "validate_every": every})

    def critic_settings(self) -> dict[str, Any]:
        """Return the settings of the discriminator, as :class:`gas.Critic` takes them."""
        names = ("learning_rate", "penalty", "steps", "warmup")
        settings = {name: getattr(self, f"critic_{name}") for name in names}
        return {**settings, "weight": self.weight, "objective": self.objective}

    def critic_network(self, channels: int) -> R3GANDiscriminator:
        """Return a discriminator with random weights from torch's global generator."""
        return R3GANDiscriminator(
            **stages(channels, self.critic_widths, self.critic_groups, self.critic_blocks)
        )

    def training_pairs(self, objective: Objective) -> int:
        return self.pairs_gas if objective == "gas" else self.pairs

    def seeds(self, objective: Objective) -> range:
        """Return the seeds of the training pairs and, after them, the validation pairs."""
        first = self.teacher_seeds[0]
        return range(first, first + self.training_pairs(objective) + self.validation)

    def teacher_for(self, nfe: int) -> Classical:
        """Return the teacher of students of this NFE."""
        return Classical(self.teacher, self.teacher_grid, self.teacher_nfe or nfe + 1, self.teacher_t_end)

    def pairs_folder(self, objective: Objective, nfe: int) -> Path:
        teacher = "" if self.teacher_nfe else f"-nfe{nfe}"
        return Path("runs") / self.name / f"pairs{teacher}-{len(self.seeds(objective))}"

    def solver_path(self, objective: Objective, nfe: int) -> Path:
        name = "gas" if objective == "gas" else self.solver
        return Path("runs") / self.name / f"{name}-{nfe}.json"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    return str(value)


def _parse(name: str, text: str, kind: Any) -> Any:
    """Read a setting of a type; the values of a tuple are separated by commas."""
    is_tuple = get_origin(kind) is tuple
    value = [part.strip() for part in text.split(",") if part.strip()] if is_tuple else text
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]
        wanted = problem["msg"].removeprefix("Input should be ").partition(", unable")[0]
        if problem["type"] in ("missing", "too_long"):
            wanted = f"{len(get_args(kind))} values separated by a comma"
        raise UserError(f"{name} must be {wanted}, got {text!r}") from None


_EDM: dict[str, Any] = {
    "kind": "edm",
    "teacher": "unipc-3-bh1",
    "teacher_grid": "log_snr",
    "teacher_nfe": 20,
    "teacher_t_end": 1e-4,
    "loss": "lpips",
    "batch": 24,
    "iterations": 10_000,
    "iterations_gas": 10_000,
    "nfes": (4, 6, 8, 10),
    "reference": "EDM's statistics",
}
_LDM: dict[str, Any] = {
    "kind": "ldm",
    "size": 256,
    "t_end": 1e-3,
    "teacher": "unipc-3-bh2",
    "teacher_t_end": 1e-3,
    "loss": "l1",
    "batch": 8,
    "iterations": 30_000,
    "iterations_gas": 30_000,
    "nfes": (4, 5, 6, 7),
    "reference": "ADM's reference batch",
}
_ALL = (
    Preset(
        name="cifar10",
        title="CIFAR-10, 32 x 32, EDM (VP), unconditional",
        network="edm-cifar10-32x32-uncond-vp.pkl",
        critic_file="R3GAN-CIFAR10.pkl",
        size=32,
        t_end=1e-3,
        pairs_gas=1400,
        weight=0.1,
        critic_widths=(768,) * 4,
        critic_groups=(96,) * 4,
        critic_blocks=(2,) * 4,
        **_EDM,
    ),
    Preset(
        name="ffhq",
        title="FFHQ, 64 x 64, EDM (VP)",
        network="edm-ffhq-64x64-uncond-vp.pkl",
        critic_file="R3GAN-FFHQ-64x64.pkl",
        size=64,
        t_end=1e-4,
        **_EDM,
    ),
    Preset(
        name="afhqv2",
        title="AFHQv2, 64 x 64, EDM (VP)",
        network="edm-afhqv2-64x64-uncond-vp.pkl",
        critic_file="R3GAN-FFHQ-64x64.pkl",
        size=64,
        t_end=1e-4,
        **_EDM,
    ),
    Preset(
        name="lsun",
        title="LSUN-Bedroom, 256 x 256, latent diffusion (VQ-f4)",
        network="lsun_bedrooms/model.ckpt",
        teacher_grid="time_uniform",
        teacher_nfe=20,
        **_LDM,
    ),
    Preset(
        name="imagenet",
        title="ImageNet, 256 x 256, latent diffusion (cin256-v2, VQ-f4), guided",
        network="cin256-v2/model.ckpt",
        guidance=2.0,
        teacher_grid="time_quadratic",
        teacher_nfe=10,
        **_LDM,
    ),
    Preset(
        name="coco",
        title="MS-COCO, 512 x 512, Stable Diffusion 1.5, guided",
        kind="sd",
        network="stable-diffusion-v1-5",
        size=512,
        t_end=1e-3,
        guidance=7.5,
        teacher="ipndm-2",
        teacher_grid="gits-sd15",
        teacher_nfe=0,
        teacher_t_end=1e-3,
        teacher_seeds=(0, 30_000),
        validation=128,
        loss="l1",
        batch=4,
        iterations=1000,
        iterations_gas=2000,
        validate_every=100,
        nfes=(4, 5, 6, 7),
        evaluation_seeds=(30_000, 60_000),
        samples=30_000,
        reference="MS-COCO's validation images",
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def preset_by_name(name: str) -> Preset:
    """Return a preset of :data:`PRESETS`, or suggest the nearest known name."""
    return named("preset", name, PRESETS)
