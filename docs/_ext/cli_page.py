"""``{gas-cli}``: the command line, read from the application itself, so that it says what ``--help`` says."""

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def commands(group: object, path: tuple[str, ...] = ("gas",)) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield every command with its words, groups before what is in them."""
    for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined]
        if command.hidden:
            continue
        words = (*path, name)
        yield words, command
        if hasattr(command, "commands"):
            yield from commands(command, words)


def plain(text: str | None) -> str:
    """Return help text without Rich's markup, on one line."""
    text = re.sub(r"\[/?(?:bold|italic|dim|cyan|green|yellow)[^]]*\]", "", text or "")
    return " ".join(text.replace(r"\[", "[").split())


def _default(parameter: object) -> str:
    value = getattr(parameter, "default", None)
    if value is None or value is False or value == () or callable(value) or parameter.required:  # type: ignore[attr-defined]
        return ""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def section(words: tuple[str, ...], command: object) -> list[str]:
    """Return the MyST text of one command."""
    help_text, _, _ = (command.help or "").partition("\f")  # type: ignore[attr-defined]
    lines = ["#" * len(words) + " " + " ".join(words), ""]
    for paragraph in map(plain, help_text.split("\n\n")):
        label, _, example = paragraph.partition(": ")
        lines += ["```sh", example, "```", ""] if label == "Example" else [paragraph, ""]
    parameters = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]  # type: ignore[attr-defined]
    if not parameters:
        return lines
    lines += [
        "```{list-table}",
        ":header-rows: 1",
        ":widths: 26 60 14",
        "",
        "* - option",
        "  - meaning",
        "  - default",
    ]
    for parameter in parameters:
        names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            names = f"`{parameter.metavar or parameter.name.upper()}`"
        required = "required" if parameter.required else ""
        default = f"`{_default(parameter)}`" if _default(parameter) else required
        lines += [f"* - {names}", f"  - {plain(getattr(parameter, 'help', ''))}", f"  - {default}"]
    return [*lines, "```", ""]


class CommandLine(SphinxDirective):
    """Every command with its options, as sections of the page."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        from typer.main import get_command

        from gas.cli import app

        text = [line for words, command in commands(get_command(app)) for line in section(words, command)]
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def setup(app: Sphinx) -> dict:
    """Add the directive."""
    app.add_directive("gas-cli", CommandLine)
    return {"parallel_read_safe": True}
