"""How text and numbers are shown: text of a file stays text on a screen, in Markdown, HTML, YAML and CSV."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Sequence

__all__ = ["csv_cell", "html_text", "markdown", "markdown_table", "plain", "quoted_string", "significant"]

# What a cell of a spreadsheet may not begin with: it would be computed.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_MARKDOWN = {"<": "&lt;", ">": "&gt;", "&": "&amp;"} | {mark: f"\\{mark}" for mark in "\\`*_|~$"}


def plain(text: object) -> str:
    """Return text on one line of which every character is seen, the others as Python writes them.

    Names in files are anybody's. Control characters move a terminal's cursor, rewrite its title or open links;
    characters that turn the direction of writing, or that have no width, make a name look like another.

    >>> plain("gs\\x1b[2J"), plain("a\\nb"), plain("\\u202eabc")
    ('gs\\\\x1b[2J', 'a\\\\nb', '\\\\u202eabc')
    """
    # A character is printable to Python unless it is of Unicode's categories C or Z, the space aside.
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(text))


def markdown(text: object) -> str:
    """Return text as Markdown that shows it, within a line or a cell of a table.

    >>> markdown("<b>a|b*"), markdown("log_snr"), markdown("_a_")
    ('&lt;b&gt;a\\\\|b\\\\*', 'log_snr', '\\\\_a\\\\_')
    """
    # An underscore within a word is no emphasis, and our own names are full of them.
    shown = re.sub(r"(?<=[^\W_])_(?=[^\W_])", "\0", plain(text))
    shown = "".join(_MARKDOWN.get(each, each) for each in shown).replace("\0", "_")
    # A bracket is a link only before another, so an interval alone needs no escape.
    return re.sub(r"\](?=[(\[])", r"\\]", shown)


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table whose cells show their text; of a cell ``(text, mark)``, between two marks (``**``, ``*``)."""
    lines = [map(markdown, head), ["---"] * len(head), *(map(_cell, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(cell: object) -> str:
    if not isinstance(cell, tuple):
        return markdown(cell)
    text, mark = cell
    return f"{mark}{markdown(text)}{mark}" if text else ""


def html_text(text: object) -> str:
    """Return text as HTML that shows it, in an element or a quoted attribute."""
    return html.escape(plain(text))


def quoted_string(text: object) -> str:
    """Return text as a double-quoted string of JSON, YAML and Python alike, without a tag of HTML in it."""
    return json.dumps(plain(text), ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e")


def csv_cell(value: object) -> object:
    """Return a cell that no spreadsheet computes: text that begins like a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    return plain(f"'{value}" if value.startswith(_FORMULA) else value)


def significant(value: float, digits: int = 4) -> str:
    """Return a number with so many significant digits, whatever its size; with an exponent below 1e-4 and from 1e6 on.

    >>> [significant(x) for x in (0.0123456, 1.5, 0, 1234567.0, 123456.7)]
    ['0.01235', '1.500', '0', '1.235e+06', '123457']
    >>> significant(3.2e-7), significant(0.00099996, 2), significant(float("nan"))
    ('3.200e-07', '0.0010', 'nan')
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    text = f"{value:.{digits - 1}e}"  # rounded first: 0.00099996 has its first digit one place higher then
    exponent = int(text.partition("e")[2])
    if not -4 <= exponent < 6:
        return text
    return f"{value:.{max(0, digits - 1 - exponent)}f}"
