"""docs/results.md from the compact results: tables of scores, of paired differences, of turns.

Everything on the page but the words of the experiments follows from the JSON files beside it, and
a test holds the page to them. The files hold one row per run, so that other questions can be asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from turnwise.agents.statistics import Interval, mean_t
from turnwise.trainers.comparison import paired, spread, verdict
from turnwise.trainers.contest import Experiment

Rows = Sequence[Mapping[str, Any]]
USUAL = "turnwise/Corridor-v1"
"""The world of an experiment that names no other."""
KINDS = ("on", "off", "failed")
PER_TURN = {"share": "turns", "KL": "teacher_kl", "w": "teacher_weight"}
TOLD = {
    "share": "share of turns",
    "KL": "KL of a turn to the teacher, nats, where one scores the student's turns",
    "w": "mean weight of its tokens",
}
HEAD = """# Which method helps where

Made by `python scripts/compare_methods.py`; do not edit. Students and teachers are transformers,
made on the spot; unless another one is named, the world is `turnwise/Corridor-v1`, where one wrong
action leads into a side branch. All arms of an experiment begin, seed by seed, with the same
student, and have the same number of environment steps: a run ends with the training step that
reaches it, and `steps` says with how many. The student has imitated the expert up to a given
progress on dev tasks of the world where it was shown (weights between two checkpoints); on the
test tasks of the world compared seeds begin some way apart, as each section says. Turns that an
expert replays are charged, and so is the validation by which the pipeline decides; ways that an
expert finds for a curriculum are given. Learning rates are chosen per method at the full budget on
dev seeds and dev tasks, by the mean of success and progress; a control takes the rate of the
method that it controls. The bridge has a rate of its own as a single method; as a stage of a
pipeline it has 3e-3. Where a section says "one rate for all", none was chosen. Scores are from
test tasks at T = 1, one attempt each; AUC is the area under success over the budget; methods of
imitation have a number of labels in its place. Differences are paired by seed, with 95 % t
intervals over seeds: **above** and **below** are those that do not hold 0. sd is the spread over
seeds. One teacher serves all seeds of an experiment, so intervals say nothing of other teachers;
what it reaches itself stands beside the floors. Dev seed 100 of some sections was run on another
machine: the same arm may have other dev scores there.
"""


def write_page(experiments: Sequence[Experiment], results: Path, page: Path) -> None:
    """Write the page of all experiments that have results."""
    page.write_text(page_of(experiments, results))


def page_of(experiments: Sequence[Experiment], results: Path) -> str:
    """Return the page."""
    files = {about.name: results / f"{about.name}.json" for about in experiments}
    run = [about for about in experiments if files[about.name].exists()]
    parts = [HEAD, _summary(run)]
    for about in run:
        parts.append("\n".join(section(about, json.loads(files[about.name].read_text()))))
    missing = [f"- `{each.name}` ({each.title})" for each in experiments if each not in run]
    if missing:
        parts.append("\n".join(["## Not run\n", *missing, ""]))
    return "\n".join(parts)


def _summary(experiments: Sequence[Experiment]) -> str:
    """Return a line for each experiment that says what came out, with a link to its numbers."""
    lines = ["## In short\n", "| where | what came out |", "|---|---|"]
    for about in experiments:
        if about.short:
            lines.append(f"| [{about.title}](#{_anchor(about.title)}) | {about.short} |")
    return "\n".join([*lines, ""])


def _anchor(title: str) -> str:
    """Return what a heading is linked by: lower case, without punctuation, with hyphens."""
    kept = re.sub(r"[^\w\- ]", "", title.lower())
    return kept.replace(" ", "-")


def section(about: Experiment, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of one experiment."""
    rows, names = found["rows"], [arm.name for arm in about.arms]
    env = ", ".join(f"{name}={value}" for name, value in found["env"].items())
    spent = f"{found['budget']:,} environment steps" if found["budget"] else "rounds of labels"
    seeds = len({row["seed"] for row in rows})
    dev = found["dev_seeds"]
    tuned = f"rates from {dev} dev seed{'s' if dev > 1 else ''}" if dev else "one rate for all"
    world = ", ".join(
        ([] if about.env_id == USUAL else [f"`{about.env_id}`"]) + ([env] if env else [])
    )
    yield f"## {about.title}\n\n{about.claim} ({spent}, {seeds} seeds, {tuned}; {world})\n"
    if about.finding:
        yield f"{about.finding}\n"
    yield from _scores(names, rows, found)
    yield from _rates(found.get("dev", ()))
    if about.beginning is not None:
        yield _begun(rows)
    if about.pairs:
        yield from _differences(about.pairs, rows, area=found["budget"] > 0)
    yield from _kinds(names, rows)


def _scores(names: Sequence[str], rows: Rows, found: Mapping[str, Any]) -> Iterator[str]:
    told = ("AUC", "steps") if found["budget"] else ("labels",)
    head = ("method", "success", "sd", "progress", *told, "updates", "rate", "by seed")
    yield _line(head)
    yield "|" + "---|" * len(head)
    blank = [""] * (len(told) + 3)
    for kind, measured in (("floor", found["floors"]), ("teacher", found.get("teachers", {}))):
        for name, end in measured.items():
            success, progress = f"{end['success']:.3f}", f"{end['progress']:.3f}"
            yield _line((f"*{kind}: {name}*", success, "", progress, *blank))
    starts = list({row["seed"]: row["start"] for row in rows}.values())
    yield _score("*start*", starts, blank[:-1])
    for name in names:
        if mine := [row for row in rows if row["arm"] == name]:
            cells = _means(mine)[not found["budget"] :]
            yield _score(name, [row["end"] for row in mine], cells)
    yield ""


