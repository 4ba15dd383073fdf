"""The application: its commands, and how errors reach people."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ParamSpec, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperGroup

import gas
from gas import distributed, workspace
from gas.cli.checks import check_device, error_text, parse_duration
from gas.display import plain
from gas.errors import UserError
from gas.machine import set_thread_defaults

P = ParamSpec("P")

# Longer messages are cut on the screen: three lines of a terminal say what to change, a page does not.
LONGEST = 299
# The base of typer's own errors, which is click's, or that of the click that newer versions bring along.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
# Panels of the help, in the order of the work.
PANELS = {
    "Learn": ("demo", "plan", "pairs", "train"),
    "Use": ("studio", "sample", "inspect", "zoo"),
    "Measure": ("evaluate", "compare", "statistics"),
    "Publish": ("export",),
    "Reproduce the paper": ("paper",),
}


class _OneLineErrors(TyperGroup):
    """Reports a malformed command line as commands report other mistakes: in one line, with exit code 2."""

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Parse the arguments and run the command; unless ``standalone_mode`` is off, end the process."""
        run = functools.partial(super().main, *args, standalone_mode=False, **kwargs)  # type: ignore[misc]
        if not standalone_mode:
            return run()
        try:
            code = run()
        except _UsageError as error:
            _print_line(f"error: {_usage(error)}")
            code = 2
        except typer.Abort:  # an interrupt outside of any command: while options were read and modules loaded
            _print_line("interrupted.")
            code = _interrupted_code
        sys.exit(code if isinstance(code, int) else 0)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order of the panels."""
        order = [name for names in PANELS.values() for name in names]
        return sorted(super().list_commands(ctx), key=order.index)


app = typer.Typer(
    name="gas",
    cls=_OneLineErrors,
    help="Learned few-step samplers for pretrained diffusion and flow models.\n\n"
    "Start with [bold]gas demo[/bold]. The main job is [bold]gas pairs[/bold], then "
    "[bold]gas train[/bold], then [bold]gas sample[/bold] and [bold]gas evaluate[/bold].",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
paper = typer.Typer(
    help="Reproduce arXiv 2510.17699: its six setups (presets), its files and its tables.",
    invoke_without_command=True,
    rich_markup_mode="rich",
)
app.add_typer(paper, name="paper", rich_help_panel="Reproduce the paper")
_debug = False
# The exit code of an interrupted command: 128 + signal by convention, or after --max-time EX_TEMPFAIL of sysexits.h.
_interrupted_code = 130
TIME_IS_UP = 75


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    global _debug
    _debug = debug
    if version:
        typer.echo(f"gas-solver {gas.__version__}")
        raise typer.Exit
    _help_without_command(context)


@paper.callback()
def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def command(
    example: str,
    *,
    group: typer.Typer = app,
    shared: bool = False,
    file: str = "",
    folder: str = "",
) -> Callable[[Callable[P, None]], Callable[..., None]]:
    """Register a command: its help ends with an example, its errors are one line and exit code 2.

    A parameter whose type is a dataclass is a group of options, one for each field. Bad input (:class:`gas.UserError`,
    OSError, ArithmeticError, a missing optional package) is reported without a traceback unless ``--debug``; an
    interrupt exits with 130, SIGTERM with 143, a command whose option ``max_time`` is over with 75. Anything else is
    a defect and shows itself. A command with the option ``shared`` shares its folder.

    Args:
        example: a command line.
        group: the application that it belongs to.
        shared: whether the processes of ``torchrun`` share its work; other commands refuse to run there.
        file: name of the parameter with the output file; two commands cannot write one output at a time.
        folder: the same for an output folder. If both are named, an output without a suffix is a folder.
    """

    def register(function: Callable[P, None]) -> Callable[..., None]:
        label = function.__name__
        full_name = f"gas {label}" if group is app else f"gas paper {label}"
        parameters, groups = _expanded(function)

        def guarded(**options: Any) -> None:
            with _one_line_errors():
                if distributed.launched() > 1 and not shared:
                    raise UserError(f"{full_name} runs in one process: leave torchrun out")
                if "device" in options:
                    options["device"] = distributed.local_device(str(options["device"]))
                    check_device(str(options["device"]))
                    # Of the whole process, which is the command's alone.
                    gas.models.allow_tf32(options.get("precision") == "tf32")
                output, is_shared = options.get(file or folder), bool(options.get("shared"))
                limit = options.get("max_time") or ""
                for parameter, kind in groups.items():
                    options[parameter] = kind(**{each.name: options.pop(each.name) for each in fields(kind)})
                is_folder = bool(folder) and not (file and isinstance(output, Path) and output.suffix)
                lock = holding(output, full_name, folder=is_folder, shared=is_shared)
                with _time_limit(limit), distributed.process_group(), lock:
                    function(**options)  # type: ignore[call-arg]

        guarded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        guarded.__name__, guarded.__module__, guarded.__annotations__ = label, function.__module__, {}
        guarded.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nExample: [cyan]{example}[/cyan]"
        panel = next((title for title, names in PANELS.items() if label in names), None)
        group.command(rich_help_panel=panel if group is app else None)(guarded)
        return function

    return register


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Report an interrupt or a user's mistake in one line and end the command; ``--debug`` shows the traceback."""
    try:
        yield
    except (KeyboardInterrupt, UserError, OSError, ArithmeticError, ModuleNotFoundError) as error:
        if _debug:
            raise
        stopped = isinstance(error, KeyboardInterrupt)
        reason = "time is up" if _interrupted_code == TIME_IS_UP else "interrupted"
        _print_line(f"{reason}. {error}".rstrip() if stopped else f"error: {error_text(error)}")
        raise typer.Exit(_interrupted_code if stopped else 2) from None


