"""The terminal: progress bars and notes on standard error, tables and JSON on standard output.

Text may come from a file: none of it is markup or reaches the terminal as a control character.
"""

from __future__ import annotations

import json
import re
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

# A number in a table: with thousands separators, an exponent, or as a factor or a percentage.
_NUMBER = re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?[x%]?( |$)")
# Characters between two columns of a table.
_BETWEEN = 2
# Width of a screen with room for a long bar, in characters.
_WIDE = 110

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
        """Show the number of steps done and a short detail."""
        self._progress.update(self._task, completed=done, detail=plain(detail))


@contextmanager
def bar(name: str, total: int, *, done: int = 0) -> Iterator[Bar]:
    """Show a bar with count, rate and time left; ``done`` steps of an earlier run do not count as speed."""
    # On a narrow screen the drawing gives way first, then the detail, never the numbers.
    columns = (
        TextColumn("{task.description:<18}", markup=False, table_column=Column(no_wrap=True, min_width=18)),
        BarColumn(bar_width=28 if _console.width >= _WIDE else 8),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=2 * len(str(total)) + 1)),
        _Rate(),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
        TextColumn(
            "{task.fields[detail]}",
            style="dim",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis"),
        ),
    )
    with Progress(*columns, console=_console) as progress:
        yield Bar(progress, progress.add_task(plain(name), total=total, completed=done, detail=""), total)


def tracked(name: str, items: Iterable[Any], total: int) -> Iterator[Any]:
    """Iterate over ``total`` items with a bar."""
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
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe or a file has no edge to cut numbers off at
    table = Table(
        header_style="bold",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        caption=caption,
        caption_justify="left",
    )
    head, cells = [plain(column) for column in columns], [[plain(cell) for cell in row] for row in rows]
    below = [[row[i] for row in cells] for i in range(len(head))]
    widths = _widths(head, below, console.width)
    for i, column in enumerate(head):
        table.add_column(
            Text(column),
            justify="right" if i and _are_numbers(below[i]) else "left",
            overflow="fold",
            width=widths[i],
        )
    for row in cells:
        table.add_row(*map(Text, row), style="bold green" if strong and row[0] == plain(strong) else None)
    console.print(Text(plain(title), "bold"))
    console.print(table)


def _are_numbers(texts: Sequence[str]) -> bool:
    """Return whether most texts of a column begin with a number."""
    numeric = [bool(_NUMBER.match(text)) for text in texts if text]
    return 2 * sum(numeric) >= len(numeric)


def _widths(head: Sequence[str], below: Sequence[Sequence[str]], room: int) -> list[int] | list[None]:
    """Return the widths of the columns: those of their texts if they fit, else of numbers, else of single words.

    If not even words fit, the widths are ``None`` and texts are cut at the end of the column.
    """
    room -= _BETWEEN * len(head)
    full = [max(map(len, (column, *texts))) for column, texts in zip(head, below, strict=True)]
    for whole in (_are_numbers, lambda texts: False):
        least = []
        for column, texts in zip(head, below, strict=True):
            words = texts if whole(texts) else [word for text in texts for word in text.split()]
            least.append(max(map(len, (*column.split(), *words, ""))))
        if (left := room - sum(least)) >= 0:
            for i, width in enumerate(full):
                more = min(left, width - least[i])
                least[i], left = least[i] + more, left - more
            return least
    return [None] * len(head)


def print_json(value: Any) -> None:
    """Print JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
