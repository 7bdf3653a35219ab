"""Ctrl-C ends a run after the present step, saved; a second one ends it at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

PROMISE = "stopping after this step, saved; once more stops at once and loses the step"


class Interrupt:
    """While entered, the first SIGINT or SIGTERM sets `requested` and says so on stderr."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}
        # A thread, since a handler may come amid the very write that it would make.
        self._voice = threading.Thread(target=_promise, daemon=True)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._voice.is_alive():
            self._voice.join(timeout=1.0)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._voice.start()


def _promise() -> None:
    # One write, looked up now: a progress bar of rich stands in for stderr and goes below it.
    sys.stderr.write(f"{PROMISE}\n")
    sys.stderr.flush()
