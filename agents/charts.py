"""Figures for the HTML report as text: inline SVG and CSS bars, no script and no dependency."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from turnwise.agents.statistics import Interval

Row = Mapping[str, float]
"""One point in time: `step` and any number of series, with `<name>_low` and `<name>_high`."""


def series_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of what is plotted, in order of first appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [
        name for name in names if name != "step" and not name.endswith(("_low", "_high")) and name
    ]


def curve(
    rows: Sequence[Row],
    name: str,
    *,
    floors: Mapping[str, float] | None = None,
    width: int = 1040,
    height: int = 300,
) -> str:
    """Return an SVG of series `name` over `step`, its band shaded and floors as dashed lines.

    Values that are missing or not finite leave a gap.
    """
    floors = floors or {}
    plot = _Plot(rows, name, floors, width, height)
    body = "".join([*plot.grid(), *plot.floors(), *plot.data()])
    label = escape(f"{name} over {len(rows)} steps", quote=True)
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f"{body}</svg>"
    )


def range_bar(interval: Interval, *, floor: float | None = None, tone: str = "") -> str:
    """Return a bar from 0 to 1 with the interval and its estimate; a tick marks the floor."""
    if interval.n == 0 or not math.isfinite(interval.value):
        return ""
    low = interval.low if math.isfinite(interval.low) else interval.value
    high = interval.high if math.isfinite(interval.high) else interval.value
    tick = "" if floor is None else f'<i class="floor" style="left:{_percent(floor)}"></i>'
    return (
        f'<span class="range {escape(tone)}">{tick}'
        f'<i class="fill" style="width:{_percent(interval.value)}"></i>'
        f'<i class="ci" style="left:{_percent(low)};width:{_percent(high - low)}"></i>'
        f'<i class="dot" style="left:{_percent(interval.value)}"></i></span>'
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough * 0.999)
    first = math.ceil(low / size - 1e-9)
    digits = 2 - math.floor(math.log10(size))  # relative: a series may be near 1e-13
    return [round(k * size, digits) + 0.0 for k in range(first, math.floor(high / size + 1e-9) + 1)]


class _Plot:
    def __init__(
        self,
        rows: Sequence[Row],
        name: str,
        floors: Mapping[str, float],
        width: int,
        height: int,
    ) -> None:
        self.rows, self.name, self.floor_values = rows, name, floors
        longest = max((len(_short(name)) for name in floors), default=0)
        self.left, self.right = 46, width - 62 - 7 * longest if floors else width - 14
        self.top, self.bottom = 12, height - 30
        steps = [row["step"] for row in rows if _finite(row.get("step"))]
        self.x_low, self.x_high = (min(steps), max(steps)) if steps else (0.0, 1.0)
        self.y_low, self.y_high = self._y_range()
        self.share = bool(floors) and (self.y_low, self.y_high) == (0.0, 1.0)

    def _y_range(self) -> tuple[float, float]:
        names = (self.name, f"{self.name}_low", f"{self.name}_high")
        values = [row[n] for row in self.rows for n in names if _finite(row.get(n))]
        values += self.floor_values.values()
        low, high = min(values, default=0.0), max(values, default=1.0)
        share = self.name == "success" or high > 0.25 or low == high == 0
        if share and low >= 0 and high <= 1:
            return 0.0, 1.0
        pad = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
        return (0.0 if 0 <= low < (high - low) else low - pad), high + pad

    def x(self, step: float) -> float:
        span = self.x_high - self.x_low or 1.0
        return self.left + (step - self.x_low) / span * (self.right - self.left)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.bottom - share * (self.bottom - self.top)

    def said(self, value: float) -> str:
        """Return a number of the y axis as text: a share as a percentage."""
        return f"{100 * value:.3g}%" if self.share else f"{value:.4g}"

    def grid(self) -> Iterator[str]:
        for value in ticks(self.y_low, self.y_high, max(3, (self.bottom - self.top) // 50)):
            y, text = self.y(value), self.said(value)
            yield f'<path class="grid" d="M{self.left} {y:.1f}H{self.right}"/>'
            yield f'<text class="tick y" x="{self.left - 8}" y="{y + 3.5:.1f}">{text}</text>'
        for step in ticks(self.x_low, self.x_high, max(2, (self.right - self.left) // 130)):
            x, y = self.x(step), self.bottom + 19
            yield f'<text class="tick x" x="{x:.1f}" y="{y}">{step:g}</text>'

    def floors(self) -> Iterator[str]:
        taken: list[float] = []
        for name, value in sorted(self.floor_values.items(), key=lambda item: -item[1]):
            y = self.y(value)
            # Labels of floors that nearly coincide would cover each other: stack them.
            at = max([y + 3.5, *(other + 14 for other in taken)])
            taken.append(at)
            yield (
                f'<line class="floorline" x1="{self.left}" x2="{self.right}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="floorname" x="{self.right + 8}" y="{at:.1f}">'
                f"{escape(_short(name))} {self.said(value)}</text>"
            )

    def data(self) -> Iterator[str]:
        low, high = f"{self.name}_low", f"{self.name}_high"
        for run in self._runs(low, high):
            upper = [f"{self.x(row['step']):.1f},{self.y(row[high]):.1f}" for row in run]
            lower = [f"{self.x(row['step']):.1f},{self.y(row[low]):.1f}" for row in run]
            yield f'<polygon class="band" points="{" ".join([*upper, *reversed(lower)])}"/>'
        for run in self._runs(self.name):
            points = [f"{self.x(row['step']):.1f},{self.y(row[self.name]):.1f}" for row in run]
            yield f'<polyline class="line" points="{" ".join(points)}"/>'
        if self.bottom - self.top > 150:
            yield from self._dots()

    def _dots(self) -> Iterator[str]:
        shown = [row for row in self.rows if _finite(row.get("step"), row.get(self.name))]
        radius = 3.5 if len(shown) <= 60 else 2.2 if len(shown) <= 200 else 1.2
        for row in shown:
            x, y = self.x(row["step"]), self.y(row[self.name])
            title = escape(f"step {row['step']:g}: {self.name} {self.said(row[self.name])}")
            yield (
                f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
                f"<title>{title}</title></circle>"
            )

    def _runs(self, *names: str) -> Iterator[list[Row]]:
        run: list[Row] = []
        for row in self.rows:
            if _finite(row.get("step"), *(row.get(name) for name in names)):
                run.append(row)
            elif run:
                yield run
                run = []
        if run:
            yield run


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


def _finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"
