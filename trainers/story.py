"""A finished run as two files: `summary.json` for programs and `report.html` for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from turnwise.agents.replay import Divergence
from turnwise.agents.score import Report
from turnwise.agents.statistics import Interval
from turnwise.agents.viewer import Exhibit, Headline, Table, write_report
from turnwise.envs.types import Episode
from turnwise.trainers.pipeline import Clock, summary_of

Replayed = Sequence[tuple[Path, Episode, Divergence | None]]
SHOWN_PER_SET = 60
"""Episodes per evaluation that the report holds; the records hold all."""
SERIES = ("success", "reward", "turns", "entropy", "errors", "approx_kl", "grad_norm")


def write_story(
    out: Path,
    reports: Mapping[str, Report],
    rows: Sequence[dict[str, Any]],
    replayed: Replayed,
    clock: Clock,
    tokenizer: Any,
    *,
    seed: int,
    field: str,
    title: str,
) -> dict[str, Any]:
    """Write both files and return the summary.

    Args:
        reports: `before` and `after`, and the same with `_greedy`.
        rows: metrics of the training steps.
        replayed: every evaluated episode with its first divergence or None.
        field: the task field of the breakdown; empty for none.
    """
    diverged = [(path, episode, d) for path, episode, d in replayed if d is not None]
    summary: dict[str, Any] = {
        "seed": seed,
        **{name: summary_of(report) for name, report in reports.items()},
        "replay": {
            "episodes": len(replayed),
            "divergences": len(diverged),
            "first": [f"{p.name} {e.id}: {d}" for p, e, d in diverged[:5]],
        },
        "seconds": {**clock.seconds, "all": round(sum(clock.seconds.values()), 1)},
        "steps": len(rows),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    floors = {name: floor.success.value for name, floor in reports["before"].floors.items()}
    write_report(
        out / "report.html",
        title=title,
        text=_text(summary),
        facts={"seed": str(seed), **{k: f"{v:.0f} s" for k, v in summary["seconds"].items()}},
        headline=_headline(reports, summary, max(floors.values(), default=0.0)),
        curve=[{"step": row["step"], **_series(row)} for row in rows],
        floors=floors,
        tables=[_table(reports, field)] if field else [],
        episodes=_exhibits(replayed),
        decode=tokenizer.decode,
    )
    return summary


def _series(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: row[name] for name in SERIES if name in row}


def _text(summary: Mapping[str, Any]) -> str:
    before, after = summary["before"], summary["after"]
    was, now = (100 * part["success"].get("value", math.nan) for part in (before, after))
    return (
        f"A small model imitated an expert, then learnt from {summary['steps']} batches of its own "
        "attempts with credit for each turn. The numbers are success on held-out tasks, sampled "
        "at temperature 1, with 95 % intervals over tasks.\n\n"
        f"Success went from {was:.1f} % to {now:.1f} %; an episode took {before['turns']:.1f} "
        f"turns before and {after['turns']:.1f} after."
    )


def _headline(
    reports: Mapping[str, Report], summary: Mapping[str, Any], floor: float
) -> list[Headline]:
    replay = summary["replay"]
    return [
        Headline("after RL", reports["after"].success, "T = 1", floor, lead=True),
        Headline("before RL", reports["before"].success, "imitation only, T = 1", floor),
        Headline("after RL, greedy", reports["after_greedy"].success, "T = 0", floor),
        Headline("before RL, greedy", reports["before_greedy"].success, "T = 0", floor),
        Headline("replayed exactly", f"{replay['episodes'] - replay['divergences']}",
                 f"of {replay['episodes']} episodes"),
    ]  # fmt: skip


def _table(reports: Mapping[str, Report], field: str) -> Table:
    names = ("before", "after", "before_greedy", "after_greedy")
    columns = [reports[name].by.get(field, {}) for name in names]
    keys = sorted({key for column in columns for key in column}, key=float)
    rows: list[list[str | int | float | Interval | None]] = [
        [key, *(column.get(key) for column in columns)] for key in keys
    ]
    heads = [field, *(name.replace("_", ", ") for name in names)]
    return Table(f"Success by {field}", heads, rows, "95 % intervals over tasks", lead="after")


def _exhibits(replayed: Replayed) -> list[Exhibit]:
    shown: dict[str, int] = {}
    exhibits = []
    for path, episode, divergence in replayed:
        label = path.stem.replace("_", ", ").replace(".", ", ")
        shown[label] = shown.get(label, 0) + 1
        if shown[label] <= SHOWN_PER_SET or divergence is not None:
            status = "exact" if divergence is None else str(divergence)
            exhibits.append(Exhibit(episode, label, status))
    return exhibits
