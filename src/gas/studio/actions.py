"""What the page does, as functions and generators over the library; nothing of it needs gradio or a browser."""

from __future__ import annotations

import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gas
from gas.display import error_text
from gas.errors import UserError
from gas.evaluation.sampler import sample_batches, seed_batches
from gas.evaluation.solver_files import display_name
from gas.metrics.paired import mean_psnr, mse
from gas.models.protocol import Model, images_of, passes_of, prompts_of
from gas.training.activation_checkpointing import available_bytes

MAX_CALLS = 20  # the teacher's: a student with as many is no shorter
MAX_SAMPLES = 16  # a row of them is as wide as a screen
# Samples a network call: few, so that large pictures appear one by one and others can go between.
_BATCH = 8
# What a person can mend: reported as one sentence.
MISTAKES = (UserError, OSError, MemoryError, ArithmeticError, ModuleNotFoundError, torch.OutOfMemoryError)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to sample.

    Attributes:
        model: a zoo model, or the path of its file or of a diffusers folder.
        prompt: of a pipeline that takes prompts.
        label: class of all samples; ``None`` takes seed mod classes.
        guidance: guidance scale.
        first_seed, count: seeds of the noise.
        classical: solvers by name, ``SOLVER/GRID``.
        files: paths of solver files.
        calls: network evaluations of every solver, or forward passes of the network.
        by_passes: whether ``calls`` counts forward passes, of which a guided evaluation takes two.
    """

    model: str = "mnist"
    prompt: str = ""
    label: int | None = None
    guidance: float = 1.0
    first_seed: int = 50_000
    count: int = 8
    classical: Sequence[str] = ()
    files: Sequence[str] = ()
    calls: int = 4
    by_passes: bool = False

    @property
    def seeds(self) -> range:
        """The seeds."""
        return range(self.first_seed, self.first_seed + self.count)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A solver of a comparison: its table, or why it has none."""

    name: str
    detail: str = ""
    table: gas.Table | None = None
    learned: bool = False
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The pictures of one solver.

    Attributes:
        calls, passes: network evaluations a sample, and forward passes of the network.
        images: those sampled so far, ``(B, C, H, W)`` in [-1, 1].
        seconds: spent on them.
        psnr: mean over samples of the PSNR to the teacher's in dB, when all are there.
        count: samples there will be.
        done: whether all are there.
    """

    name: str
    detail: str = ""
    learned: bool = False
    problem: str = ""
    calls: int = 0
    passes: int = 0
    images: Tensor | None = None
    seconds: float = 0.0
    psnr: float | None = None
    count: int = 0
    done: bool = False


class NoPrompt(UserError):
    """A pipeline that takes prompts got none."""

    def __init__(self, model: gas.pipelines.PipelineModel) -> None:
        super().__init__(f"the prompt is empty: write what {model.name} should draw")
        self.model = model


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the page asks for a model: a prompt or one of its classes by name, and a guidance scale.

    Attributes:
        takes_prompt: whether it draws words.
        classes: their names, those of a shipped pipeline its own prompts.
        guidance: the scale that the model is meant for: of its card, or of its pipeline's own call.
    """

    takes_prompt: bool = False
    classes: Sequence[str] = ()
    guidance: float = 1.0