def _begun(rows: Rows) -> str:
    """Say with how much progress each seed began, in the world that is compared."""
    starts = {row["seed"]: row["start"]["progress"] for row in rows}
    each = " ".join(f"{starts[seed]:.2f}".lstrip("0") for seed in sorted(starts))
    return f"Progress at the start, by seed: {each}.\n"


def _means(rows: Rows) -> tuple[str, ...]:
    """Return area, environment steps, updates and rate of an arm."""
    area, spent, updates = (
        fmean(row[name] for row in rows) for name in ("auc", "env_steps", "updates")
    )
    return f"{area:.3f}", f"{spent:,.0f}", f"{updates:.0f}", f"{rows[0]['rate']:g}"


def _score(name: str, ends: Sequence[Mapping[str, float]], cells: Sequence[str]) -> str:
    success = [end["success"] for end in ends]
    progress = fmean(end["progress"] for end in ends)
    each = " ".join(f"{value:.2f}".lstrip("0") for value in success)
    sd = f"{spread(success):.3f}"
    return _line((name, _interval(mean_t(success)), sd, f"{progress:.3f}", *cells, each))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rates(tried: Rows) -> Iterator[str]:
    """Yield what each learning rate came to on dev tasks, for every arm that chose its own."""
    scores: dict[str, dict[float, list[float]]] = {}
    for run in tried:
        score = (run["success"] + run["progress"]) / 2
        scores.setdefault(run["arm"], {}).setdefault(run["rate"], []).append(score)
    if scores:
        each = "; ".join(f"{arm} {_tried(rates)}" for arm, rates in scores.items())
        yield f"On dev tasks, mean of success and progress by rate: {each}.\n"


def _tried(rates: Mapping[float, Sequence[float]]) -> str:
    return ", ".join(f"{fmean(rates[r]):.2f} at {r:g}".lstrip("0") for r in sorted(rates))


def _differences(pairs: Sequence[tuple[str, str]], rows: Rows, *, area: bool) -> Iterator[str]:
    names = ["success", "progress", *(["AUC"] if area else [])]
    yield f"| difference | {' | | '.join(names)} | |"
    yield "|---" * (1 + 2 * len(names)) + "|"
    for method, rival in pairs:
        if {method, rival} <= {row["arm"] for row in rows}:
            cells = [f"{method} - {rival}"]
            by = [_by_seed(rows, method), _by_seed(rows, rival)]
            for i in range(len(names)):
                value = paired(_column(by[0], i), _column(by[1], i))
                cells += [_signed(value), _bold(verdict(value))]
            yield f"| {' | '.join(cells)} |"
    yield ""


def _by_seed(rows: Rows, arm: str) -> dict[int, tuple[float, float, float]]:
    mine = (row for row in rows if row["arm"] == arm)
    return {r["seed"]: (r["end"]["success"], r["end"]["progress"], r["auc"]) for r in mine}


def _column(scores: Mapping[int, tuple[float, float, float]], i: int) -> dict[int, float]:
    return {seed: row[i] for seed, row in scores.items()}


def _kinds(names: Sequence[str], rows: Rows) -> Iterator[str]:
    """Yield shares, KL and weights by kind of turn: mean of the first third, then of the last.

    Nothing where the world does not tell kinds apart, and no column that would be empty.
    """
    if not any("turns_on" in row["metrics"]["last"] for row in rows):
        return
    by_arm = {name: [row["metrics"] for row in rows if row["arm"] == name] for name in names}
    cells = {
        f"{what} {kind}": {name: _ends(seen, f"{key}_{kind}") for name, seen in by_arm.items()}
        for what, key in PER_TURN.items()
        for kind in KINDS
    }
    columns = [column for column, by in cells.items() if any(by.values())]
    told = "; ".join(
        text for what, text in TOLD.items() if any(c.startswith(what) for c in columns)
    )
    yield "By kind of turn (on the path, in a side branch, after a failure), in the first third of"
    yield f"the training steps and in the last, each over the steps that have such turns: {told}.\n"
    yield f"| method | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, seen in by_arm.items():
        if seen:
            yield _line((name, *(cells[column][name] for column in columns)))
    yield ""


def _ends(metrics: Sequence[Mapping[str, Any]], key: str) -> str:
    parts = []
    for part in ("first", "last"):
        seen = [each[part][key] for each in metrics if key in each[part]]
        parts.append(f"{fmean(seen):.2f}" if seen else "")
    return " → ".join(parts) if any(parts) else ""


def _interval(value: Interval) -> str:
    return f"{value.value:.3f} [{value.low:.2f}, {value.high:.2f}]"


def _signed(value: Interval) -> str:
    return f"{value.value:+.3f} [{value.low:+.2f}, {value.high:+.2f}]"


def _bold(word: str) -> str:
    return word if word == "level" else f"**{word}**"