def _expanded(function: Callable[..., None]) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """Return a command's parameters, groups of options replaced by their fields, and the groups by parameter."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if not is_dataclass(parameter.annotation):
            parameters.append(_parameter(parameter.name, parameter.annotation, parameter.default))
            continue
        group: Any = parameter.annotation
        groups[parameter.name], types = group, get_type_hints(group, include_extras=True)
        for field in fields(group):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            parameters.append(_parameter(field.name, types[field.name], default, group.panel))
    return parameters, groups


def _parameter(name: str, annotation: Any, default: Any, panel: str | None = None) -> inspect.Parameter:
    """Return a parameter of a command; a flag that is off by default has no form that turns it off."""
    if get_origin(annotation) is Annotated:
        value, option = get_args(annotation)
        option = copy.copy(option)
        option.rich_help_panel = panel
        if default is False and option.default is ...:  # unnamed
            option.param_decls = (f"--{name.replace('_', '-')}",)
        annotation = Annotated[value, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def main() -> None:
    """Run the command line."""
    # These libraries' advice on import concerns neither the command nor anything that its user can change.
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    set_thread_defaults()
    warnings.formatwarning = lambda message, *where: f"warning: {plain(' '.join(str(message).split()))}\n"
    try:
        distributed.launched()
    except ValueError as error:
        _print_line(f"error: {error}")
        sys.exit(2)
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's stop is an interrupt like Ctrl-C
    with distributed.silence_other_ranks():
        app(prog_name="gas")


def _interrupt(number: int, frame: object) -> None:
    global _interrupted_code
    _interrupted_code = 143 if number == signal.SIGTERM else TIME_IS_UP
    raise KeyboardInterrupt


@contextlib.contextmanager
def _time_limit(text: str) -> Iterator[None]:
    """Interrupt the work inside after a duration as ``3h`` or ``1h30m``; an empty one is none."""
    if not text:
        yield
        return
    if not hasattr(signal, "SIGALRM"):
        raise UserError("--max-time needs a Unix system: leave it out")
    before = signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, parse_duration(text))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _usage(error: Any) -> str:
    """Return the message of a usage error, with the value where typer leaves it out, and where to read on."""
    message = error.format_message().rstrip(".")
    problems: list[Any] = getattr(error.__cause__, "errors", list)()
    value = f", got {str(problems[0]['input'])!r}" if problems else ""
    command = "gas" if error.ctx is None else error.ctx.command_path
    return f"{message}{value} (see {command} --help)"


def holding(
    output: object, work: str, *, folder: bool = False, shared: bool = False
) -> contextlib.AbstractContextManager[None]:
    """Lock an output, if there is one, in the process that writes it."""
    if not isinstance(output, Path) or not distributed.is_first():
        return contextlib.nullcontext()
    return workspace.hold(output, work, folder=folder, shared=shared)


@contextlib.contextmanager
def resumable(progress: str) -> Iterator[None]:
    """Let an interrupt say where the progress lies and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{progress}; the same command goes on from there.") from None


def _print_line(text: str) -> None:
    """Write one line on standard error, cut where it is longer than people read; ``--debug`` shows all of it."""
    line = plain(" ".join(text.split()))
    if len(line) > LONGEST and not _debug:
        rest = " ... (gas --debug shows all)"
        line = line[: LONGEST - len(rest)] + rest
    sys.stderr.write(line + "\n")
