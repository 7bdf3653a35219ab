"""`turnwise eval`: measure a policy on held-out tasks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, arg

from turnwise.agents.evaluate import FLOORS, evaluate
from turnwise.agents.rollout import Settings
from turnwise.agents.score import Report
from turnwise.cli.display import console, print_json, title
from turnwise.cli.failures import FAILED, INFRASTRUCTURE
from turnwise.cli.options import UsageError, json_object
from turnwise.cli.policies import SCRIPTED, Player, language_model, scripted, served
from turnwise.cli.scores import score_rows, scores
from turnwise.envs.registry import make
from turnwise.envs.types import Episode, Stop, Task


@dataclass(frozen=True)
class Options:
    """Measure a policy: success with a confidence interval, beside what no skill reaches.

    Episodes go into a record as they end. The same command again plays only what is missing.

    example:
      turnwise eval turnwise/FileHunt-v1 --policy runs/demo/rl/model --tasks 400 --floor 0.8
    """

    env: Annotated[Positional[str], arg(metavar="ENV")]
    """An id that `turnwise list` shows, or `module:Class`."""
    policy: str = "expert"
    """`expert`, `random`, `noop`, the folder or name of a model, or `openai:MODEL@URL`: a model on
    an OpenAI-compatible server, whose key is in OPENAI_API_KEY. A model is shown as many past turns
    as its folder notes, else all: see --recall of `turnwise train`."""
    env_kwargs: str = "{}"
    """JSON object of the environment's arguments, as '{"depth": 3}'."""
    split: str = "test"
    """Whose tasks: `train`, `dev` or `test`."""
    tasks: int = 100
    """How many; fewer where the split has fewer."""
    first_task: int = 0
    """Index of the first one."""
    replicas: int = 1
    """Attempts per task; more give pass@k."""
    floor: float | None = None
    """Exit 2 if success is below this."""
    skip_floors: bool = False
    """Do not play the random and the idle policy beside it."""
    by: tuple[str, ...] = ()
    """Task fields to break success down by; without any, `depth` where tasks have it."""
    record: Path | None = None
    """Where episodes go; by default a file in runs/eval named after environment and policy."""
    retry_masked: bool = False
    """Play again the episodes that an error of machine or environment spoilt."""
    seed: int = 0
    """Of the environments and of what a model samples."""
    temperature: float = 1.0
    """Of a model; 0 is greedy."""
    max_new_tokens: int = 64
    """Tokens of a model's action, at most."""
    max_tokens: int = 1024
    """Tokens of a model's episode, all that it reads and writes together, at most; of one prompt
    and its action, where the model recalls its last turns alone."""
    concurrency: int = 64
    """Episodes that are live at once."""
    threads: int = 1
    """Threads of torch."""
    json: bool = False
    """Print the report as a JSON object."""


@dataclass
class Tally:
    """What was played in this process."""

    played: int = 0
    solved: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    actions: int = 0
    """Of a model: those with tokens."""
    cut: int = 0
    """Actions that the limit of tokens cut off."""
    unread: int = 0
    """Episodes whose opening alone is too long."""

    def count(self, episode: Episode) -> None:
        """Take one more episode."""
        self.played += 1
        self.solved += episode.success
        self.actions += sum(bool(turn.action_ids) for turn in episode.turns)
        self.cut += sum(turn.finish == "length" for turn in episode.turns)
        self.unread += not episode.turns and episode.stop is Stop.MAX_TOKENS
        if not episode.outcome.trainable:
            self.lost[episode.error or episode.outcome.value] += 1

    def __str__(self) -> str:
        return f"{self.played} episodes played, {self.solved} solved"


