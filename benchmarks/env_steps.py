"""Steps of environments per second: `python benchmarks/env_steps.py [--json]`.

    bare        one in-process environment (guess a number within 10 turns), reset and step
    text        the same as a `TextEnv`, which keeps the books for its author
    pool        256 bare ones in an `EnvPool`: send to each, receive from each
    straggler   16 environments that block, one for 100 ms and the others for 5 ms a step, each sent
                its next action as soon as it has answered; 3010 steps/s are possible
    threads     the same 16 on threads of their own, without a pool: what the machine gives now

Targets: 250,000 (bare), 150,000 (pool) and 2,300 steps/s (straggler: 0.76 of the possible). Not a
test: all but the straggler are per CPU second, and a busy machine wakes sleepers late, so compare
the straggler with the threads beside it.
"""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from table import show

from turnwise.envs.base import Env, Response, TextEnv
from turnwise.envs.pool import EnvPool
from turnwise.envs.types import Task

TASKS = [Task(hidden={"i": i}) for i in range(20)]
ACTIONS = [str(number) for number in (10, 5, 15, 3, 12, 18, 7)]
PACES = [0.1] + [0.005] * 15


class Guess(Env):
    """Guess a number: "higher" or "lower", ten times at most."""

    fast = True

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self.secret, self.turn = (seed or 0) % 20, 0
        return "guess my number", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        number = int(action)
        hit = number == self.secret
        answer = "right" if hit else "higher" if number < self.secret else "lower"
        return answer, float(hit), hit, self.turn == 10, {"state": f"{number}"}


class TextGuess(TextEnv):
    """The same, written as authors do."""

    fast = True
    max_turns = 10

    def tasks(self, split: str) -> list[Task]:
        return TASKS

    def setup(self, task: Task, rng: random.Random) -> str:
        self.secret = rng.randrange(20)
        return "guess my number"

    def respond(self, action: str) -> Response:
        number = int(action)
        hit = number == self.secret
        answer = "right" if hit else "higher" if number < self.secret else "lower"
        return Response(answer, float(hit), terminated=hit, success=hit)


class Slow(Guess):
    """Blocks for `seconds` in each step and never ends."""

    fast = False

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self.seconds)
        return "on", 0.0, False, False, {}


def alone(make: Callable[[], Env]) -> Callable[[int], int]:
    """Play one environment; return the steps made."""

    def work(steps: int) -> int:
        env = make()
        env.reset(seed=0)
        for step in range(steps):
            _, _, terminated, truncated, _ = env.step(ACTIONS[step % 7])
            if terminated or truncated:
                env.reset(seed=step)
        return steps

    return work


def pooled(steps: int, size: int = 256) -> int:
    """Keep `size` environments going."""
    done = 0
    with EnvPool(Guess, size) as pool:
        for index in range(size):
            pool.send(index, "reset", seed=index)
        while done < steps:
            for index, value, _error, _seconds in pool.recv():
                if len(value) == 5:
                    done += 1
                    if value[2] or value[3]:
                        pool.send(index, "reset", seed=done)
                        continue
                pool.send(index, "step", ACTIONS[done % 7])
    return done


def straggler(seconds: float = 3.0) -> tuple[int, float]:
    """Keep 16 blocking environments going for `seconds`; return steps and wall seconds."""
    paces, done = iter(PACES), 0
    with EnvPool(lambda: Slow(next(paces)), len(PACES)) as pool:
        for index in range(len(PACES)):
            pool.send(index, "step", "go on")
        start = time.perf_counter()
        while (now := time.perf_counter()) - start < seconds:
            for answer in pool.recv(0.05):
                done += 1
                pool.send(answer.index, "step", "go on")
    return done, now - start


def threads(seconds: float = 3.0) -> tuple[int, float]:
    """The same environments without a pool: what the machine gives just now."""
    start, counts = time.perf_counter(), [0] * len(PACES)

    def work(index: int) -> None:
        env = Slow(PACES[index])
        while time.perf_counter() - start < seconds:
            env.step("go on")
            counts[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(PACES))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts), time.perf_counter() - start


def best(work: Callable[[int], int], steps: int, times: int = 5) -> tuple[float, float]:
    """Steps per CPU second and per second of wall time: the best of `times` runs."""
    found = []
    for _ in range(times):
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        done = work(steps)
        found.append((done / (time.process_time() - cpu), done / (time.perf_counter() - wall)))
    return max(found)


def main() -> None:
    """Measure all of them."""
    rows = []
    ways = (("bare", alone(Guess), 250_000), ("text", alone(TextGuess), ""))
    for name, work, target in (*ways, ("pool of 256", pooled, 150_000)):
        per_cpu, per_wall = best(work, 100_000)
        rows.append(_row(name, per_cpu, per_wall, target))
    for name, waiting, target in (("straggler", straggler, 2300), ("threads", threads, "")):
        cpu = time.process_time()
        steps, wall = waiting()
        rows.append(_row(name, steps / (time.process_time() - cpu), steps / wall, target))
    share = rows[3]["steps/s"] / rows[4]["steps/s"]
    show("steps of environments", rows, possible=3010, straggler_by_threads=f"{share:.2f}")


def _row(what: str, per_cpu: float, per_wall: float, target: int | str) -> dict[str, Any]:
    return {
        "what": what,
        "steps/CPU s": round(per_cpu),
        "steps/s": round(per_wall),
        "target": target,
    }


if __name__ == "__main__":
    main()
