"""Many environments at once, without a barrier: send to any, receive from whichever is done.

Fast environments step inside `send`; the others on threads, each call with a deadline. A call that
raises or overruns becomes a result like any other, so one bad environment harms nobody.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from turnwise.envs.base import Env
from turnwise.sandboxes.room import Batch

CLOSE_S = 5.0
"""How long to wait for environments that are being closed; they go on closing behind."""


class StepTimeout(RuntimeError):
    """A call overran its deadline. Its environment was replaced; the thread is left behind."""


class Answer(NamedTuple):
    """What came back from environment `index`: a value, or the exception that it raised."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks for
    value: Any
    error: BaseException | None = None
    seconds: float = 0.0


class EnvPool:
    """A pool of `size` environments, made when they are first used.

    Example:
        pool = EnvPool(lambda: make("turnwise/FileHunt-v1"), 16)
        pool.send(3, "reset", seed=0)
        for index, (observation, info), error, seconds in pool.recv(): ...

    Args:
        make_env: returns a new environment.
        size: how many there are; each does one call at a time.
        step_timeout_s: deadline of a threaded call; None takes the environment's own.
    """

    def __init__(
        self, make_env: Callable[[], Env], size: int, *, step_timeout_s: float | None = None
    ) -> None:
        self.make_env, self.size, self.step_timeout_s = make_env, size, step_timeout_s
        self.batch = Batch()
        """Whose rooms its environments share, if they ask for that."""
        self.envs: list[Env | None] = [None] * size
        self._ready: deque[Answer] = deque()
        self._done: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        self._workers: list[_Worker | None] = [None] * size
        self._deadlines: dict[int, tuple[float, int]] = {}
        self._ticket = 0

    def env(self, index: int) -> Env:
        """Return environment `index`, making it first if need be."""
        env = self.envs[index]
        if env is None:
            with self.batch.current():
                env = self.envs[index] = self.make_env()
        return env

    def send(self, index: int, method: str, *args: Any, **kwargs: Any) -> None:
        """Call `method` of environment `index`; its answer comes from a later `recv`."""
        env = self.envs[index]
        try:
            env = self.env(index) if env is None else env
            if env.fast:
                self._ready.append(Answer(index, getattr(env, method)(*args, **kwargs)))
                return
        except Exception as error:
            self._ready.append(Answer(index, None, error))
            return
        self._submit(index, env, getattr(env, method), args, kwargs)

    def recv(self, timeout_s: float = 0.0) -> list[Answer]:
        """Return every answer that is there; wait up to `timeout_s` for the first one."""
        answers = list(self._ready)
        self._ready.clear()
        if self._deadlines:
            answers += self._threaded(0.0 if answers else timeout_s)
        return answers

    @property
    def in_flight(self) -> int:
        """Threaded calls that have not been received."""
        return len(self._deadlines)

    def replace(self, index: int) -> None:
        """Close environment `index`; the next call makes a new one. Never raises."""
        if (closing := self._discard(index)) is not None:
            closing.join(CLOSE_S)

    def close(self) -> None:
        """Close every environment. Safe to call twice."""
        closing = [self._discard(index) for index in range(self.size)]
        deadline = time.monotonic() + CLOSE_S
        for thread in filter(None, closing):
            thread.join(max(deadline - time.monotonic(), 0.0))
        self.batch.close()

    def _discard(self, index: int) -> threading.Thread | None:
        """Start closing an environment and forget its answers; return the thread to wait for."""
        env, self.envs[index] = self.envs[index], None
        worker, self._workers[index] = self._workers[index], None
        busy = self._deadlines.pop(index, None) is not None
        self._ready = deque(answer for answer in self._ready if answer.index != index)
        if worker is not None:
            worker.inbox.put(None)
        if env is None:
            return None
        closing = threading.Thread(target=_close, args=(env,), daemon=True)
        closing.start()
        # A call may still be running in it, and closing it may take as long as that call.
        return None if busy else closing

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self,
        index: int,
        env: Env,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        worker = self._workers[index]
        if worker is None:
            worker = self._workers[index] = _Worker(self._done)
        self._ticket += 1
        limit = env.step_timeout_s if self.step_timeout_s is None else self.step_timeout_s
        self._deadlines[index] = (time.monotonic() + limit, self._ticket)
        worker.inbox.put((self._ticket, index, call, args, kwargs))

    def _threaded(self, timeout_s: float) -> list[Answer]:
        answers: list[Answer] = []
        next_deadline = min(deadline for deadline, _ in self._deadlines.values())
        wait = min(timeout_s, max(next_deadline - time.monotonic(), 0.0))
        while self._deadlines:
            try:
                ticket, answer = self._done.get(timeout=wait) if wait else self._done.get_nowait()
            except queue.Empty:
                break
            wait = 0.0
            if self._deadlines.get(answer.index, (0.0, -1))[1] == ticket:
                del self._deadlines[answer.index]
                answers.append(answer)
        return answers + self._overdue()

    def _overdue(self) -> list[Answer]:
        now = time.monotonic()
        late = [index for index, (deadline, _) in self._deadlines.items() if now > deadline]
        for index in late:
            self.replace(index)
        return [Answer(index, None, StepTimeout("the call overran its deadline")) for index in late]


class _Worker:
    """A thread that makes the calls of one environment, one after another."""

    def __init__(self, done: queue.SimpleQueue[Any]) -> None:
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(done,), daemon=True).start()

    def _run(self, done: queue.SimpleQueue[Any]) -> None:
        while (job := self.inbox.get()) is not None:
            ticket, index, call, args, kwargs = job
            start = time.perf_counter()
            try:
                answer = Answer(index, call(*args, **kwargs), None, time.perf_counter() - start)
            except BaseException as error:
                answer = Answer(index, None, error, time.perf_counter() - start)
            done.put((ticket, answer))


def _close(env: Env) -> None:
    try:
        env.close()
    except Exception:
        return  # it is being thrown away
