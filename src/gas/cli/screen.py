"""What people see in the terminal: progress bars on standard error, tables on standard output.

Text that comes here may come from a file: nothing in it is markup or reaches the terminal as a control character.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from gas.display import plain

__all__ = ["Bar", "bar", "note", "print_json", "print_table", "tracked"]

_console = Console(stderr=True, highlight=False)


class _Rate(ProgressColumn):
    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True, min_width=8))

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="dim")


class Bar:
    """A running progress bar of ``total`` steps."""

    def __init__(self, progress: Progress, task: Any, total: int) -> None:
        self._progress, self._task, self.total = progress, task, total

    def at(self, done: float, detail: str = "") -> None:
        """Show how much is done, and a short word on it."""
        self._progress.update(self._task, completed=done, detail=plain(detail))


@contextmanager
def bar(name: str, total: int, *, done: int = 0) -> Iterator[Bar]:
    """Show a bar with count, rate and time left; ``done`` was there before and does not count as speed."""
    columns = (
        TextColumn("{task.description:<18}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[detail]}", style="dim", markup=False),
    )
    with Progress(*columns, console=_console) as progress:
        yield Bar(progress, progress.add_task(plain(name), total=total, completed=done, detail=""), total)


def tracked(name: str, items: Iterable[Any], total: int) -> Iterator[Any]:
    """Iterate with a bar."""
    with bar(name, total) as running:
        for done, item in enumerate(items, start=1):
            yield item
            running.at(done)


def note(text: str, *, label: str = "", style: str = "yellow") -> None:
    """Write one line on standard error, its ``label`` first and in a style; nothing in either is markup."""
    _console.print(Text.assemble((plain(label), style), plain(text)), soft_wrap=True)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    strong: str = "",
    caption: str | None = None,
) -> None:
    """Print a table on standard output; rows whose first cell is ``strong`` stand out."""
    table = Table(
        title=Text(plain(title)),
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=SIMPLE_HEAD,
        caption=caption,
        caption_justify="left",
    )
    for i, column in enumerate(columns):
        table.add_column(
            Text(plain(column)), justify="left" if i == 0 else "right", overflow="fold", no_wrap=i == 0
        )
    for row in rows:
        table.add_row(
            *(Text(plain(cell)) for cell in row), style="bold green" if strong and row[0] == strong else None
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe or a file has no edge to cut numbers off at
    console.print(table)


def print_json(value: Any) -> None:
    """Print JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
