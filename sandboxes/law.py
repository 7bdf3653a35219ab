"""What a law of a sandbox is, and the words in which one is written."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from turnwise.sandboxes.base import (
    Limits,
    Sandbox,
    SandboxSpec,
)

LIMITS = Limits(
    memory_mb=96, pids=24, disk_mb=4, inodes=500, output_bytes=2000, file_bytes=1 << 20, wall_s=15.0
)
Test = Callable[["Trial", Sandbox], str | None]


class Broken(AssertionError):
    """A law does not hold; says what was seen."""


class Skipped(Exception):
    """A law cannot be tried here; says why."""


@dataclass(frozen=True)
class Trial:
    """How laws get further boxes."""

    open: Callable[[SandboxSpec], Sandbox]

    def box(self, **limits: Any) -> Sandbox:
        """A box of its own, with some limits changed."""
        return self.open(SandboxSpec(limits=replace(LIMITS, **limits)))


@dataclass(frozen=True)
class Law:
    """A promise of `Sandbox`. `test` returns what was seen, or raises `Broken`."""

    name: str
    kind: str
    why: str
    mend: str
    test: Test
    needs: frozenset[str] = frozenset()


def added_to(laws: list[Law]) -> Callable[..., Callable[[Test], Test]]:
    """A decorator that adds a law to `laws`."""

    def law(kind: str, mend: str, needs: str = "") -> Callable[[Test], Test]:
        """Add a law: the function's name is the law's, its docstring says why."""

        def add(test: Test) -> Test:
            name = test.__name__.replace("_", " ")
            why = " ".join((inspect.getdoc(test) or "").split())
            laws.append(Law(name, kind, why, mend, test, frozenset(needs.split())))
            return test

        return add

    return law


def require(good: object, seen: object) -> None:
    """Raise `Broken` with what was seen unless `good`."""
    if not good:
        raise Broken(f"{seen!s:.300}")


def refuses(
    what: Callable[[], object], kinds: type[Exception] | tuple[type[Exception], ...]
) -> Any:
    """The error of one of `kinds` that `what` raises; any other outcome breaks the law."""
    try:
        got = what()
    except kinds as error:
        return error
    except Exception as error:
        raise Broken(f"raised {type(error).__name__}: {error}") from None
    raise Broken(f"was not refused, and returned {got!r:.100}")
