"""The application: its commands, and how errors reach people."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import typer
from typer.core import TyperGroup

from gas import distributed, workspace
from gas.cli.checks import check_device, error_text
from gas.display import plain
from gas.errors import UserError
from gas.machine import set_thread_defaults

__all__ = ["app", "check_options", "command", "holding", "main"]

P = ParamSpec("P")

# Longer messages are cut on the screen: three lines of a terminal say what to change, a page does not.
LONGEST = 299
# The base of typer's own errors, which is click's, or that of the click that newer versions bring along.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _OneLineErrors(TyperGroup):
    """Reports what is wrong with the form of a command line as the commands report the rest: one line, exit code 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse the arguments and run the command; unless ``standalone_mode`` is off, end the process."""
        run = functools.partial(super().main, args, prog_name, complete_var, False, windows_expand_args)
        if not standalone_mode:
            return run(**extra)
        try:
            code = run(**extra)
        except _UsageError as error:
            _say(f"error: {_usage(error)}")
            code = 2
        except typer.Abort:
            code = 130
        # Outside of any command: while options were read and modules loaded.
        if code == 130 and not _interrupted:
            _say("interrupted.")
        sys.exit(code if isinstance(code, int) else 0)


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
_debug = False
_interrupted = False  # and said so


def _show_version(wanted: bool) -> None:
    if wanted:
        import gas

        sys.stdout.write(f"gas-solver {gas.__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    global _debug
    _debug = debug
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def command(
    example: str, name: str | None = None, *, shared: bool = False, file: str = "", folder: str = ""
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a command: its help ends with an example, its errors are one line and exit code 2.

    A ``shared`` one does its work in all the processes that ``torchrun`` started; another is refused there.
    ``file`` or ``folder`` names the parameter of the output, which a second command is kept from meanwhile; one
    that both name is a folder where it has no suffix.

    Bad input (:class:`gas.UserError`, OSError, ArithmeticError, a missing optional package) is reported without a
    traceback unless ``--debug``; an interrupt exits with 130. Anything else is a defect and shows itself.
    """

    def register(function: Callable[P, None]) -> Callable[P, None]:
        label = name or function.__name__

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                if distributed.launched() > 1 and not shared:
                    raise UserError(f"gas {label} runs in one process: leave torchrun out")
                if "device" in kwargs:
                    kwargs["device"] = distributed.local_device(str(kwargs["device"]))
                    check_device(str(kwargs["device"]))
                if "precision" in kwargs:
                    _set_tf32(kwargs["precision"] == "tf32")
                output = kwargs.get(file or folder)
                is_folder = bool(folder) and not (file and isinstance(output, Path) and output.suffix)
                with distributed.process_group(), holding(output, f"gas {label}", folder=is_folder):
                    function(*args, **kwargs)
            except KeyboardInterrupt as stop:
                if _debug:
                    raise
                global _interrupted
                _interrupted = True
                _say(f"interrupted. {stop}".rstrip())
                raise typer.Exit(130) from None
            except (UserError, OSError, ArithmeticError, ModuleNotFoundError) as error:
                if _debug:
                    raise
                _refuse(error)

        guarded.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nExample: [cyan]{example}[/cyan]"
        return app.command(name=name)(guarded)

    return register


def main() -> None:
    """Run the command line."""
    # What these libraries advise on import is about neither the command nor anything its user can change.
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    set_thread_defaults()
    warnings.formatwarning = lambda message, *where: f"warning: {plain(' '.join(str(message).split()))}\n"
    try:
        distributed.launched()
    except ValueError as error:
        _say(f"error: {error}")
        sys.exit(2)
    with distributed.silence_other_ranks():
        app(prog_name="gas")


def _set_tf32(truncated: bool) -> None:
    """What float32 means on CUDA is set for the whole process, which is this command's own."""
    from gas.models.runtime import allow_tf32

    allow_tf32(truncated)


def check_options(name: str, words: list[str], *, values: bool = False) -> None:
    """Refuse words that are no options of a command, and where ``values`` are looked at, options with bad ones.

    Raises:
        ValueError: says what is wrong with the words.
    """
    commands: Any = typer.main.get_command(app)
    command: Any = commands.commands[name]
    try:
        if values:
            command.make_context(f"gas {name}", list(words)).close()
        else:
            command.make_parser(typer.Context(command, info_name=name)).parse_args(list(words))
    except _UsageError as error:
        raise UserError(f"gas {name}: {error.format_message()}") from None  # type: ignore[attr-defined]


def _usage(error: Any) -> str:
    """Return what an error of usage says, with the value that came where typer leaves it out, and where to read on."""
    message = error.format_message().rstrip(".")
    problems: list[Any] = getattr(error.__cause__, "errors", list)()
    value = f", got {str(problems[0]['input'])!r}" if problems else ""
    command = "gas" if error.ctx is None else error.ctx.command_path
    return f"{message}{value} (see {command} --help)"


def _refuse(error: Exception) -> NoReturn:
    """Report a mistake in one line and end with exit code 2."""
    _say(f"error: {error_text(error)}")
    raise typer.Exit(2) from None


def holding(output: object, work: str, *, folder: bool = False) -> contextlib.AbstractContextManager[None]:
    """Be alone at work on an output, if there is one, in the process that writes it."""
    if not isinstance(output, Path) or not distributed.is_first():
        return contextlib.nullcontext()
    return workspace.hold(output, work, folder=folder)


def _say(text: str) -> None:
    """Write one line on standard error, cut where it is longer than people read; ``--debug`` shows all of it."""
    line = plain(" ".join(text.split()))
    if len(line) > LONGEST and not _debug:
        rest = " ... (gas --debug shows all)"
        line = line[: LONGEST - len(rest)] + rest
    sys.stderr.write(line + "\n")