class Networks:
    """The network in use: one is in memory, and one thread at a time calls it.

    A pipeline's calls are not thread-safe, and two samplings at a time take as long as one after the other.

    Attributes:
        lock: held by whoever calls the network.
        training: held by the training that runs: a second one would take twice as long, and both twice the memory.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.lock, self.training = device, threading.Lock(), threading.Lock()
        self._name = self._prompt = ""
        self._make: Callable[[str], Model] | None = None
        self._model: Model | None = None

    def open(self, name: str, prompt: str = "") -> Model:
        """Return a model by the name or path of a :class:`Choice`.

        Raises:
            UserError: for an unknown name, a folder that is no pipeline, weights larger than the free memory, or a
                pipeline that needs a prompt and gets none.
        """
        with self.lock:
            if self._make is None or name != self._name:
                self._make = self._model = None  # before the next takes memory
                self._make, self._name = self._loaded(name), name
            if self._model is None or prompt != self._prompt:
                self._model, self._prompt = self._make(prompt), prompt
                self._model.fingerprint()  # calls a pipeline the first time, which nothing else may do meanwhile
            return self._model

    def describe(self, name: str) -> Facts:
        """Return what to ask for a model, which is loaded for that."""
        try:
            model = self.open(name)
        except NoPrompt as error:
            with self.lock:  # which calls the pipeline
                return Facts(takes_prompt=True, guidance=error.model.default_guidance)
        names = list(prompts_of(model)) or [str(label) for label in range(model.classes)]
        if not isinstance(model, gas.pipelines.PipelineModel):
            return Facts(classes=names)
        if _is_shipped(name):
            return Facts(takes_prompt=True, classes=names, guidance=gas.zoo.guidance(name))
        with self.lock:
            return Facts(classes=names, guidance=model.default_guidance)

    def _loaded(self, name: str) -> Callable[[str], Model]:
        """Return a zoo model or a pipeline as a function of the prompt."""
        folder = Path(name).expanduser()
        if _is_shipped(name):
            return partial(_shipped, gas.zoo.load(name).to(self.device))
        if not name or not folder.is_dir():
            known = ", ".join(gas.zoo.names())
            raise UserError(
                f"there is no model or folder {name[-120:]!r}: choose one of {known}, or a diffusers folder"
            )
        _check_memory(folder, self.device)
        pipe = gas.pipelines.open_pipeline(str(folder.resolve()))
        gas.pipelines.loading.place_pipeline(pipe, self.device)
        pipe.set_progress_bar_config(disable=True)
        return partial(_with_prompt, pipe)


def _is_shipped(name: str) -> bool:
    return name in gas.zoo.names() or name.endswith(".safetensors")


def _shipped(model: gas.zoo.ZooModel | gas.pipelines.PipelineModel, prompt: str) -> Model:
    """Return a shipped model, of one prompt where it takes prompts and got one."""
    if not prompt.strip() or not isinstance(model, gas.pipelines.PipelineModel):
        return model
    return replace(model, prompts=(prompt.strip(),))


def _with_prompt(pipe: Any, prompt: str) -> Model:
    """Return a pipeline as a model of one prompt, or of its classes."""
    model = gas.pipelines.from_pipeline(pipe)
    if not model.takes_prompts:
        return model
    if not prompt.strip():
        raise NoPrompt(model)
    return gas.pipelines.from_pipeline(pipe, [prompt.strip()])


def _check_memory(folder: Path, device: str) -> None:
    """Refuse weights larger than the free memory, where the system would end this process."""
    size = sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))
    free = available_bytes(torch.device("cpu" if device == "mps" else device))
    if size > free:
        raise UserError(
            f"the weights in {str(folder)[-120:]} take {size / 1e9:.1f} GB and {free / 1e9:.1f} GB of memory are free: "
            "choose a smaller model, or end other programs"
        )


def sentence(error: BaseException) -> str:
    """Return one sentence about an error for the page."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return "The memory is too small for this model at so many samples: choose fewer, or a smaller model."
    text = error_text(error, 300)
    if not isinstance(error, MISTAKES):
        traceback.print_exception(error)
        text = f"a defect of gas-solver, with its traceback in the terminal ({type(error).__name__}: {text[:200]})"
    if text.partition(" ")[0].isalpha():  # not the name of a file
        text = text[:1].upper() + text[1:]
    return text.rstrip(".") + "."


def check_file(path: str) -> gas.Artefact:
    """Return a solver file that a page may use; everything else is refused by :func:`gas.load`."""
    try:
        return gas.load(path)
    except UserError as error:  # the name that it was chosen by, without the folder of uploads
        raise UserError(str(error).replace(str(path), Path(path).name)) from error


def entries(model: Model, choice: Choice) -> list[Entry]:
    """Return the chosen solvers with their tables for a model; one without a table says why."""
    passes = passes_of(model, choice.guidance)
    nfe = choice.calls // passes if choice.by_passes else choice.calls
    chosen = [_entry(spec.replace("/", " / "), _classical, model, spec, nfe) for spec in choice.classical]
    for path in choice.files:
        chosen.append(_entry(Path(path).name, _learned, model, path, nfe, choice))
    return chosen