def run(options: Options) -> int:
    """Evaluate, print the report, and return the exit code."""
    env_kwargs = json_object(options.env_kwargs, "--env-kwargs")
    make_env = partial(make, options.env, **env_kwargs)
    tasks = _tasks(make_env, options)
    player, tally = _player(options), Tally()
    record = options.record or _record(options)
    with console(stderr=True).status("starting") as status:

        def watch(episode: Episode) -> None:
            tally.count(episode)
            status.update(str(tally))

        report = evaluate(
            make_env,
            tasks,
            player.policy,
            Settings(concurrency=options.concurrency, max_tokens=options.max_tokens),
            record_path=record,
            run_seed=options.seed,
            split=options.split,
            replicas=options.replicas,
            by=options.by or _depth(tasks),
            floors={} if options.skip_floors else FLOORS,
            info={"env": options.env, "env_kwargs": env_kwargs, **player.identity},
            retry_masked=options.retry_masked,
            watch=watch,
        )
    return _conclude(options, report, len(tasks), tally)


def _tasks(make_env: Any, options: Options) -> Sequence[Task]:
    with closing(make_env()) as env:
        there = env.tasks(env.known_split(options.split))
    first, end = options.first_task, min(options.first_task + options.tasks, len(there))
    if not 0 <= first < end:
        raise UsageError(
            f"split {options.split!r} has {len(there)} tasks, asked for {options.tasks} from "
            f"number {first} on"
        )
    return there[first:end]


def _player(options: Options) -> Player:
    if options.policy in SCRIPTED:
        return scripted(options.policy)
    if options.policy.startswith("openai:"):
        sampling = {"temperature": options.temperature, "max_new_tokens": options.max_new_tokens}
        return served(options.policy, **sampling)  # type: ignore[arg-type]
    return language_model(
        options.policy,
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        max_tokens=options.max_tokens,
        slots=options.concurrency,
        threads=options.threads,
    )


def _record(options: Options) -> Path:
    name = re.sub(r"[^\w.]+", "-", f"{options.env}.{options.policy}.{options.split}")
    return Path("runs/eval") / f"{name.strip('-.')}.jsonl"


def _depth(tasks: Sequence[Task]) -> tuple[str, ...]:
    return ("depth",) if "depth" in tasks[0].to_json() else ()


def _conclude(options: Options, report: Report, tasks: int, tally: Tally) -> int:
    value, wanted = report.success.value, options.floor
    passed = wanted is None or value >= wanted
    lost = report.masked == report.episodes
    if options.json:
        facts = {"env": options.env, "policy": options.policy, "floor": wanted, "passed": passed}
        print_json({**facts, **report.to_json(), "lost": dict(tally.lost), "cut": tally.cut})
    else:
        console().print(title(options.env, f"{options.policy} · {tasks} tasks of {options.split}"))
        _show(console(), options, report, tally)
    if lost:
        return INFRASTRUCTURE
    return 0 if passed else FAILED


def _show(out: Console, options: Options, report: Report, tally: Tally) -> None:
    out.print(scores("", [("policy", report.success), *_floors(report)]))
    for rows in score_rows(report):
        out.print()
        out.print(scores(*rows))
    out.print()
    for line in _limits(options, tally):
        out.print(Text(line, style="yellow"))
    for reason, count in tally.lost.most_common(3):
        out.print(Text(f"masked {count}x: {reason}", style="yellow"))
    if report.masked:
        out.print(Text(f"masked {report.masked} of {report.episodes}; --retry-masked plays again"))
    if options.floor is not None:
        word = "reached" if report.success.value >= options.floor else "missed"
        out.print(Text(f"floor {options.floor:g} {word}"))
    out.print(Text(f"record {report.record}", style="dim"))


def _limits(options: Options, tally: Tally) -> Iterator[str]:
    """Say where a limit, rather than the model, decided what was played."""
    if tally.unread:
        what = (
            f"{tally.unread} episodes ended before their first turn: their opening is longer than"
        )
        yield f"{what} --max-tokens {options.max_tokens}; raise it"
    if tally.cut:
        what = f"{tally.cut} of {tally.actions} actions were cut at"
        yield f"{what} --max-new-tokens {options.max_new_tokens}; raise it"


def _floors(report: Report) -> list[tuple[str, Any]]:
    return [(f"{name} (floor)", floor.success) for name, floor in report.floors.items()]
