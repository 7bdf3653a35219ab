"""A call with a deadline, and calls side by side: on threads that are left behind if they hang.

A thread cannot be ended from outside, so these are daemons: whoever gave up on one can still exit.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
S = TypeVar("S")
_NAME = "turnwise-check"
_STDLIB = sysconfig.get_path("stdlib")
_OURS = str(Path(__file__).parent)
_CHECKER = {str(Path(_OURS).parent / name) for name in ("check.py", "playing.py", "fuzz.py")}


class Overdue(Exception):
    """A call did not come back in time; the message says where it is."""


def limited(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns.

    Raises:
        Overdue: it took longer. It goes on, on a thread that nobody waits for.
        BaseException: whatever it raises.
    """
    result = _Result(call)
    result.thread.join(seconds)
    if result.thread.is_alive():
        raise Overdue(_whereabouts())
    return result.value()


def side_by_side(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """Return `function` of each item, each on a thread of its own, once all of them are there."""
    todo = list(items)
    gate = threading.Barrier(len(todo))

    def one(item: S) -> T:
        gate.wait()
        return function(item)

    results = [_Result(partial(one, item)) for item in todo]
    for result in results:
        result.thread.join()
    return [result.value() for result in results]


class _Result:
    """A call on a thread, and what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=_NAME, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def value(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


def _whereabouts() -> str:
    """Return where the environment's code is now, as ` in vault.py:31 (dial)`, or nothing."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        if thread.name == _NAME and (found := _place(frames.get(thread.ident or 0))):
            return found
    return ""


def _place(frame: FrameType | None) -> str:
    stack = [] if frame is None else traceback.extract_stack(frame)
    for line in reversed(stack):
        if not line.filename.startswith((_STDLIB, _OURS)) and line.filename not in _CHECKER:
            return f" in {Path(line.filename).name}:{line.lineno} ({line.name})"
    return ""
