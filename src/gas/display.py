"""Text and numbers for people: escaped for a screen, Markdown, HTML, YAML and CSV; shortened for messages."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# First characters of a cell that make a spreadsheet compute it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_MARKDOWN = {"<": "&lt;", ">": "&gt;", "&": "&amp;"} | {mark: f"\\{mark}" for mark in "\\`*_|~$"}


def plain(text: object) -> str:
    """Return text on one line with every unprintable character escaped as Python writes it.

    A name in a file can be hostile. Control characters move a terminal's cursor, rewrite its title or open links;
    characters that reverse the direction of writing, or that have no width, make one name look like another.

    >>> plain("gs\\x1b[2J"), plain("a\\nb"), plain("\\u202eabc")
    ('gs\\\\x1b[2J', 'a\\\\nb', '\\\\u202eabc')
    """
    # A character is printable to Python unless it is of Unicode's categories C or Z, the space aside.
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(text))


def markdown(text: object) -> str:
    """Escape text for a line of Markdown or a cell of its tables.

    >>> markdown("<b>a|b*"), markdown("log_snr"), markdown("_a_")
    ('&lt;b&gt;a\\\\|b\\\\*', 'log_snr', '\\\\_a\\\\_')
    """
    # An underscore within a word is no emphasis, and identifiers are full of them.
    escaped = re.sub(r"(?<=[^\W_])_(?=[^\W_])", "\0", plain(text))
    escaped = "".join(_MARKDOWN.get(each, each) for each in escaped).replace("\0", "_")
    # A bracket is a link only before another, so an interval alone needs no escape.
    return re.sub(r"\](?=[(\[])", r"\\]", escaped)


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; a cell ``(text, mark)`` puts its text between two marks (``**``, ``*``)."""
    lines = [map(markdown, head), ["---"] * len(head), *(map(_cell, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(cell: object) -> str:
    if not isinstance(cell, tuple):
        return markdown(cell)
    text, mark = cell
    return f"{mark}{markdown(text)}{mark}" if text else ""


def quoted_string(text: object) -> str:
    """Return text as a double-quoted string that is valid JSON, YAML and Python, and holds no HTML tag."""
    return json.dumps(plain(text), ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")


def csv_cell(value: object) -> object:
    """Return a CSV cell that no spreadsheet computes: text that begins like a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    return plain(f"'{value}" if value.startswith(_FORMULA) else value)


def significant(value: float, digits: int = 4) -> str:
    """Format a number with ``digits`` significant digits; with an exponent below 1e-4 and from 1e6 on.

    >>> [significant(x) for x in (0.0123456, 1.5, 0, 1234567.0, 123456.7)]
    ['0.01235', '1.500', '0', '1.235e+06', '123457']
    >>> significant(3.2e-7), significant(0.00099996, 2), significant(float("nan"))
    ('3.200e-07', '0.0010', 'nan')
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    text = f"{value:.{digits - 1}e}"  # rounded first, which can move the first digit: 0.00099996
    exponent = int(text.partition("e")[2])
    if not -4 <= exponent < 6:
        return text
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def with_interval(value: float, low: float, high: float, *, sign: str = "") -> str:
    """Format a number and its interval to the place of the second significant digit of half the interval's width.

    An interval around the number is written with ``±``, any other with brackets. ``sign="+"`` also marks numbers
    that are not negative.

    >>> with_interval(0.0036749, 0.0031149, 0.0042349), with_interval(2.0, 1.49, 2.02), with_interval(32.1, 30.7, 33.5)
    ('0.00367 ± 0.00056', '2.00 [1.49, 2.02]', '32.1 ± 1.4')
    >>> with_interval(3.2e-7, 3.1e-7, 3.3e-7), with_interval(1.5, 1.5, 1.5), with_interval(0.2, 0.1, 0.3, sign="+")
    ('(3.20 ± 0.10)e-07', '1.500', '+0.20 ± 0.10')
    """
    half_width = (high - low) / 2
    marked = sign if value >= 0 else ""
    if not math.isfinite(value) or not math.isfinite(half_width) or half_width <= 0:
        return f"{marked}{significant(value)}"
    exponent, numbers = 0, (value, half_width, low, high)
    if half_width < 1e-3 * abs(value):
        number, half, *ends = (
            significant(value),
            significant(half_width, 2),
            significant(low),
            significant(high),
        )
    else:
        exponent = int(f"{max(abs(value), half_width):e}".partition("e")[2])
        exponent = 0 if -5 < exponent < 6 else exponent
        digits = max(0, 1 + exponent - int(f"{half_width:.1e}".partition("e")[2]))
        number, half, *ends = (f"{each / 10.0**exponent:.{digits}f}" for each in numbers)
    centered = abs((high - value) - (value - low)) < 1e-9 * max(abs(value), half_width)
    text = f"{marked}{number} " + (f"± {half}" if centered else f"[{', '.join(ends)}]")
    return f"({text})e{exponent:+03d}" if exponent else text


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 60, 60
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = self.maxarray = 4
        self.maxdict = 4

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print the longest integers, and is slow for long ones.
        return repr(x) if abs(x) < 1 << 64 else f"<a whole number of {x.bit_length()} bits>"

    repr_bool = repr_int


_BRIEF = _Brief()


def brief(value: Any, length: int = 80) -> str:
    """Return the beginning of a value's ``repr`` for a message, in bounded time however it is nested."""
    text = _BRIEF.repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def contents(data: Any) -> str:
    """Return what a file turned out to hold: the names of its entries, or its type."""
    return brief(list(data)) if isinstance(data, Mapping) and data else type(data).__name__


def error_text(error: BaseException, length: int = 160) -> str:
    """Return the text of an error in one line of at most ``length`` characters."""
    return " ".join(str(error)[: 4 * length].split())[:length] or type(error).__name__
