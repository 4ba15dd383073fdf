"""The layout of the page and its events, by gradio; what they do is in :mod:`gas.studio.actions`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gas
from gas.arguments import MAX_SEED, integer, number
from gas.errors import UserError, requires
from gas.plotting.style import ACCENT
from gas.studio import actions, drawing
from gas.studio.actions import MAX_CALLS, MAX_SAMPLES, Choice, Networks
from gas.studio.learning import MAX_PAIRS, MAX_STEPS, PAIRS, Training, TrainingChoice
from gas.training.plan import QUICK

# Bytes of an uploaded file: a solver file for NFE 1 to 20 has 80 kB.
_MAX_UPLOAD = 2 << 20
# Samples that an error over NFE is measured on: its interval is then about 15 % of it for the shipped models.
_MEASURED = 32
_DEFAULT = ["dpmpp-3m/log_snr", "unipc-3-bh2/log_snr", "ipndm-3/time_uniform"]
_EACH, _NONE = "by seed", "none"
_PROMPT_HINT = "What to draw, whatever the class; empty: the names that the model knows"
_BY_CALLS, _BY_PASSES = "NFE", "forward passes"
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
# One accent, as in the plots; gradio's own subdued grey is too pale to read.
_COLORS = {
    "button_primary_background_fill": ACCENT,
    "button_primary_background_fill_dark": ACCENT,
    "button_primary_background_fill_hover": "#b93c0a",
    "slider_color": ACCENT,
    "body_text_color_subdued": "#5b6b80",
    "body_text_color_subdued_dark": "#9fb0c3",
}
_TITLE = (
    '<div class="gas-title"><h1><b>gas</b> studio</h1><p>Learned few-step samplers beside classical ones, '
    "from the same noise, on this machine.</p></div>"
)
_START = (
    "Nothing is sampled yet",
    "Press Compare: every solver starts from the same noise, and the teacher takes 20 calls.",
)
_UNMEASURED = (
    "No errors yet",
    "Measure the chosen solvers, or show what a solver file recorded when it was learned.",
)
_UNTRAINED = (
    "Nothing is learned yet",
    "Learn makes pairs of noise and the teacher's samples, ranks all classical solvers, and trains the best start. "
    "Stop keeps the best solver so far, as does closing this tab.",
)


def serve(host: str, port: int, folder: Path, device: str = "cpu") -> contextlib.AbstractContextManager[str]:
    """Serve the page while the context is open, which gives its address.

    Nothing is fetched from elsewhere or reported anywhere. Uploads go to a temporary folder that is deleted at the end.

    Args:
        host: address to listen at.
        port: port to listen at.
        folder: for the solver files of trainings.
        device: of the networks.
    """
    # Read when gradio and the hub's client are imported.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return _serving(host, port, folder, device)


@contextlib.contextmanager
def _serving(host: str, port: int, folder: Path, device: str) -> Iterator[str]:
    gradio = _gradio()
    with tempfile.TemporaryDirectory(prefix="gas-studio-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = build(Networks(device), folder)
        theme = gradio.themes.Default(
            primary_hue="orange",
            neutral_hue="slate",
            spacing_size="sm",
            font=_FONTS,
            font_mono=["ui-monospace", "monospace"],
        ).set(**_COLORS)
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            max_file_size=_MAX_UPLOAD,
            allowed_paths=[str(p.parent) for p in _shipped()],
            theme=theme,
            css_paths=Path(__file__).with_name("page.css"),
        )
        try:
            yield address
        finally:
            page.close(verbose=False)


def _gradio() -> Any:
    with requires("studio", "gas studio needs gradio"):
        import gradio
    return gradio


def _shipped() -> list[Path]:
    return [path for path in map(gas.zoo.solver_path, gas.zoo.names()) if path is not None]


@dataclass(frozen=True)
class _Controls:
    """The components that say what to sample, or their values."""

    model: Any
    prompt: Any
    label: Any
    guidance: Any
    first_seed: Any
    count: Any
    classical: Any
    learned: Any
    calls: Any
    unit: Any

    def all(self) -> list[Any]:
        return [getattr(self, name) for name in self.__dataclass_fields__]


def _choice(*values: Any) -> Choice:
    """Return the values of the controls as a choice; wrong ones are refused in one sentence."""
    given, labels = _Controls(*values), {_EACH: None, _NONE: -1}
    label = given.label
    return Choice(
        model=str(given.model or "").strip(),
        prompt=str(given.prompt or ""),
        label=labels[label]
        if label in labels
        else integer("class", int(str(label).partition(" ")[0]), 0, MAX_SEED),
        guidance=number("guidance", given.guidance, "[-1000, 1000]"),
        first_seed=integer("first seed", given.first_seed, 0, MAX_SEED - MAX_SAMPLES),
        count=integer("samples", given.count, 1, MAX_SAMPLES),
        classical=list(given.classical or ()),
        files=list(given.learned or ()),
        calls=integer("calls", given.calls, 1, MAX_CALLS),
        by_passes=given.unit == _BY_PASSES,
    )


def build(networks: Networks, folder: Path) -> Any:
    """Return the page as gradio's ``Blocks``; solver files of trainings go to ``folder``."""
    gr = _gradio()
    with gr.Blocks(title="gas studio", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(_TITLE)
        files, running = gr.State([]), gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                controls, upload, run = _controls(gr)
            with gr.Column(scale=3, min_width=340):
                message = gr.HTML(elem_id="message")
                with gr.Tabs() as tabs:
                    with gr.Tab("Compare", id="compare"):
                        results = gr.HTML(drawing.empty(*_START), elem_id="results")
                    with gr.Tab("Error over NFE", id="errors"):
                        _errors_tab(gr, networks, controls, message)
                    with gr.Tab("Times and weights", id="tables") as tables:
                        _tables_tab(gr, networks, controls, message, tables)
                    with gr.Tab("Learn", id="learn"):
                        _learn_tab(gr, networks, folder, controls, files, running, message)
                    with gr.Tab("Use", id="use") as use:
                        _use_tab(gr, controls, message, use)
        run.click(lambda: gr.Tabs(selected="compare"), outputs=tabs, show_progress="hidden")
        gr.on(
            [run.click, controls.prompt.submit],
            _handler(lambda *values: _compared(networks, values)),
            controls.all(),
            [message, results],
            show_progress="hidden",
            concurrency_limit=4,
        )
        _choices(gr, page, networks, controls, upload, files, message)
    return page


def _controls(gr: Any) -> tuple[_Controls, Any, Any]:
    specs = [f"{solver}/{grid}" for solver in gas.classical.SOLVERS for grid in gas.grids.GRIDS]
    model = gr.Dropdown(
        gas.zoo.names(),
        value="mnist",
        allow_custom_value=True,
        label="Model",
        info="Shipped, or the path of a diffusers folder",
    )
    prompt = gr.Textbox(label="Prompt", visible=False, lines=2)
    with gr.Row():
        label = gr.Dropdown([_EACH, _NONE], value=_EACH, label="Class", min_width=140)
        guidance = gr.Number(1.0, label="Guidance scale", step=0.5, min_width=120, elem_id="guidance")
    with gr.Row():
        first_seed = gr.Number(50_000, label="First seed", precision=0, min_width=120)
        count = gr.Number(8, label="Samples", precision=0, min_width=100)
    classical = gr.Dropdown(
        specs, value=_DEFAULT, multiselect=True, allow_custom_value=True, label="Classical solvers"
    )
    learned = gr.CheckboxGroup(
        [], label="Learned solvers", info="A solver file is for one model and guidance"
    )
    upload = gr.UploadButton("Open a solver file", file_types=[".json"], size="sm", elem_id="upload")
    calls = gr.Slider(1, MAX_CALLS, 4, step=1, label="Calls a sample", elem_id="calls")
    unit = gr.Radio([_BY_CALLS, _BY_PASSES], value=_BY_CALLS, label="Equal")
    run = gr.Button("Compare", variant="primary", elem_id="run")
    controls = _Controls(model, prompt, label, guidance, first_seed, count, classical, learned, calls, unit)
    return controls, upload, run


def _handler(work: Callable[..., Any], outputs: int = 1) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Return an event's function, whose first output is the message and whose others are the results of ``work``.

    ``work`` returns its outputs, or yields them again and again. An error becomes the message, and leaves the others
    as they are.
    """

    def handle(*values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            results = work(*values)
            for result in results if isinstance(results, Iterator) else [results]:
                yield "", *(result if outputs > 1 else (result,))
        except Exception as error:
            yield drawing.notice(actions.sentence(error)), *[_gradio().skip()] * outputs

    return handle


def _compared(networks: Networks, values: Sequence[Any]) -> Iterator[str]:
    choice = _choice(*values)
    for rows in actions.compare(networks, choice):
        yield drawing.pictures(rows, choice)


# ---------------------------------------------------------------- choices


def _choices(
    gr: Any, page: Any, networks: Networks, controls: _Controls, upload: Any, files: Any, message: Any
) -> None:
    """Connect the model and the solver files that are chosen to what is asked for them."""
    outputs = [message, controls.prompt, controls.label, controls.guidance, controls.learned]

    gr.on(
        [page.load, controls.model.change],
        _handler(lambda name, paths: _described(gr, networks, str(name or "").strip(), paths), 4),
        [controls.model, files],
        outputs,
        show_progress="hidden",
    )

    opened = _handler(lambda *values: _opened(gr, *values), 4)

    outputs = [message, files, controls.learned, controls.model, controls.guidance]
    upload.upload(opened, [upload, files, controls.learned, controls.model], outputs, show_progress="hidden")


def _described(gr: Any, networks: Networks, name: str, paths: list[str]) -> tuple[Any, ...]:
    """Return what the page asks for a model: a prompt or a class, guidance, and the solver files that are for it."""
    facts = networks.describe(name)
    labels = [f"{n} {text}" if text != str(n) else text for n, text in enumerate(facts.classes[:1000])]
    fitting = [path for path in paths if _model_of(path) == name]
    scale = actions.check_file(fitting[-1]).document.guidance if fitting else facts.guidance
    return (
        gr.update(visible=facts.takes_prompt, placeholder=_PROMPT_HINT if labels else "What to draw"),
        gr.update(choices=[_EACH, _NONE, *labels], value=_EACH, visible=bool(labels)),
        scale,
        _offered(gr, name, paths, [str(gas.zoo.solver_path(name)), *fitting]),
    )


def _named(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Return file names for people, with their paths."""
    shipped = set(map(str, _shipped()))
    return [(f"{Path(path).name} (shipped)" if path in shipped else Path(path).name, path) for path in paths]


def _model_of(path: str) -> str:
    return str((actions.check_file(path).document.model or {}).get("name", ""))


def _opened(gr: Any, path: str, paths: list[str], learned: list[str], name: str) -> tuple[Any, ...]:
    """Add an uploaded solver file, and choose its model and guidance scale where it names a shipped model."""
    document = actions.check_file(path).document
    model = _model_of(path)
    chosen = model if model in gas.zoo.names() else name
    offered = _offered(gr, chosen, [*paths, path], [*learned, path])
    return [*paths, path], offered, gr.skip() if chosen == name else chosen, document.guidance


# ---------------------------------------------------------------- tabs


def _errors_tab(gr: Any, networks: Networks, controls: _Controls, message: Any) -> None:
    with gr.Row():
        first = gr.Slider(1, MAX_CALLS, 3, step=1, label="From NFE", min_width=140)
        last = gr.Slider(1, MAX_CALLS, 6, step=1, label="To NFE", min_width=140)
    with gr.Row():
        measure = gr.Button("Measure the chosen solvers", variant="primary", elem_id="measure")
        stored = gr.Button("Show the files' own losses", elem_id="stored")
        stop = gr.Button("Stop", variant="stop")
    status, plot = gr.Markdown(elem_id="measuring"), gr.HTML(drawing.empty(*_UNMEASURED), elem_id="errors")

    def measured(first: int, last: int, *values: Any) -> Iterator[tuple[str, str]]:
        return _measured(networks, first, last, _choice(*values))

    outputs = [message, status, plot]
    event = measure.click(
        _handler(measured, 2), [first, last, *controls.all()], outputs, show_progress="hidden"
    )
    stored.click(
        _handler(lambda learned: ("", _recorded(learned)), 2),
        controls.learned,
        outputs,
        show_progress="hidden",
    )
    stop.click(lambda: "Stopped.", outputs=status, cancels=event, show_progress="hidden")


def _measured(networks: Networks, first: int, last: int, choice: Choice) -> Iterator[tuple[str, str]]:
    if first > last:
        raise UserError(f"from NFE {first} to {last} there is none: move the sliders")
    choice, nfes = replace(choice, count=_MEASURED), range(first, last + 1)
    highlight = next((entry.name for entry in _entries(networks, choice) if entry.learned), None)
    shown, html = -1, drawing.empty("Measuring", "The plot appears with the first NFE.")
    for status, curves in actions.measure_errors(networks, choice, nfes):
        if (done := sum(map(len, curves.values()))) and max(map(max, curves.values())) != shown and done > 1:
            shown, html = max(map(max, curves.values())), _error_picture(curves, highlight)
        yield f"Measuring: {status}", html
    yield "", _error_picture(curves, highlight)


def _error_picture(curves: actions.Curves, highlight: str | None) -> str:
    note = f"Mean squared error to the teacher's samples of {_MEASURED} seeds."
    return drawing.error_picture(curves, note, highlight if highlight in curves else None)


def _recorded(learned: Sequence[str]) -> str:
    if not learned:
        raise UserError("no solver file is chosen: choose one at Learned solvers")
    curves: actions.Curves = {}
    for path in learned:
        curves |= actions.measured_errors(path)
    note = "Losses on the validation pairs of each training, as the files record them."
    return drawing.error_picture(curves, note, Path(learned[-1]).name)


def _entries(networks: Networks, choice: Choice) -> list[actions.Entry]:
    return actions.entries(networks.open(choice.model, choice.prompt), choice)


def _tables_tab(gr: Any, networks: Networks, controls: _Controls, message: Any, tab: Any) -> None:
    draw = gr.Button("Draw the chosen solvers", size="sm")
    times, weights = gr.HTML(elem_id="times"), gr.HTML(elem_id="weights")

    drawn = _handler(lambda *values: _drawn(networks, _choice(*values)), 2)

    triggers = [tab.select, draw.click]
    gr.on(triggers, drawn, controls.all(), [message, times, weights], show_progress="minimal")


def _drawn(networks: Networks, choice: Choice) -> tuple[str, str]:
    entries = sorted(_entries(networks, choice), key=lambda entry: not entry.learned)
    if problems := [f"{entry.name}: {entry.problem}" for entry in entries if entry.table is None]:
        entries = [entry for entry in entries if entry.table is not None]
    if not entries:
        raise UserError(" ".join(problems) or "no solver is chosen: choose a classical one or a solver file")
    model = networks.open(choice.model, choice.prompt)
    return drawing.times_picture(model, entries), drawing.weights(entries)


def _learn_tab(
    gr: Any, networks: Networks, folder: Path, controls: _Controls, files: Any, running: Any, message: Any
) -> None:
    with gr.Row():
        nfe = gr.Slider(1, MAX_CALLS, 4, step=1, label="NFE", min_width=140)
        pairs = gr.Slider(32, MAX_PAIRS, PAIRS, step=32, label="Teacher pairs", min_width=140)
        steps = gr.Slider(1, MAX_STEPS, QUICK.iterations, step=1, label="Gauss-Newton steps", min_width=140)
    with gr.Row():
        learn = gr.Button("Learn", variant="primary", elem_id="learn")
        stop = gr.Button("Stop and keep", variant="stop", elem_id="stop")
    course = gr.HTML(drawing.empty(*_UNTRAINED), elem_id="course")

    saved = gr.State("")
    learned = _handler(lambda *values: _learned(networks, folder, *values), 3)

    inputs = [controls.model, controls.prompt, controls.guidance, nfe, pairs, steps]
    outputs = [message, course, running, saved]
    event = learn.click(learned, inputs, outputs, show_progress="hidden", concurrency_limit=4)
    event.then(
        lambda *values: _joined(gr, *values),
        [saved, files, controls.learned, controls.model],
        [files, controls.learned],
        show_progress="hidden",
    )
    stop.click(lambda training: training and training.stop(), running, show_progress="hidden")


def _learned(
    networks: Networks,
    folder: Path,
    model: str,
    prompt: str,
    guidance: float,
    nfe: int,
    pairs: int,
    steps: int,
) -> Iterator[tuple[Any, ...]]:
    """Yield the course of a training, the training itself, and at the end the path of its file."""
    choice = TrainingChoice(
        model=str(model or "").strip(),
        prompt=str(prompt or ""),
        guidance=number("guidance", guidance, "[-1000, 1000]"),
        nfe=integer("NFE", nfe, 1, MAX_CALLS),
        pairs=integer("teacher pairs", pairs, 1, MAX_PAIRS),
        iterations=integer("Gauss-Newton steps", steps, 1, MAX_STEPS),
    )
    training = Training(networks, choice, folder)
    with contextlib.closing(training.watch()) as snapshots:
        for snapshot in snapshots:
            yield drawing.training(snapshot), training, ""
    if snapshot.problem:
        raise UserError(snapshot.problem)
    if snapshot.file is None:
        raise UserError("stopped before any solver was measured, so there is nothing to keep: learn longer")
    text = (
        f"Kept in {snapshot.file}: it is among the learned solvers now, and the tab Use has it for download."
    )
    # The page serves a copy: of the folder, which may hold anything, it serves nothing.
    served = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR"))) / snapshot.file.name
    shutil.copyfile(snapshot.file, served)
    yield drawing.notice(text, "hint") + drawing.training(snapshot), None, str(served)


def _joined(gr: Any, saved: str, paths: list[str], chosen: list[str], model: str) -> tuple[Any, ...]:
    """Add the file of a training to the solvers to compare."""
    if not saved:
        return gr.skip(), gr.skip()
    return [*paths, saved], _offered(gr, model, [*paths, saved], [*chosen, saved])


def _offered(gr: Any, model: str, paths: Sequence[str], chosen: Sequence[str]) -> Any:
    """Return the learned solvers to choose from: the one that ships with a model, and those of this tab."""
    shipped = gas.zoo.solver_path(model)
    known = [*([] if shipped is None else [str(shipped)]), *paths]
    return gr.update(choices=_named(known), value=[path for path in chosen if path in known])


def _use_tab(gr: Any, controls: _Controls, message: Any, tab: Any) -> None:
    file = gr.Dropdown([], label="Solver file", elem_id="use-file")
    download = gr.DownloadButton("Download", variant="primary", elem_id="download")
    codes = [
        gr.Code(label=f"In {name}", language="python", interactive=False, lines=3)
        for name in ("diffusers", "ComfyUI", "Python")
    ]

    def offered(chosen: list[str]) -> Any:
        return gr.update(choices=_named(chosen), value=chosen[-1] if chosen else None)

    used = _handler(_used, 1 + len(codes))

    tab.select(offered, controls.learned, file, show_progress="hidden").then(
        used, file, [message, download, *codes], show_progress="hidden"
    )
    file.input(used, file, [message, download, *codes], show_progress="hidden")


def _used(path: str | None) -> tuple[Any, ...]:
    if path is None:
        raise UserError("no solver file is chosen: choose one at Learned solvers, or learn one")
    return path, *actions.snippets(path).values()
