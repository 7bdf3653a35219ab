"""One thread that starts every box and lives as long as the process.

`bwrap --die-with-parent` asks the kernel for a signal when its *parent thread* ends, not its
parent process. A box started from a thread pool would be killed when the pool closes, in the
middle of another thread's call (https://github.com/containers/bubblewrap/issues/692).
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_lock = threading.Lock()
_work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] | None = None


def spawn(start: Callable[[], T]) -> T:
    """What `start()` returns, run on the spawner thread."""
    future: Future[T] = Future()
    _queue().put((start, future))
    return future.result()


def _queue() -> queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]]:
    global _work
    with _lock:
        if _work is None:
            _work = queue.SimpleQueue()
            thread = threading.Thread(target=_serve, args=(_work,), name="turnwise-spawner")
            thread.daemon = True
            thread.start()
        return _work


def _serve(work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]]) -> None:
    while True:
        start, future = work.get()
        try:
            future.set_result(start())
        except BaseException as error:
            future.set_exception(error)
        del start, future  # not kept until the next start


def _forget_in_child() -> None:
    # Threads do not survive a fork; the child gets its own spawner when it needs one.
    global _work, _lock
    _work, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)
