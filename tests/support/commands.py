"""The ``gas`` command, called as its users do, in this process."""

from typing import Any

from typer.testing import CliRunner

from gas.cli import app


def run(*words: object, code: int = 0) -> Any:
    """The result of a command line that ends with this code."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def refused(*words: object) -> str:
    """The one line that a bad call is answered with."""
    result = run(*words, code=2)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.output, result.output
    return str(lines[0])