def _entry(name: str, make: Any, *args: Any) -> Entry:
    try:
        entry: Entry = make(name, *args)
    except MISTAKES as error:
        problem = sentence(error).replace(str(args[1]), name)  # a file by its name, without its folder
        return Entry(name=name, learned=make is _learned, problem=problem)
    return entry


def _classical(name: str, model: Model, spec: str, nfe: int) -> Entry:
    solver, _, grid = spec.partition("/")
    classical = gas.Classical(solver.strip(), grid.strip() or "log_snr", nfe, model.t_end)
    return Entry(name=name, table=classical.table(model.schedule))


def _learned(name: str, model: Model, path: str, nfe: int, choice: Choice) -> Entry:
    artefact = check_file(path)
    artefact.check(model, choice.guidance)
    artefact = artefact.at(choice.guidance)
    title = display_name(artefact, model)
    if len(choice.files) > 1:
        title += f" ({Path(path).stem})"
    if choice.by_passes and choice.calls in artefact.forwards:
        table = artefact.table(forwards=choice.calls)
        return Entry(name=title, detail=f"{name}, by forward passes", table=table, learned=True)
    around = artefact.neighbours(nfe)
    between = f", between its NFE {around[0]} and {around[1]}" if around else ""
    return Entry(name=title, detail=name + between, table=artefact.table(nfe, interpolate=True), learned=True)


def compare(networks: Networks, choice: Choice) -> Iterator[list[Row]]:
    """Sample the teacher and every chosen solver from the same noise; yield all rows whenever pictures are added.

    A solver that fails has its sentence in its row.

    Raises:
        UserError: for a model that cannot be opened or makes no images, or settings that it does not take.
    """
    model = networks.open(choice.model, choice.prompt)
    chosen = entries(model, choice)
    if not chosen:
        raise UserError("no solver is chosen: choose a classical one or a solver file")
    teacher = studio_teacher(model)
    first = Entry(name="Teacher", detail=teacher.label, table=teacher.table(model.schedule))
    rows = [_row(model, entry, choice) for entry in (first, *chosen)]
    yield list(rows)
    for number, entry in enumerate((first, *chosen)):
        try:
            for row in _sampled(networks, model, choice, entry, rows[number]):
                rows[number] = replace(row, psnr=row_psnr(row, rows[0]) if number else None)
                yield list(rows)
        except (*MISTAKES, RuntimeError) as error:
            if number == 0:
                raise
            rows[number] = replace(rows[number], problem=sentence(error))
            yield list(rows)


def _row(model: Model, entry: Entry, choice: Choice) -> Row:
    calls = passes = 0
    if entry.table is not None:
        calls = entry.table.nfe
        passes = calls * (1 if entry.table.branches else passes_of(model, choice.guidance))
    return Row(
        name=entry.name,
        detail=entry.detail,
        learned=entry.learned,
        problem=entry.problem,
        calls=calls,
        passes=passes,
        count=choice.count,
    )


def _sampled(networks: Networks, model: Model, choice: Choice, entry: Entry, row: Row) -> Iterator[Row]:
    """Yield the row of a solver as its batches are sampled."""
    if entry.table is None:
        return
    images: list[Tensor] = []
    for batch in _batches(model, choice):
        with networks.lock:
            began = time.perf_counter()
            samples = next(sample_batches(model, entry.table, [batch], choice.guidance))
            seconds = row.seconds + time.perf_counter() - began
            images.append(pictures(model, samples))
        images_so_far = torch.cat(images)
        row = replace(row, images=images_so_far, seconds=seconds, done=len(images_so_far) == choice.count)
        yield row


def _batches(model: Model, choice: Choice) -> Iterator[Any]:
    is_prompted = bool(choice.prompt.strip()) and prompts_of(model) == (choice.prompt.strip(),)
    label = None if is_prompted else choice.label
    labelled = label is None or label >= 0
    return seed_batches(
        model, choice.seeds, labelled=labelled, label=label if labelled else None, batch=_BATCH
    )


def pictures(model: Model, samples: Tensor) -> Tensor:
    """Return samples as images ``(B, C, H, W)`` in [-1, 1] on the CPU."""
    images = images_of(model, samples).float().cpu()
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(
            f"the page shows images, and samples of {model.name} have shape {tuple(images.shape[1:])}"
        )
    if not bool(images.isfinite().all()):
        raise UserError("its samples are not finite: the solver diverges on this model")
    return images.clamp(-1, 1)


