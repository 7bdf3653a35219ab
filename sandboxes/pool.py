"""Boxes that are started before they are asked for: leasing one costs a ping, not a start.

A leased box is used once: closing it destroys it. It is never cleaned and given to another
episode, since nothing can prove that an agent left nothing behind.
"""

from __future__ import annotations

import atexit
import os
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from turnwise.sandboxes.base import (
    Limits,
    NetPolicy,
    Sandbox,
    SandboxError,
    StartFailed,
    Unsupported,
)
from turnwise.sandboxes.closing import ClosedAtExit
from turnwise.sandboxes.reaper import end_at_sigterm
from turnwise.sandboxes.single_use import SingleUse, answers

TRIES = 3
"""Starts that a lease pays for before it gives up; only failures with `retryable` are retried."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
REMEMBERED = 1000
"""Starts from which the percentiles are taken."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool holds and has done."""

    idle: int
    starting: int
    leased: int
    started: int
    failed: int
    """Starts that raised."""
    died: int
    """Warm boxes that were found dead when they were to be leased."""
    expired: int
    """Warm boxes that nobody took for `max_idle_s`."""
    start_p50_s: float | None
    """Of the last starts, without waiting for a turn; None before the first."""
    start_p99_s: float | None

    @property
    def live(self) -> int:
        """All that counts against `max_live`."""
        return self.idle + self.starting + self.leased


def start_kernel(box: Sandbox) -> None:
    """Have the first cell of a lease find its Python running."""
    box.cell("pass")


def warm_pool(
    backend: str = "auto",
    *,
    limits: Limits | None = None,
    image: str | None = None,
    net: NetPolicy | None = None,
    env: Mapping[str, str] | None = None,
    **bounds: Any,
) -> WarmPool:
    """A pool of boxes as `open_sandbox` with the same arguments makes them.

    Args:
        backend, limits, image, net, env: see `open_sandbox`.
        bounds: see `WarmPool`.
    """
    from turnwise.sandboxes.open import open_sandbox

    def start() -> Sandbox:
        return open_sandbox(backend, limits=limits, image=image, net=net, env=env)

    return WarmPool(start, **bounds)


