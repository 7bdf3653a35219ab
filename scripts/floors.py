"""Measure every registered environment and write the tables of docs/environments.md.

    python scripts/floors.py                              # all of them, in a few minutes
    python scripts/floors.py --missing                    # those that have no row yet
    python scripts/floors.py --only turnwise/Craft-v1     # one of them; the other rows stay

The expert plays 200 tasks of every split, or all where there are fewer. Chance and silence get the
same time in each environment, so slow ones play fewer tasks, of the test split.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import fmean

from turnwise.agents.policy import Act, ScriptedPolicy, expert, noop, random_tool
from turnwise.agents.rollout import Settings, jobs_for, play
from turnwise.agents.statistics import wilson
from turnwise.cli.options import UsageError
from turnwise.cli.script import run_script
from turnwise.envs import MissingExtra, list_envs, make
from turnwise.envs.base import Env
from turnwise.envs.registry import EnvSpec
from turnwise.envs.types import Episode
from turnwise.sandboxes import SandboxError

PAGE = Path(__file__).parent.parent / "docs" / "environments.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
FLOORS = (
    *("id", "what it is", "train / dev / test", "turns at most", "expert", "random", "no-op"),
    *("random reward", "chance_reward", "turns/s"),
)
KNOBS = ("id", "arguments and what they are by default")
SHOWN_OF_MANY = ("GoToRedBallGrey", "GoToLocal", "Synth")
"""Of environments that differ in one name: those that are measured."""
SPLIT = "test"
SPLITS = ("train", "dev", "test")
COMMON = ("actions", "max_turns", "backend", "image", "mode")
"""Arguments that say nothing about difficulty."""


@dataclass(frozen=True)
class Options:
    """Measure environments: what an expert, chance and silence reach, and how quick a turn is."""

    only: tuple[str, ...] = ()
    """Ids; all without any."""
    missing: bool = False
    """Only those that have no row yet; the table of arguments is made anew in any case."""
    seconds: float = 3.0
    """For chance and for silence in each environment: as many tasks as there is time for."""
    most: int = 200
    """Tasks of a split, at most; the expert plays as many whatever time it takes."""
    concurrency: int = 8
    """Episodes at once."""
    page: Path = PAGE
    """Where the tables are."""


def measured_specs() -> list[EnvSpec]:
    """Return the environments that have a row: one of each, and some levels of BabyAI."""
    ours = [spec for spec in list_envs() if spec.id.startswith("turnwise/")]
    return [
        spec
        for spec in ours
        if "babyai" not in spec.tags or any(f"-{level}-" in spec.id for level in SHOWN_OF_MANY)
    ]


def others() -> list[str]:
    """Return the ids without a row."""
    shown = {spec.id for spec in measured_specs()}
    return [s.id for s in list_envs() if s.id.startswith("turnwise/") and s.id not in shown]


def floors_row(spec: EnvSpec, options: Options) -> list[str]:
    """Measure one environment; return the cells of its row."""
    with closing(make(spec.id)) as env:
        sizes = " / ".join(f"{len(env.tasks(split)):,}" for split in env.splits)
        what = (inspect.getdoc(type(env)) or "").partition("\n\n")[0].replace("\n", " ")
        chance = f"{env.chance_reward:g}"
        limits, speed = pace(env, options.seconds / 3)
    by_expert = [share(spec, split, options) for split in SPLITS] if hasattr(env, "expert") else []
    by_chance, by_nobody = attempt(spec, random_tool, options), attempt(spec, noop, options)
    reward = f"{fmean(e.reward for e in by_chance):.3f}" if by_chance else "–"
    rates = " / ".join(by_expert) or "–", rate(by_chance), rate(by_nobody)
    return [f"`{spec.id}`", what, sizes, limits, *rates, reward, chance, f"{speed:,.0f}"]


def share(spec: EnvSpec, split: str, options: Options) -> str:
    """Return how many of the tasks of a split the expert solved, as `200 of 200`."""
    with closing(make(spec.id)) as env:
        tasks = env.tasks(split)[: options.most]
    jobs = jobs_for(tasks, run_seed=0, split=split)
    settings = Settings(concurrency=options.concurrency)
    episodes = play(jobs, lambda: make(spec.id), ScriptedPolicy(expert), settings)
    return f"{sum(episode.success for episode in episodes)} of {len(tasks)}"


def rate(episodes: Sequence[Episode]) -> str:
    """Return the share that succeeded, with Wilson's 95 % interval and their number."""
    if not episodes:
        return "–"
    found = wilson(sum(e.success for e in episodes), len(episodes))
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}] n={found.n}"


