"""A run as one HTML file: what was reached, how it got there, and every episode to click through.

The file needs nothing else: no network, no other file, no script from elsewhere (its own content
security policy forbids it). Whatever an agent or an environment wrote is data in it, never markup.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from turnwise.agents import charts
from turnwise.agents.pictures import Pictures
from turnwise.agents.statistics import Interval
from turnwise.envs.types import Episode, Turn

Cell = str | int | float | Interval | None
"""An `Interval` is shown as a rate with its bounds and a bar."""
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Headline:
    """One number at the top of the report."""

    label: str
    value: Interval | float | int | str
    note: str = ""
    floor: float | None = None
    """What doing nothing or acting at random reaches, marked in the bar."""
    lead: bool = False
    """Shown larger: the number the report is about."""


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    lead: str = ""
    """The column that the table is about; its bars are in colour."""


@dataclass(frozen=True)
class Exhibit:
    """An episode in the report."""

    episode: Episode
    label: str = ""
    """The set it belongs to, as "before" or "after"; the viewer filters by it."""
    replay: str = ""
    """Empty: not replayed. "exact": it was reproduced. Else: the first divergence."""


@dataclass
class _Vocabulary:
    """Each distinct token's text once; turns refer to it by index."""

    decode: Decode | None
    texts: list[str] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)

    def place(self, token: int) -> int:
        if token not in self.places:
            self.places[token] = len(self.texts)
            self.texts.append(self.decode([token]) if self.decode else f"#{token}")
        return self.places[token]


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    text: str = "",
    facts: Mapping[str, str] | None = None,
    headline: Sequence[Headline] = (),
    curve: Sequence[charts.Row] = (),
    floors: Mapping[str, float] | None = None,
    tables: Sequence[Table] = (),
    episodes: Iterable[Exhibit] = (),
    decode: Decode | None = None,
) -> Path:
    """Write the report and return its path; an existing file is replaced only by a whole one.

    Args:
        path: The HTML file; its folder is made.
        title: The heading.
        text: A paragraph in plain language under it; blank lines separate paragraphs.
        facts: Small print: environment, model, seed, date.
        headline: The numbers at the top.
        curve: Training, one row per step; see `charts.Row`. The first series is drawn large with
            the floors, the others small below it.
        floors: Name to value of what no skill reaches, in the unit of the first series.
        tables: As success by depth, before and after.
        episodes: Hundreds are fine; each is some 10 kB.
        decode: Token ids to text, for the view of sampled tokens; without it ids are shown.

    Raises:
        OSError: the file cannot be written.
    """
    parts = {
        "title": escape(title),
        "text": "".join(f"<p>{escape(p)}</p>" for p in text.split("\n\n") if p.strip()),
        "facts": "".join(map(_fact, (facts or {}).items())),
        "headline": _headlines(headline),
        "curve": _curves(curve, floors or {}),
        "tables": "".join(map(_table, tables)),
        "data": _embedded(_payload(episodes, decode)),
    }
    template = Path(__file__).with_name("viewer.html").read_text(encoding="utf-8")
    # One pass: a text that happens to hold "{{data}}" is not expanded again.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    return _write_whole(Path(path), page)


def _write_whole(path: Path, page: str) -> Path:
    unfinished = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(page.encode("utf-8", "backslashreplace"))
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return path


