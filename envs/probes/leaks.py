"""The law of leaving: what environments took is given back when they are closed."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

from turnwise.envs.base import Env
from turnwise.envs.playing import Broken, Skipped, Subject, play, start
from turnwise.envs.probes.elsewhere import ask

SETTLE_S = (2.0, 0.5)
"""Threads and processes may take so long to end, after the first round and after the second: those
that end later have ended by then, and are no growth."""
MOST_KB = 64
"""Kilobytes that may stay of each environment."""
_MENDS = {
    "threads": "end in close() every thread that the environment started, and join it",
    "processes": "end in close() every process that the environment started, and wait for it",
    "descriptors": "close in close() every file, socket and pipe that the environment opened",
    "mounts": "unmount in close() what the environment mounted",
    "temporary files": "remove in close() what the environment put into the temporary folder",
    "kilobytes": "keep nothing of an episode on the class, in the module or in an unbounded cache",
}
_temporary: list[str] = []


def nothing_is_left_behind(subject: Subject) -> str:
    """Closed environments leave no thread, process, descriptor, mount, file or memory behind."""
    seeds = list(subject.seeds[:2])
    try:
        found = ask(subject, {"do": "leaks", "seeds": seeds, "seconds": subject.seconds})
    except Skipped:  # nobody else can make it: measure among whatever else goes on here
        found = measure(subject.make, seeds, subject.seconds)
    count = found["environments"]
    for kind, left in found["left"].items():
        if min(left) >= _too_many(kind, count):
            what = f"{count} environments left {left[-1]} {kind} behind when they were closed"
            raise Broken(what + found["where"], _MENDS[kind])
    return f"{count} environments, twice"


def _too_many(what: str, count: int) -> int:
    return MOST_KB * count if what == "kilobytes" else max(1, count // 2)


def measure(make: Callable[[], Env], seeds: Sequence[int], seconds: float) -> dict[str, Any]:
    """Return what closed environments left in each of two rounds, by kind.

    Args:
        make: Makes an environment.
        seeds: Of the episodes, the same in each round: what is kept per task is kept before.
        seconds: For each round, about.
    """
    count = _warm_up(make, seeds, seconds)
    tracemalloc.start()
    try:
        _round(make, seeds, count)
        rounds = [_held()]
        for seconds in SETTLE_S:
            _round(make, seeds, count)
            rounds.append(_settled(rounds[-1], count, seconds))
        left = {kind: _growth(kind, rounds) for kind in rounds[0]}
        leaks_memory = min(left["kilobytes"]) >= _too_many("kilobytes", count)
        where = _where(make, seeds, count) if leaks_memory else ""
    finally:
        tracemalloc.stop()
    return {"environments": count, "left": left, "where": where}


def _growth(kind: str, rounds: Sequence[dict[str, int]]) -> list[int]:
    return [after[kind] - before[kind] for before, after in pairwise(rounds)]


def _warm_up(make: Callable[[], Env], seeds: Sequence[int], seconds: float) -> int:
    """Play a few episodes, which fills caches and pools; return how many there is time for."""
    began = time.perf_counter()
    _round(make, seeds, 4)
    each = (time.perf_counter() - began) / 4
    return max(4, min(16, int(seconds / max(each, 1e-6) / 12)))  # tracing makes it slow


def _round(make: Callable[[], Env], seeds: Sequence[int], count: int) -> None:
    """Open and close environments: before an episode, in one, and after one."""
    for index, seed in enumerate(islice(cycle(seeds), count)):
        env = make()
        try:
            if index % 4:
                start(env, seed)
            if index % 2:
                play(env, seed)
        finally:
            env.close()


def _settled(before: dict[str, int], count: int, seconds: float) -> dict[str, int]:
    """Return what is held, once what is ending has ended."""
    end = time.monotonic() + seconds
    while True:
        held = _held()
        grown = any(held[kind] - before[kind] >= _too_many(kind, count) for kind in held)
        if not grown or time.monotonic() > end:
            return held
        time.sleep(0.1)


def _held() -> dict[str, int]:
    gc.collect()
    return {
        "threads": _entries("/proc/self/task") or threading.active_count(),
        "processes": len(_descendants(os.getpid())),
        "descriptors": _entries("/proc/self/fd"),
        "mounts": _lines("/proc/self/mountinfo"),
        "temporary files": sum(os.path.lexists(path) for path in _temporary),
        "kilobytes": tracemalloc.get_traced_memory()[0] // 1024,
    }


def watch_temporary_files() -> None:
    """Note from now on what this process makes in the temporary folder; it cannot be undone."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("tempfile.mkdtemp", "tempfile.mkstemp"):
            _temporary.append(args[0])

    sys.addaudithook(hook)


def _entries(folder: str) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:  # not Linux
        return 0


def _lines(file: str) -> int:
    try:
        return len(Path(file).read_bytes().splitlines())
    except OSError:
        return 0


def _descendants(pid: int) -> set[int]:
    """Return the processes below `pid`, those that have ended and were not waited for, too."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_bytes()
            except OSError:
                continue
            parents[int(name)] = int(stat.rsplit(b")", 1)[1].split()[1])
    found, size = {pid}, 0
    while size != len(found):
        size = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {pid}


def _where(make: Callable[[], Env], seeds: Sequence[int], count: int) -> str:
    """Return which line allocated most of what stays, as `; most of it in vault.py:12`."""
    gc.collect()
    before = tracemalloc.take_snapshot()
    _round(make, seeds, count)
    gc.collect()
    growth = tracemalloc.take_snapshot().compare_to(before, "lineno")
    ours = [g for g in growth if g.traceback[0].filename not in (__file__, tracemalloc.__file__)]
    if not ours:
        return ""
    line = max(ours, key=lambda one: one.size_diff).traceback[0]
    return f"; most of it was made in {Path(line.filename).name}:{line.lineno}"