class WarmPool(ClosedAtExit):
    """Keeps boxes of one kind ready. Synchronous; safe to use from many threads.

    Args:
        start: starts one; called from several threads.
        target: boxes to keep ready.
        max_live: boxes at once: starting, ready and leased.
        max_starting: starts at once, the number of cores by default: starts compete for them.
        max_idle_s: a box that nobody took for so long is destroyed, and the pool starts no other
            before the next lease. A box has spent up to so much of its lifetime when it is leased.
        prepare: called with each box before it is ready.

    Raises:
        ValueError: a bound that allows nothing.
    """

    def __init__(
        self,
        start: Callable[[], Sandbox],
        *,
        target: int = 4,
        max_live: int = 32,
        max_starting: int | None = None,
        max_idle_s: float = 600.0,
        prepare: Callable[[Sandbox], object] = start_kernel,
    ) -> None:
        max_starting = os.cpu_count() or 1 if max_starting is None else max_starting
        if not 0 <= target <= max_live or max_live < 1 or max_starting < 1 or not max_idle_s > 0:
            raise ValueError(
                "a pool needs 0 <= target <= max_live, max_live and max_starting >= 1 and"
                f" max_idle_s > 0, got target={target}, max_live={max_live},"
                f" max_starting={max_starting}, max_idle_s={max_idle_s}"
            )
        self._start_box, self._prepare = start, prepare
        self.target, self.max_live = target, max_live
        self.max_starting, self.max_idle_s = max_starting, max_idle_s
        self._changed = threading.Condition()
        self._idle: deque[tuple[Sandbox, float]] = deque()
        self._leased: dict[int, Sandbox] = {}
        self._starting = 0
        self._times: deque[float] = deque(maxlen=REMEMBERED)
        self._count = {"started": 0, "failed": 0, "died": 0, "expired": 0}
        self._wanted, self._closed = True, False
        self._refused: SandboxError | None = None
        self._pid = os.getpid()
        end_at_sigterm()  # no thread that starts a box can arrange for it
        _pools.add(self)
        threading.Thread(target=self._refill, name="turnwise-pool", daemon=True).start()

    def lease(self, *, timeout_s: float = 600.0) -> Sandbox:
        """A box of your own. Close it; that destroys it.

        Args:
            timeout_s: how long to wait for room while `max_live` boxes are out.

        Raises:
            StartFailed: the pool stayed full.
            SandboxError: what starting a box raised, once it may not be retried or was `TRIES`
                times.
            Unsupported: the pool was closed, or belongs to the parent of this forked process.
        """
        end, failures = time.monotonic() + timeout_s, 0
        while True:
            box = self._take(end)
            try:
                if box is None:
                    box = self._start(self._leased_now)
                elif not answers(box):
                    self._drop(box, "died")
                    continue
                return self._lent(box)
            except SandboxError as error:
                failures += 1
                if not error.retryable or failures == TRIES:
                    raise
            time.sleep(_pause(failures))

    def stats(self) -> PoolStats:
        """What the pool holds now and has done so far."""
        with self._changed:
            times = sorted(self._times)
            held = len(self._idle), self._starting, len(self._leased)
            p50, p99 = _quantile(times, 0.5), _quantile(times, 0.99)
            return PoolStats(*held, **self._count, start_p50_s=p50, start_p99_s=p99)

    def close(self) -> None:
        """Destroy every box, leased ones too. Safe to call twice; never raises."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._closed = True
            boxes = [box for box, _ in self._idle] + list(self._leased.values())
            self._idle.clear()
            self._changed.notify_all()
        for box in boxes:
            self._return(box)
        with self._changed:  # whoever starts a box sees `_closed` and destroys it
            self._changed.wait_for(lambda: not self._starting, timeout=60.0)

    def _take(self, end: float) -> Sandbox | None:
        """A warm box, counted as leased; None where the caller must start one.

        The start is counted here, before it begins: no bound is passed, and `close` waits for it.
        """
        if self._pid != os.getpid():
            raise Unsupported("a pool belongs to the process that made it; make one after the fork")
        with self._changed:
            while True:
                self._require_usable()
                if self._idle:
                    return self._leased_now(self._idle.popleft()[0])
                if self._may_start():
                    self._starting += 1
                    return None
                if not self._changed.wait(max(0.0, end - time.monotonic())):
                    raise StartFailed(f"the pool stayed full: {self.stats()}")

    def _lent(self, box: Sandbox) -> Sandbox:
        lent = SingleUse(box, self._return)
        with self._changed:  # only now: the start of its successor takes time from whoever waits
            self._wanted = True
            self._changed.notify_all()
        return cast("Sandbox", lent)

    def _require_usable(self) -> None:
        if self._closed:
            raise Unsupported("the pool was closed")
        if self._refused is not None:
            raise self._refused

    def _may_start(self) -> bool:
        live = len(self._idle) + self._starting + len(self._leased)
        return self._starting < self.max_starting and live < self.max_live

    def _leased_now(self, box: Sandbox) -> Sandbox:
        self._leased[id(box)] = box
        return box

    def _idle_now(self, box: Sandbox) -> Sandbox:
        self._idle.append((box, time.monotonic()))
        return box

    def _start(self, book: Callable[[Sandbox], Sandbox]) -> Sandbox:
        """A fresh box, booked; the caller has counted it in `_starting`."""
        began, box, good = time.monotonic(), None, False
        try:
            box = self._start_box()
            self._prepare(box)
            with self._changed:
                self._require_usable()
                self._times.append(time.monotonic() - began)
                good = True
                return book(box)
        finally:
            if box is not None and not good:
                box.close()
            with self._changed:
                self._starting -= 1
                self._count["started" if good else "failed"] += good or not self._closed
                self._changed.notify_all()

    def _return(self, box: Sandbox) -> None:
        """Destroy a leased box and make room for another."""
        box.close()
        if self._pid == os.getpid():
            with self._changed:
                self._leased.pop(id(box), None)
                self._changed.notify_all()

    def _drop(self, box: Sandbox, why: str) -> None:
        self._return(box)
        with self._changed:
            self._count[why] += 1

    def _refill(self) -> None:
        """Runs on one thread as long as the pool: starts what is missing, ends what is too old."""
        failures = 0
        while not self._closed:
            if not self._await_work(_pause(failures)):
                continue
            try:
                self._start(self._idle_now)
                failures = 0
            except SandboxError as error:
                failures += 1
                if not error.retryable:
                    return self._refuse(error)
            except Exception as error:  # a bug must reach whoever leases, not die on a thread
                return self._refuse(Unsupported(f"a box could not be made: {error!r}"))

    def _refuse(self, error: SandboxError) -> None:
        with self._changed:
            self._refused = error
            self._changed.notify_all()

    def _await_work(self, pause_s: float) -> bool:
        """Whether a start is due, and counted; expired boxes are destroyed meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, pause_s)
            expired = self._expired()
            if not expired and not self._lacks() and not self._closed:
                self._changed.wait(self._next_expiry_s())
            due = not expired and self._lacks()
            self._starting += due
        for box in expired:
            box.close()
        return due

    def _lacks(self) -> bool:
        ready = len(self._idle) + self._starting
        return self._wanted and not self._closed and ready < self.target and self._may_start()

    def _next_expiry_s(self) -> float | None:
        if not self._idle:
            return None
        return max(0.0, self._idle[0][1] + self.max_idle_s - time.monotonic())

    def _expired(self) -> list[Sandbox]:
        gone = []
        while self._next_expiry_s() == 0.0:
            gone.append(self._idle.popleft()[0])
        self._count["expired"] += len(gone)
        self._wanted = self._wanted and not gone
        return gone


def _pause(failures: int) -> float:
    """Seconds before the next try, apart, lest all who failed try again at once."""
    if not failures:
        return 0.0
    longest = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 20), LONGEST_PAUSE_S)
    return random.uniform(longest / 2, longest)


def _quantile(ordered: list[float], q: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))] if ordered else None


_pools: weakref.WeakSet[WarmPool] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for pool in list(_pools):
        pool.close()
