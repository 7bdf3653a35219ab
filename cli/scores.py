"""Scores as tables: a rate, its interval, and a bar that shows both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from turnwise.agents.score import Report
from turnwise.agents.statistics import Interval
from turnwise.cli.display import NONE, table

WIDTH = 30


def scores(name: str, rows: Iterable[tuple[str, Interval]]) -> Table:
    """Return a table of success rates; `name` heads the column of what they are of."""
    return table(
        *(name, "success", "95 % interval", "n", " "),
        rows=[_row(what, rate) for what, rate in rows],
        right=("success", "n"),
    )


def score_rows(report: Report) -> Iterator[tuple[str, list[tuple[str, Interval]]]]:
    """Yield the further tables of a report: pass@k, and success by each task field."""
    tries = [(f"pass@{k}", rate) for k, rate in report.pass_at.items() if k > 1]
    tries += [(f"pass^{k}", rate) for k, rate in report.pass_hat.items() if k > 1]
    if tries:
        yield "attempts", tries
    for name, rates in report.by.items():
        yield name, [(str(value), rate) for value, rate in rates.items()]


def bar(rate: Interval) -> Text:
    """Return the interval on a line from 0 to 1, the estimate as a dot."""
    if not rate.n:
        return Text("")
    low, at, high = (round(x * (WIDTH - 1)) for x in (rate.low, rate.value, rate.high))
    marks = ["━" if low <= i <= high else "·" for i in range(WIDTH)]
    marks[at] = "●"
    return Text("".join(marks), style="green")


def _row(what: str, rate: Interval) -> list[Any]:
    if not rate.n:
        return [what, NONE, "", "0", ""]
    bounds = f"{rate.low:.3f} to {rate.high:.3f}"
    return [what, f"{rate.value:.3f}", bounds, str(rate.n), bar(rate)]
