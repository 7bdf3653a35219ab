"""How results look: JSON for programs on stdout, quiet tables for people."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from turnwise.agents.transcript import printable

OK, BAD, NONE = "✓", "✗", "–"


def console(*, stderr: bool = False) -> Console:
    """Return a console that colours nothing by guess; `stderr` for progress."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:  # a file or a pipe has no edge to wrap at
        made.width = max(made.width, 120)
    return made


def print_json(value: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(finite(value), ensure_ascii=False, indent=2, allow_nan=False))


def finite(value: Any) -> Any:
    """Return `value` with null for every number that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    return [finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def table(*columns: str, rows: Iterable[Sequence[str | Text]], right: Sequence[str] = ()) -> Table:
    """Return a table without lines; texts are shown as they are, never read as markup.

    Args:
        columns: Headings; the first column is never broken.
        rows: One cell per column.
        right: Columns of numbers, aligned to the right.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    made.show_header = any(columns)
    for index, name in enumerate(columns):
        side: Literal["left", "right"] = "right" if name in right else "left"
        made.add_column(name, justify=side, overflow="fold", no_wrap=index == 0)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return made


def title(text: str, note: str = "") -> Text:
    """Return a heading: bold, with a dim note behind it."""
    return Text.assemble((text, "bold"), ("  " + note if note else "", "dim"))


def say(out: Console, who: str, text: str, style: str = "") -> None:
    """Print a text with its speaker on the left; control characters are shown, not sent."""
    room = max(20, out.width - 12)
    lines = [
        part
        for line in printable(text).expandtabs(4).split("\n")
        for part in textwrap.wrap(line, room, drop_whitespace=False) or [""]
    ]
    for number, line in enumerate(lines):
        out.print(Text.assemble((f"{who if number == 0 else '':>8} │ ", "dim"), (line, style)))


def verdict(good: bool | None) -> Text:
    """Return a tick, a cross, or a dash for what was not tried."""
    if good is None:
        return Text(NONE, style="dim")
    return Text(OK, style="green") if good else Text(BAD, style="bold red")
