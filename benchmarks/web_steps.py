"""Steps of web environments per second: `python benchmarks/web_steps.py [--json]`.

    shop text       Shop's expert, as text, one after another in this process
    forms text      Forms' expert, the same way
    shop browser    Shop's expert in headless Chromium, one tab at a time
    forms browser   Forms' expert, the same way
    shop shots      as `shop browser`, a picture taken after each step
    shop 4 tabs     as `shop browser`, four episodes at once in one browser

A step is asking the expert and acting; starting the box or the browser is not counted, opening an
episode is. `cpu_ms` is processor time per step: of this process, its boxes and its browser.
Targets: 500 (text) and 10 steps/s (browser). Not a test: on a busy machine compare `cpu_ms`.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from table import show

from turnwise.envs.registry import make
from turnwise.envs.web.chromium import close_idle


def episodes(env: Any, first: int, count: int) -> int:
    """Play `count` tasks by the expert and return the number of steps."""
    steps, tasks = 0, env.tasks("train")
    for index in range(first, first + count):
        env.reset(seed=index, options={"task": tasks[index]})
        ended = False
        while not ended:
            *_, terminated, truncated, info = env.step(env.expert())
            steps, ended = steps + 1, terminated or truncated
        assert info["success"], (env.env_id, index)
    return steps


def measured(id: str, count: int, tabs: int = 1, **options: Any) -> dict[str, Any]:
    """Steps per second of wall clock, and processor time per step."""
    envs = [make(id, actions="command", **options) for _ in range(tabs)]
    try:
        for env in envs:
            episodes(env, 0, 1)
        cpu, began = _cpu_s(), time.perf_counter()
        with ThreadPoolExecutor(tabs) as pool:
            firsts = range(1, 1 + 10 * tabs, 10)
            steps = sum(pool.map(episodes, envs, firsts, [count] * tabs))
        seconds, spent = time.perf_counter() - began, _cpu_s() - cpu
    finally:
        for env in envs:
            env.close()
    return {"steps/s": round(steps / seconds, 1), "cpu_ms": round(1e3 * spent / steps, 2)}


def _cpu_s() -> float:
    """Processor seconds so far of this process and all below it."""
    stats, below = _stats(), defaultdict(list)
    for pid, (parent, _) in stats.items():
        below[parent].append(pid)
    todo, ticks = [os.getpid()], 0
    while todo:
        pid = todo.pop()
        ticks += stats[pid][1]
        todo += below[pid]
    return ticks / os.sysconf("SC_CLK_TCK")


def _stats() -> dict[int, tuple[int, int]]:
    """(parent, ticks) of every process; the ticks are also those of its children that ended."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            found[int(name)] = int(fields[1]), sum(map(int, fields[11:15]))
    return found


def main() -> None:
    """Measure and show."""
    browser: dict[str, Any] = {"mode": "browser"}
    ways = [
        ("shop text", "Shop", 60, 1, {}, 500),
        ("forms text", "Forms", 60, 1, {}, 500),
        ("shop browser", "Shop", 4, 1, browser, 10),
        ("forms browser", "Forms", 4, 1, browser, 10),
        ("shop shots", "Shop", 4, 1, {**browser, "pictures": True}, 10),
        ("shop 4 tabs", "Shop", 2, 4, browser, 10),
    ]
    rows = [
        {
            "what": what,
            **measured(f"turnwise/{name}-v1", count, tabs, **options),
            "target": goal,
        }
        for what, name, count, tabs, options, goal in ways
    ]
    close_idle()
    show("steps of web environments", rows)


if __name__ == "__main__":
    main()
