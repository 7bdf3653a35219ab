"""Turns of a `ToolEnv` per second, by call format: `python benchmarks/tool_env.py [--json]`.

    parse       text of a call to a `ToolCall`, alone
    step        parse, dispatch to a tool of one int, answer, turn reward: all of `ToolEnv.step`
    record      the same, and each turn written to an episode record (JSON, hash chain, file)

The world is a number to guess within ten turns; it costs next to nothing. Target: 10,000 turns per
second recorded, for hermes and command. Per CPU second, best of five: a busy machine slows the
clock on the wall, not this.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from table import show

from turnwise.agents.record import RecordWriter
from turnwise.envs.actions import FORMATS
from turnwise.envs.tool_env import EpisodeView, ToolEnv
from turnwise.envs.tools import reward, tool
from turnwise.envs.types import Episode, Segment, Task, Turn

TASKS = [Task(hidden={"i": i}) for i in range(20)]
TARGET = 10_000


class Guess(ToolEnv):
    """Find a number."""

    max_turns = 10

    def tasks(self, split: str) -> list[Task]:
        """Return twenty tasks."""
        return TASKS

    def setup(self, task: Task, rng: random.Random) -> str:
        """Choose the number."""
        self.secret, self.hit = rng.randrange(20), False
        return "guess my number"

    @tool
    def guess(self, number: int) -> str:
        """Try a number."""
        self.hit = number == self.secret
        return "right" if self.hit else "higher" if number < self.secret else "lower"

    @reward(turn=True)
    def right(self, episode: EpisodeView) -> float:
        """Pay for the number."""
        return float(self.hit)


def parsing(name: str) -> Callable[[int], None]:
    """Return the work of parsing so many actions."""
    actions, parse = _actions(name), FORMATS[name].parse if name != "boxed" else _boxed().parse

    def work(turns: int) -> None:
        for turn in range(turns):
            parse(actions[turn % 7])

    return work


def stepping(name: str, record: RecordWriter | None = None) -> Callable[[int], None]:
    """Return the work of playing so many turns, ten to an episode."""
    actions, env = _actions(name), Guess(actions=name)

    def work(turns: int) -> None:
        for start in range(0, turns, 10):
            observation, info = env.reset(seed=start)
            task, played = info["task"], []
            for turn in range(10):
                action = actions[turn % 7]
                read = observation
                observation, reward, _, _, info = env.step(action)
                if record is not None:
                    played.append(_turn(read, action, reward, info))
            if record is not None:
                record.append(_episode(start, task, played))

    return work


def _turn(read: str, action: str, reward: float, info: dict[str, Any]) -> Turn:
    return Turn(
        observation=read,
        action=action,
        calls=tuple(info["calls"]),
        reward=reward,
        rewards=info["rewards"],
        state_after=info["state"],
    )


def _episode(index: int, task: Task, turns: list[Turn]) -> Episode:
    segments = (Segment(turns=tuple(turns)),)
    return Episode(id=f"e{index}", env_id="Guess", task=task, segments=segments)


def _boxed() -> Any:
    return Guess(actions="boxed").format


def _actions(name: str) -> list[str]:
    env = Guess(actions=name)
    return [env.call_text("guess", number=number) for number in (10, 5, 15, 3, 12, 18, 7)]


def per_cpu_second(work: Callable[[int], None], turns: int, times: int = 5) -> int:
    """Return the turns per CPU second, the best of `times` runs."""
    best = 0.0
    for _ in range(times):
        gc.collect()
        start = time.process_time()
        work(turns)
        best = max(best, turns / (time.process_time() - start))
    return round(best)


def main() -> None:
    """Measure every format."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            with RecordWriter(Path(folder) / name) as record:
                rows.append(
                    {
                        "format": name,
                        "parse/CPU s": per_cpu_second(parsing(name), 20_000),
                        "step/CPU s": per_cpu_second(stepping(name), 5_000),
                        "record/CPU s": per_cpu_second(stepping(name, record), 5_000),
                        "target": TARGET if name in ("hermes", "command") else "",
                    }
                )
    show("turns of a ToolEnv", rows)


if __name__ == "__main__":
    main()