def attempt(spec: EnvSpec, act: Act, options: Options) -> list[Episode]:
    """Play tasks, the first of the split first: all of a batch, then as many as there is time for.

    A batch is played to its end, since short episodes end first and are not like the others.
    """
    began, episodes = time.monotonic(), list[Episode]()
    with closing(make(spec.id)) as env:
        tasks = env.tasks(SPLIT)[: options.most]
    size, settings = options.concurrency, Settings(concurrency=options.concurrency)
    while size >= 1 and len(episodes) < len(tasks):
        jobs = jobs_for(tasks[len(episodes) :][:size], run_seed=0, split=SPLIT)
        episodes += play(jobs, lambda: make(spec.id), ScriptedPolicy(act), settings)
        spent = time.monotonic() - began
        size = int((options.seconds - spent) * len(episodes) / spent)
    return [episode for episode in episodes if episode.outcome.trainable]


def pace(env: Env, seconds: float) -> tuple[str, float]:
    """Return the turn limits that were met, and turns per second of one environment in `step`."""
    limits, turns, spent, end = set[int](), 0, 0.0, time.monotonic() + seconds
    for seed in count():
        env.reset(seed=seed, options={"split": SPLIT})
        limits.add(env.max_turns)
        over = False
        while not over:
            action = env.expert() if hasattr(env, "expert") else ""
            began = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(action)
            spent, turns = spent + time.perf_counter() - began, turns + 1
            over = terminated or truncated
        if time.monotonic() > end:
            break
    least, most = min(limits), max(limits)
    return (f"{least}" if least == most else f"{least} to {most}"), turns / spent


def knobs_row(spec: EnvSpec) -> list[str]:
    """Return the cells of an environment's row in the table of arguments."""
    given = dict(spec.kwargs)
    parameters = inspect.signature(spec.load()).parameters.values()
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in COMMON]
    shown = [f"`{p.name}={given.get(p.name, p.default)!r}`" for p in named]
    return [f"`{spec.id}`", ", ".join(shown) or "none"]


def rows_of(text: str) -> dict[str, list[str]]:
    """Return the rows of the first table in `text`, by the id in their first cell."""
    table = text.partition(line(KNOBS))[0]
    cells = [[cell.strip() for cell in row[1:-1].split(" | ")] for row in table.splitlines() if row]
    return {row[0].strip("` "): row for row in cells if row[0].strip().startswith("`")}


def line(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def wanted(id: str, options: Options, old: dict[str, list[str]]) -> bool:
    """Return whether an environment is to be measured."""
    return id not in old if options.missing else not options.only or id in options.only


def measured(options: Options, old: dict[str, list[str]]) -> Iterator[list[str]]:
    """Yield the row of each environment, measured or as it was."""
    for spec in measured_specs():
        if not wanted(spec.id, options, old):
            if spec.id in old:
                yield old[spec.id]
            continue
        began = time.monotonic()
        try:
            row = floors_row(spec, options)
        except (MissingExtra, SandboxError, TypeError, ValueError) as error:
            # Not installed here, or it wants an argument that only its user knows.
            print(f"{spec.id}: not measured: {type(error).__name__}: {error}", flush=True)
            row = old.get(spec.id) or [f"`{spec.id}`", "not measured", *"–" * (len(FLOORS) - 2)]
        print(f"{time.monotonic() - began:5.1f} s  {line(row)}", flush=True)
        yield row


def section(rows: Sequence[Sequence[str]]) -> str:
    """Return what stands between the marks."""
    more = ", ".join(f"`{id}`" for id in others())
    return "\n\n".join(
        [
            table(FLOORS, rows),
            f"Of the same class and not measured here: {more}.",
            table(KNOBS, [knobs_row(spec) for spec in measured_specs()]),
        ]
    )


def written(page: str, text: str) -> str:
    """Return `page` with `text` between the marks."""
    made: Callable[[re.Match[str]], str] = lambda _: f"{BEGIN}\n\n{text}\n\n{END}"  # noqa: E731
    return re.sub(f"{BEGIN}.*{END}", made, page, flags=re.DOTALL)


def main(options: Options) -> None:
    """Measure and write. Raises UsageError: `only` names what has no row."""
    if unknown := set(options.only) - {spec.id for spec in measured_specs()}:
        raise UsageError(f"no row for {', '.join(sorted(unknown))}: --only takes ids of the table")
    page = options.page.read_text()
    between = page.partition(BEGIN)[2].partition(END)[0]
    text = section(list(measured(options, rows_of(between))))
    options.page.write_text(written(page, text))


if __name__ == "__main__":
    raise SystemExit(run_script(lambda read: main(read(Options))))