def _embedded(data: Any) -> str:
    """Return JSON that no HTML parser can leave early, whatever the texts in it are."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _payload(episodes: Iterable[Exhibit], decode: Decode | None) -> dict[str, Any]:
    vocabulary, pictures = _Vocabulary(decode), Pictures()
    shown = [_episode(exhibit, vocabulary, pictures) for exhibit in episodes]
    return {"episodes": shown, "vocabulary": vocabulary.texts, "pictures": pictures.texts}


def _episode(exhibit: Exhibit, vocabulary: _Vocabulary, pictures: Pictures) -> dict[str, Any]:
    episode = exhibit.episode
    task = {name: value for name, value in episode.task.to_json().items() if name != "hidden"}
    return {
        "label": exhibit.label,
        "replay": exhibit.replay,
        "id": episode.id,
        "env": episode.env_id,
        "task": {name: _plain(value) for name, value in task.items()},
        "key": episode.task.key,
        "seed": episode.env_seed,
        "replica": episode.replica,
        "outcome": episode.outcome.value,
        "masked": not episode.outcome.trainable,
        "stop": episode.stop.value,
        "success": episode.success,
        "reward": _rounded(episode.reward),
        "error": episode.error,
        "final": episode.final_observation,
        "metrics": {name: _rounded(value) for name, value in episode.metrics.items()},
        "wall": _rounded(episode.wall_s, 2),
        "pictures": pictures.of(episode),
        "turns": [
            _turn(turn, len(segment.inherited_ids) if i == 0 else 0, vocabulary)
            for segment in episode.segments
            for i, turn in enumerate(segment.turns)
        ],
    }


def _turn(turn: Turn, inherited: int, vocabulary: _Vocabulary) -> dict[str, Any]:
    return {
        "read": turn.observation,
        "act": turn.action,
        "errors": [call["error"] for call in turn.calls if call.get("error")],
        "reward": _rounded(turn.reward),
        "rewards": {name: _rounded(value) for name, value in turn.rewards.items()},
        "before": turn.state_before,
        "after": turn.state_after,
        "executor": turn.executor,
        "finish": turn.finish,
        "version": turn.policy_version,
        "context": inherited + len(turn.context_ids),
        "tokens": [vocabulary.place(token) for token in turn.action_ids],
        "logprobs": [_rounded(value) for value in turn.logprobs],
        "env_s": _rounded(turn.env_s, 4),
        "policy_s": _rounded(turn.policy_s, 4),
    }


def _rounded(value: float, digits: int = 4) -> float | None:
    return round(value, digits) + 0.0 if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Return what JSON and JavaScript agree on; whatever else it is as its `repr`."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, int) and abs(value) > 2**53:
        return repr(value)
    return value if isinstance(value, str | int | float | None) else json.dumps(value, default=repr)


def _fact(item: tuple[str, str]) -> str:
    name, value = item
    return f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"


def _headlines(numbers: Sequence[Headline]) -> str:
    if not numbers:
        return ""
    # A lead tile takes two rows where there are enough others to fill them.
    tall = " tall" if any(n.lead for n in numbers) and len(numbers) > 3 else ""
    return f'<div class="tiles{tall}">{"".join(map(_headline, numbers))}</div>'


def _headline(number: Headline) -> str:
    value, bounds, bar = number.value, "", ""
    if isinstance(value, Interval):
        bounds = f'<p class="bounds">{_bounds(value)}</p>'
        bar = charts.range_bar(value, floor=number.floor, tone="lead" if number.lead else "")
    note = f'<p class="note">{escape(number.note)}</p>' if number.note else ""
    kind = "tile lead" if number.lead else "tile"
    return (
        f'<article class="{kind}"><h3>{escape(number.label)}</h3>'
        f'<p class="value">{_value(value)}</p>{bounds}{bar}{note}</article>'
    )


def _value(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, Interval):
        return "–" if value.n == 0 else f"{100 * value.value:.1f}<small>%</small>"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return f"{value:,}" if isinstance(value, int) else escape(value)


def _bounds(value: Interval) -> str:
    if value.n == 0:
        return "no observation"
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return f"n = {value.n:,}"
    return f"{100 * value.low:.1f} – {100 * value.high:.1f} · n = {value.n:,}"


def _curves(rows: Sequence[charts.Row], floors: Mapping[str, float]) -> str:
    names = charts.series_of(rows)
    if not names:
        return ""
    main, *others = names
    small = "".join(
        f"<figure><figcaption>{escape(_spoken(name))}</figcaption>"
        f"{charts.curve(rows, name, width=350, height=150)}</figure>"
        for name in others
    )
    return (
        '<section><h2>Training</h2><figure class="main">'
        f"<figcaption>{escape(_spoken(main))} by step</figcaption>"
        f'{charts.curve(rows, main, floors=floors)}</figure><div class="small">{small}</div>'
        "</section>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        f"<tr><th>{_value(row[0])}</th>{_cells(row[1:], table)}</tr>" for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<section><h2>{escape(table.title)}</h2>{note}<div class="scroll"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _cells(cells: Sequence[Cell], table: Table) -> str:
    columns = zip(table.columns[1:], cells, strict=True)
    return "".join(_cell(cell, "lead" if name == table.lead else "") for name, cell in columns)


def _cell(cell: Cell, tone: str) -> str:
    if not isinstance(cell, Interval):
        kind = "" if isinstance(cell, str) else ' class="number"'
        return f"<td{kind}>{_value(cell)}</td>"
    bounds, _, count = _bounds(cell).partition(" · ")
    return (
        f'<td class="rate"><div title="{count}"><b>{_value(cell)}</b>'
        f"{charts.range_bar(cell, tone=tone)}<small>{bounds}</small></div></td>"
    )


def _spoken(name: str) -> str:
    """Return a series' name as a caption: `tokens_per_turn` becomes "Tokens per turn"."""
    words = name.replace("_", " ").replace("/", " / ")
    return words[:1].upper() + words[1:]