def row_psnr(row: Row, teacher: Row) -> float | None:
    """Return the mean PSNR of a row's pictures to the teacher's in dB, when all are there."""
    if not row.done or row.images is None or teacher.images is None:
        return None
    return mean_psnr(mse(row.images, teacher.images), 2.0)


# Errors over NFE: curves by name, then NFE.
Curves = dict[str, dict[int, float]]


def measured_errors(path: str) -> Curves:
    """Return the losses that a solver file records, on the validation pairs of its training."""
    artefact, curves = check_file(path), defaultdict[str, dict[int, float]](dict)
    names = {"validation_loss": Path(path).name, "best_classical_loss": "best classical"}
    for entry in artefact.document.solvers:
        for measure, name in names.items():
            if entry.branches is None and entry.measured.get(measure, 0) > 0:
                curves[name][entry.nfe] = entry.measured[measure]
    if not curves:
        raise UserError(f"{Path(path).name} records no losses: measure them")
    return dict(curves)


def studio_teacher(model: Model) -> gas.Classical:
    """Return the teacher of a model."""
    return gas.Classical("unipc-3-bh2", "log_snr", MAX_CALLS, model.t_end)


def teacher_batches(
    networks: Networks, model: Model, seeds: range, guidance: float, batch: int
) -> Iterator[list[gas.Pairs]]:
    """Run the teacher on seeds, letting others have the network between batches; yield the parts so far."""
    parts: list[gas.Pairs] = []
    for start in range(0, len(seeds), batch):
        yield parts
        with networks.lock:
            part = seeds[start : start + batch]
            parts.append(gas.pairs.teach(model, studio_teacher(model), part, guidance=guidance))
    yield parts


def measure_errors(networks: Networks, choice: Choice, nfes: Sequence[int]) -> Iterator[tuple[str, Curves]]:
    """Measure the mean squared error to the teacher over NFE, on the seeds of ``choice``; yield what is done so far.

    Each seed has the class of teacher pairs, whatever the chosen one.

    Solvers without a table at an NFE are left out there.
    """
    model, curves = networks.open(choice.model, choice.prompt), defaultdict[str, dict[int, float]](dict)
    for parts in teacher_batches(networks, model, choice.seeds, choice.guidance, _BATCH):
        yield f"teacher, {sum(map(len, parts))} of {choice.count} samples", {}
    pairs = gas.pairs.dataset.join_pairs(parts)
    for nfe in nfes:
        for entry in entries(model, replace(choice, calls=nfe, by_passes=False)):
            if entry.table is not None:
                with networks.lock:
                    loss = float(gas.evaluate(model, pairs, entry.table, gas.losses.l2).mean())
                if 0 < loss < float("inf"):
                    curves[entry.name][nfe] = loss
                yield f"NFE {nfe} of {nfes[-1]}: {entry.name}", curves
    if not curves:
        raise UserError(
            f"none of the chosen solvers has a table for NFE {nfes[0]} to {nfes[-1]}: choose others"
        )


def snippets(path: str) -> dict[str, str]:
    """Return the lines that use a solver file, by the program that they are for."""
    artefact = check_file(path)
    nfe, scale = gas.evaluation.solver_files.default_nfe(artefact), artefact.document.guidance
    name, call, modules, denoise = Path(path).name, "", "import gas\n\n", "model.bind(None)"
    if scale != 1:
        call, modules = f", guidance_scale={scale:g}", "import gas\nimport torch\n\n"
        denoise = f"model.bind(torch.arange(8), guidance={scale:g})"
    return {
        "diffusers": "import gas\n\n"
        f"pipe.scheduler = gas.GASScheduler.from_config(pipe.scheduler.config, solver={name!r})\n"
        f'image = pipe("a cat", num_inference_steps={nfe}{call}).images[0]\n',
        "ComfyUI": "# A file in custom_nodes; the node GAS solver then loads the solver file.\n"
        "from gas.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS\n",
        "Python": f"{modules}table = gas.load({name!r}).table(nfe={nfe})\n"
        f"images = gas.sample({denoise}, model.noise(range(8)), table)\n",
    }
