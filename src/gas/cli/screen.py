"""The terminal: progress bars and notes on standard error, tables and JSON on standard output.

Text may come from a file: none of it is markup or reaches the terminal as a control character.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

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
    """A running progress bar."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def at(self, done: float, detail: str = "") -> None:
        """Show the number of steps done and a short detail."""
        self._progress.update(self._task, completed=done, detail=plain(detail))


@contextmanager
def bar(name: str, total: int) -> Iterator[Bar]:
    """Show a bar with count, rate and time left."""
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
        yield Bar(progress, progress.add_task(plain(name), total=total, detail=""))


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
    title: str, rows: Sequence[Mapping[str, object]], *, strong: str = "", caption: str | None = None
) -> None:
    """Print rows of cells by column on standard output, without columns that are empty in all.

    Rows whose first cell is ``strong`` stand out.
    """
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
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: ["" if row.get(name) is None else plain(row[name]) for row in rows] for name in names}
    columns = {plain(name): texts for name, texts in columns.items() if any(texts)}
    for (name, texts), width in zip(columns.items(), _widths(columns, console.width), strict=True):
        justify: Literal["left", "right"] = "right" if table.columns and _are_numbers(texts) else "left"
        table.add_column(Text(name), justify=justify, overflow="fold", width=width)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row), style="bold green" if strong and row[0] == plain(strong) else None)
    console.print(Text(plain(title), "bold"))
    console.print(table)


def print_facts(title: str, facts: Mapping[str, object]) -> None:
    """Print a table of names and values."""
    print_table(title, [{"what": name, "value": value} for name, value in facts.items()])


def _are_numbers(texts: Sequence[str]) -> bool:
    """Return whether most texts of a column begin with a number."""
    numeric = [bool(_NUMBER.match(text)) for text in texts if text]
    return 2 * sum(numeric) >= len(numeric)


def _widths(columns: Mapping[str, Sequence[str]], room: int) -> list[int] | list[None]:
    """Return the widths of the columns: those of their texts if they fit, else of numbers, else of single words.

    If not even words fit, the widths are ``None`` and texts are cut at the end of the column.
    """
    room -= _BETWEEN * len(columns)
    for whole in (_are_numbers, lambda texts: False):
        widths = []
        for name, texts in columns.items():
            words = texts if whole(texts) else " ".join(texts).split()
            widths.append(max(map(len, (*name.split(), *words, ""))))
        if (left := room - sum(widths)) >= 0:
            for i, (name, texts) in enumerate(columns.items()):
                more = min(left, max(map(len, (name, *texts))) - widths[i])
                widths[i], left = widths[i] + more, left - more
            return widths
    return [None] * len(columns)


def print_json(value: Any) -> None:
    """Print JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
