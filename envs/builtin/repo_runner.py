"""Inside the box: runs the unittest suite of a folder, and says how each test fared.

Its text is what runs there, by `python3 -c`. Standard library of Python 3.8 only.
"""

from __future__ import annotations

import json
import os
import sys
import unittest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MARK = "turnwise-results "


class Result(unittest.TestResult):
    """Each test's name and what went wrong; empty for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def startTest(self, test: Any) -> None:
        self.found[test.id()] = ""

    def addError(self, test: Any, error: Any) -> None:
        self.found[test.id()] = _told(error[1])

    def addFailure(self, test: Any, error: Any) -> None:
        self.found[test.id()] = _told(error[1])

    def addSkip(self, test: Any, reason: str) -> None:
        self.found[test.id()] = f"skipped: {reason}"

    def addSubTest(self, test: Any, subtest: Any, error: Any) -> None:
        if error is not None:
            self.found[test.id()] = _told(error[1])

    def addUnexpectedSuccess(self, test: Any) -> None:
        self.found[test.id()] = "unexpected success"


def _told(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def _flat(suite: Any) -> Iterator[Any]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _flat(test)
        else:
            yield test


def main() -> None:
    """Run the suite of the working folder; the last line of what is printed has the results."""
    out, dumps, leave = os.fdopen(os.dup(1), "w"), json.dumps, os._exit
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.path.insert(0, os.getcwd())
    result = Result()
    tests = list(_flat(unittest.defaultTestLoader.discover(".", top_level_dir=".")))
    unittest.TestSuite(tests).run(result)
    out.write(MARK + dumps(result.found) + "\n")
    out.flush()
    leave(0)
