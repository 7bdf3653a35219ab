"""Runs the calls of a program in a box, by `code_runner`, and compares on the host."""

from __future__ import annotations

import functools
import inspect
import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from turnwise.envs.builtin import code_runner
from turnwise.sandboxes.base import ExecResult, Sandbox

CPU_S, WALL_S = 0.5, 5.0
"""Of one run of all calls. The first is the program's own time, so that a busy machine does not
change what an agent reads; the second is for a program that sleeps."""
KERNEL = "tests"

# Runs in a kernel of the box: starts the runner with a fixed hash seed, and speaks with it.
_PROGRAM = """
import struct, subprocess, sys
def tw_start():
    global tw_runner
    tw_runner = subprocess.Popen(
        [sys.executable, "-S", "-s", "-c", {source!r}], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={{"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin"}}, cwd="/tmp",
    )
def tw_ask(text):
    if tw_runner.poll() is not None:  # a program of the agent's may have ended it
        tw_start()
    data = text.encode()
    try:
        tw_runner.stdin.write(struct.pack(">I", len(data)) + data)
        tw_runner.stdin.flush()
        size = struct.unpack(">I", tw_runner.stdout.read(4))[0]
        print(tw_runner.stdout.read(size).decode())
    except BaseException:  # an answer that comes later must not be taken for the next one
        tw_runner.kill()
        tw_runner.wait()
        raise
if "tw_runner" not in globals() or tw_runner.poll() is not None:
    tw_start()
"""
_IMPORTED = "import collections, datetime, functools, heapq, itertools, math, bisect, string\n"


@dataclass(frozen=True, slots=True)
class Call:
    """One test: a function of the program and what it is given, as JSON holds it."""

    module: str
    function: str
    args: tuple[Any, ...]

    def to_json(self) -> list[Any]:
        """Return the call as the runner takes it."""
        return [self.module, self.function, list(self.args)]

    def __str__(self) -> str:
        return f"{self.function}({', '.join(map(repr, self.args))})"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to, by the word of a process that the program has in its power."""

    kind: Literal["value", "raised", "late", "ended"]
    text: str = ""

    def __str__(self) -> str:
        if self.kind == "value":
            return f"gave {self.text}"
        if self.kind == "raised":
            return f"raised {self.text}"
        return "took too long" if self.kind == "late" else "did not run: the program had ended"


_started: weakref.WeakSet[Sandbox] = weakref.WeakSet()
"""Boxes whose kernel has the program, as far as is known here."""


def start_runner(box: Sandbox) -> None:
    """Have the runner up before it is asked; for boxes that are kept warm."""
    if box.cell(_program(), kernel=KERNEL).exit_code == 0:
        _started.add(box)


@functools.cache
def _program() -> str:
    source = inspect.getsource(code_runner) + "\n" + _IMPORTED + "serve()\n"
    return _PROGRAM.format(source=source)


def outcomes(box: Sandbox, files: Mapping[str, str], calls: Sequence[Call]) -> list[Outcome]:
    """Return one outcome per call, in order; what was not said is `late` or `ended`.

    Args:
        box: it may be one in which the agent's code has run, if nothing is paid for the result.
        files: name to text of the program's modules; written anew for each run.
        calls: run in one process, one after another.

    Raises:
        SandboxDied: the box is gone.
    """
    request = {"files": dict(files), "calls": [call.to_json() for call in calls]}
    text = json.dumps({**request, "cpu_s": CPU_S, "wall_s": WALL_S})
    ran = _asked(box, f"tw_ask({text!r})")
    said, ended = _read(ran.stdout)
    late = ran.timed_out or ended == "late"
    missing = [Outcome("late" if late else "ended")]
    missing += [Outcome("ended")] * len(calls)
    return [*said[: len(calls)], *missing][: len(calls)]


def _asked(box: Sandbox, code: str) -> ExecResult:
    """Ask the runner; one cell is enough where the program is known to be there."""
    if box in _started:
        ran = box.cell(code, kernel=KERNEL)
        if not ran.state_lost or ran.timed_out:
            return ran
        _started.discard(box)  # its kernel had ended, by the hand of an earlier program
    start_runner(box)
    return box.cell(code, kernel=KERNEL)


def _read(answer: bytes) -> tuple[list[Outcome], str]:
    """Return what the program's process said, as far as it makes sense; never raises."""
    try:
        value = json.loads(answer)
        lines, ended = str(value["said"]).splitlines(), str(value["ended"])
    except (ValueError, TypeError, KeyError):
        return [], "ended"
    said: list[Outcome] = []
    for line in lines:
        if (outcome := _outcome(line)) is None:
            break
        said.append(outcome)
    return said, ended


def _outcome(line: str) -> Outcome | None:
    try:
        kind, text = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    if kind not in ("value", "raised") or not isinstance(text, str):
        return None
    return Outcome(kind, text)
