"""What a test run tells the agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from turnwise.envs.builtin.code_box import Outcome
from turnwise.envs.builtin.repair_world import Test

MAX_FAILURES, MAX_CHARS = 4, 240
"""Tests that are told of in full, and characters of each."""

Report = Callable[[Sequence[Test], Sequence[Outcome]], str]


def passes(test: Test, got: Outcome) -> bool:
    """Whether the outcome is the value that a right program returns."""
    return got.kind == "value" and got.text == test.expected


def count(tests: Sequence[Test], got: Sequence[Outcome]) -> str:
    """Tell how many tests pass."""
    passed = sum(map(passes, tests, got))
    return f"{passed} of {len(tests)} tests pass"


def names(tests: Sequence[Test], got: Sequence[Outcome]) -> str:
    """Tell also which tests fail."""
    failed = [f"test_{i}" for i, test in enumerate(tests, 1) if not passes(test, got[i - 1])]
    return "\n".join([count(tests, got), *([f"failed: {' '.join(failed)}"] if failed else [])])


def full(tests: Sequence[Test], got: Sequence[Outcome]) -> str:
    """Tell also what the first failing ones gave."""
    told = [count(tests, got)]
    for number, (test, outcome) in enumerate(zip(tests, got, strict=True), 1):
        if not passes(test, outcome):
            expected = f", expected {test.expected}" if outcome.kind == "value" else ""
            told.append(f"test_{number}: {test.call} {outcome}{expected}"[:MAX_CHARS])
    if (more := len(told) - 1 - MAX_FAILURES) > 0:
        told[MAX_FAILURES + 1 :] = [f"and {more} more"]
    return "\n".join(told)


REPORTS: dict[str, Report] = {"full": full, "names": names, "count": count}
"""Every report by its name."""
