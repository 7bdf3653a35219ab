"""How long a turn of Repair takes: `python benchmarks/code_turns.py [--json]`.

    expert      reads, runs the tests, edits, runs them again, submits
    wandering   half of the turns are random calls, as of a model that has not learnt

Target: a turn at p50 within 10 ms, over the expert's turns alone: random calls are mostly refused,
which takes no time. A test run is real: the program runs in a process of its own in the episode's
box. A submission also opens a fresh box. `cpu_ms` is the processor time of a turn's median in this
process, its boxes left out. Not a test: boxes start on what the machine has left, and the load is
printed, too.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from typing import Any

from table import show

from turnwise.envs import fuzz
from turnwise.envs.registry import make

EPISODES, TARGET_MS = 60, 10.0
Seconds = dict[str, list[tuple[float, float]]]
"""Of wall clock and of this process's processor time, by tool."""


class Watch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return the seconds of wall clock and of processor time."""
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


def play(env: Any, agent: fuzz.Agent, index: int, spent: Seconds) -> None:
    """Play one episode, and note what each turn took under the tool that it called."""
    task, rng = env.tasks("train")[index], random.Random(index)
    watch = Watch()
    observation, _ = env.reset(seed=index, options={"task": task})
    spent["reset"].append(watch.read())
    ended = False
    while not ended:
        action = agent(env, observation, rng)
        watch = Watch()
        observation, _, terminated, truncated, info = env.step(action)
        seconds = watch.read()
        ended = terminated or truncated
        called = info["calls"][0]["name"]
        spent[called if called in env.parts.tools else "malformed"].append(seconds)


def measure(name: str, agent: fuzz.Agent) -> list[dict[str, Any]]:
    """Return a row per tool, and last the one of all turns."""
    spent: Seconds = defaultdict(list)
    env = make("turnwise/Repair-v1", actions="command")
    try:
        for index in range(EPISODES):
            play(env, agent, index, spent)
    finally:
        env.close()
    all_turns = [s for tool, seconds in spent.items() if tool != "reset" for s in seconds]
    spent["all turns"] = all_turns
    return [row(name, tool, seconds) for tool, seconds in spent.items()]


def row(agent: str, tool: str, seconds: list[tuple[float, float]]) -> dict[str, Any]:
    """Return count, median and 90th percentile in milliseconds, and the median of the processor."""
    wall, cpu = (sorted(column) for column in zip(*seconds, strict=True))
    middle, tail = len(wall) // 2, int(len(wall) * 0.9)
    times = {"p50": wall[middle], "p90": wall[tail], "cpu_ms": cpu[middle]}
    rounded = {name: round(value * 1e3, 2) for name, value in times.items()}
    return {"agent": agent, "turn": tool, "n": len(wall), **rounded}


def wandering(env: Any) -> fuzz.Agent:
    """Return the agent that asks the expert half of the time."""
    return fuzz.mixed_agent(env.tool_schemas(), expert=True)


def main() -> None:
    """Measure both agents; the expert's turns are judged."""
    rows = measure("expert", fuzz.expert_agent)
    p50 = rows[-1]["p50"]
    rows += measure("wandering", wandering(make("turnwise/Repair-v1")))
    verdict = "reached" if p50 <= TARGET_MS else "missed"
    facts = {"p50_ms": p50, "target_ms": TARGET_MS, "verdict": verdict}
    show("turns of Repair, milliseconds", rows, **facts)


if __name__ == "__main__":
    main()
