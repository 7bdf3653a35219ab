"""Inside the box: runs the unittest suite of a folder, each test in a process of its own.

Three kinds of processes: one that never loads the folder's code and keeps the tally, one that
loads it and forks, and one for each test. A test has passed if its process says so with a word
that is made anew for each run, once, and then ends well. The word is held by no module and no
object that could be looked up; but the process that says it is the one that the tested code runs
in, so this makes forging hard and not impossible: see `repo_guard` for what may run at all.

Its text is what runs there, by `python3 -c`. Standard library of Python 3.8 only.
"""

from __future__ import annotations

import json
import os
import sys
import unittest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

MARK = "turnwise-results "
ENDED_EARLY = 70
"""Exit code where the folder's code ended the process that loads it."""


def _told(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


class Result(unittest.TestResult):
    """What went wrong in one test; empty for nothing, None if it has not even begun.

    What a verdict needs is bound when this text is read: a name that the folder's code changes
    later changes nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.why: str | None = None

    def startTest(self, test: Any) -> None:
        self.why = ""

    def addError(self, test: Any, error: Any, told: Any = _told) -> None:
        self.why = told(error[1])

    def addFailure(self, test: Any, error: Any, told: Any = _told) -> None:
        self.why = told(error[1])

    def addSkip(self, test: Any, reason: str) -> None:
        self.why = f"skipped: {reason}"[:200]

    def addSubTest(self, test: Any, subtest: Any, error: Any, told: Any = _told) -> None:
        if error is not None:
            self.why = told(error[1])

    def addUnexpectedSuccess(self, test: Any) -> None:
        self.why = "unexpected success"


def _flat(suite: Any) -> Iterator[Any]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _flat(test)
        else:
            yield test


def _say(pipe: int, word: str) -> Callable[..., None]:
    """Return a function that writes one line to the process that keeps the tally."""
    dumps, write = json.dumps, os.write

    def say(*what: Any) -> None:
        write(pipe, (dumps([word, *what]) + "\n").encode())

    return say


def _run(say: Callable[..., None], number: int, test: Any, result: Result) -> None:
    me, pid, leave = os.getpid(), os.getpid, os._exit
    unittest.TestSuite([test]).run(result)
    if pid() == me:  # else it is a child of a test that has come back
        say("why", number, "did not run" if result.why is None else result.why)
        leave(0)


def _load_and_fork(say: Callable[..., None]) -> None:
    """Find the tests, say their names, and run each in a child."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    fork, wait, leave, run, result = os.fork, os.waitpid, os._exit, _run, Result
    sys.path.insert(0, os.getcwd())
    tests = list(_flat(unittest.defaultTestLoader.discover(".", top_level_dir=".")))
    for number, test in enumerate(tests):
        say("name", number, test.id())
    for number, test in enumerate(tests):
        child = fork()
        if child == 0:
            try:
                run(say, number, test, result())
            finally:
                leave(1)
        say("end", number, wait(child, 0)[1])
    say("done", len(tests), 0)


def _tally(lines: Any, word: str) -> dict[str, str] | None:
    """Return each test's name and what went wrong; None if not all was said."""
    said: dict[str, dict[int, list[Any]]] = {"name": {}, "why": {}, "end": {}, "done": {}}
    for line in lines:
        try:
            claimed, what, number, value = json.loads(line)
            if claimed == word:
                said[what].setdefault(number, []).append(value)
        except (ValueError, TypeError, KeyError):
            continue
        if said["done"]:
            return {name[0]: _verdict(said, at) for at, name in said["name"].items()}
    return None


def _verdict(said: dict[str, dict[int, list[Any]]], number: int) -> str:
    whys, ends = said["why"].get(number, []), said["end"].get(number, [])
    if ends != [0] or len(whys) != 1:
        return "the test ended the process"
    return str(whys[0])


def main() -> None:
    """Run the suite of the working folder; the last line of what is printed has the results."""
    word = os.urandom(16).hex()
    back, pipe = os.pipe()
    if os.fork() == 0:
        os.close(back)
        try:
            _load_and_fork(_say(pipe, word))
        finally:
            os._exit(0)
    os.close(pipe)
    with os.fdopen(back, "rb") as lines:
        found = _tally(lines, word)
    if found is None:
        os._exit(ENDED_EARLY)
    with os.fdopen(1, "w") as out:
        out.write(MARK + json.dumps(found) + "\n")
    os._exit(0)
