"""How long a turn of Repair takes: `python benchmarks/code_turns.py [--json]`.

    expert      reads, runs the tests, edits, runs them again, submits
    wandering   half of the turns are random calls, as of a model that has not learnt

Target: a turn at p50 within 10 ms, over all turns of both. A test run is real: the program runs in
a process of its own in the episode's box. A submission also opens a fresh box. Not a test: boxes
start on what the machine has left, and the load is printed, too.
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
Seconds = dict[str, list[float]]


def play(env: Any, agent: fuzz.Agent, index: int, spent: Seconds) -> None:
    """Play one episode, and note what each turn took under the tool that it called."""
    task, rng = env.tasks("train")[index], random.Random(index)
    began = time.perf_counter()
    observation, _ = env.reset(seed=index, options={"task": task})
    spent["reset"].append(time.perf_counter() - began)
    ended = False
    while not ended:
        action = agent(env, observation, rng)
        began = time.perf_counter()
        observation, _, terminated, truncated, info = env.step(action)
        seconds = time.perf_counter() - began
        ended = terminated or truncated
        called = info["calls"][0]["name"]
        spent[called if called in env.parts.tools else "malformed"].append(seconds)


def measure(name: str, agent: fuzz.Agent) -> tuple[list[dict[str, Any]], list[float]]:
    """Return a row per tool, and the seconds of all turns."""
    spent: Seconds = defaultdict(list)
    env = make("turnwise/Repair-v1", actions="command")
    try:
        for index in range(EPISODES):
            play(env, agent, index, spent)
    finally:
        env.close()
    turns = [s for tool, seconds in spent.items() if tool != "reset" for s in seconds]
    spent["all turns"] = turns
    return [row(name, tool, seconds) for tool, seconds in spent.items()], turns


def row(agent: str, tool: str, seconds: list[float]) -> dict[str, Any]:
    """Return count, median and 90th percentile in milliseconds."""
    ordered = sorted(seconds)
    p50, p90 = (round(ordered[int(len(ordered) * q)] * 1e3, 2) for q in (0.5, 0.9))
    return {"agent": agent, "turn": tool, "n": len(ordered), "p50": p50, "p90": p90}


def wandering(env: Any) -> fuzz.Agent:
    """Return the agent that asks the expert half of the time."""
    return fuzz.mixed_agent(env.tool_schemas(), expert=True)


def main() -> None:
    """Measure both agents."""
    rows, turns = measure("expert", fuzz.expert_agent)
    more, others = measure("wandering", wandering(make("turnwise/Repair-v1")))
    p50 = sorted([*turns, *others])[(len(turns) + len(others)) // 2] * 1e3
    verdict = "reached" if p50 <= TARGET_MS else "missed"
    facts = {"p50_ms": round(p50, 2), "target_ms": TARGET_MS, "verdict": verdict}
    show("turns of Repair, milliseconds", [*rows, *more], **facts)


if __name__ == "__main__":
    main()
