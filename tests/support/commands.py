"""The ``gas`` command, called as its users do, in this process or in a fork of it."""

import os
import re
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from typer.testing import CliRunner

from gas.cli import app, main
from support.forks import fork


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


def numbers_in(cell: str) -> list[float]:
    """The numbers of a cell such as ``1.50 ± 0.10``, ``1.5 [1.0, 2.0]`` or ``(3.20 ± 0.10)e-07``."""
    mantissas, _, exponent = cell.rpartition(")e") if ")e" in cell else (cell, "", "0")
    return [float(x) * 10.0 ** int(exponent) for x in re.findall(r"-?\d[\d.]*(?:e[-+]\d+)?", mantissas)]


class ForkedCommand:
    """A command in a process of its own.

    Args:
        *words: of the command line.
        before: called in the process first.
    """

    def __init__(self, *words: object, before: Callable[[], object] = lambda: None) -> None:
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed when the process has ended)
        self._process = fork(self._run, list(map(str, words)), before)

    def _run(self, words: list[str], before: Callable[[], object]) -> None:
        sys.argv = ["gas", *words]
        before()
        with open(os.devnull, "w") as sys.stdout, open(self._stderr.fileno(), "w") as sys.stderr:
            main()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def ended(self, timeout: float) -> tuple[int, str]:
        """Wait for the end; return the exit code and what is on stderr."""
        self._process.join(timeout)
        assert not self._process.is_alive()
        with self._stderr as stderr:
            stderr.seek(0)
            return self._process.exitcode, stderr.read()
