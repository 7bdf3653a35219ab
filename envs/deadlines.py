"""Tools that may take long: coroutines on one event loop, blocking methods on threads.

A coroutine that overruns is cancelled. A thread cannot be stopped: it goes on behind, but what it
returns or raises is dropped, and what it still reads through the tape is refused. So no later call
ever sees it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any

from turnwise.envs.clock import CALL, Call
from turnwise.envs.pool import StepTimeout
from turnwise.envs.signatures import Tool
from turnwise.envs.tools import ToolFailed

CANCEL_S = 1.0
"""How long a cancelled coroutine may take to clean up before it is left behind."""


class Overran(Exception):
    """A call took longer than it may."""


def run_slow(env: Any, tool: Tool, args: dict[str, Any]) -> Any:
    """Return what a coroutine, or a method with a deadline, of `env` returns.

    That a call ran out of time is on the tape of the environment: a replay does not run it again.

    Raises:
        ToolFailed: it took longer than its `timeout_s`, or says itself that it failed.
        StepTimeout: a coroutine without `timeout_s` took longer than a step of the environment may.
    """
    tape, limit = env.tape, tool.timeout_s
    mark = tape.timed(tool.name)
    if tape.wind_past(mark):
        raise _too_slow(tool)
    if tape.fed:
        limit = None  # it was in time when this was recorded, so it is now
    run = functools.partial(tool.function, env, **args)
    try:
        within_s = env.step_timeout_s if limit is None else limit
        return on_loop(run(), within_s) if tool.is_async else on_thread(run, within_s)
    except Overran:
        if limit is None:
            raise StepTimeout(f"{tool.name} {_OVERRAN.format(env.step_timeout_s)}") from None
        tape.note(mark)
        raise _too_slow(tool) from None


_OVERRAN = "took longer than step_timeout_s, {:g} s; with a timeout_s of its own the agent reads it"


def _too_slow(tool: Tool) -> ToolFailed:
    return ToolFailed(f"{tool.name} took longer than {tool.timeout_s:g} s", "timeout")


def on_thread(function: Callable[[], Any], timeout_s: float) -> Any:
    """Return or raise what `function` does, on a thread of its own.

    Raises:
        Overran: after `timeout_s`; the thread is left behind.
    """
    call, answer = Call(), Future[Any]()
    context = contextvars.copy_context()
    context.run(CALL.set, call)
    threading.Thread(target=context.run, args=(_settle, answer, function), daemon=True).start()
    return _await(answer, call, timeout_s)


def on_loop(coroutine: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
    """Return or raise what `coroutine` does, on the event loop of this process.

    Raises:
        Overran: after `timeout_s`; the coroutine has been cancelled.
        RuntimeError: called on that loop itself, which would wait for itself.
    """
    loop = _running_loop()
    if getattr(loop, "turnwise_thread", None) == threading.get_ident():
        coroutine.close()
        raise RuntimeError("an async tool stepped an environment that has async tools itself")
    call = Call()
    answer = asyncio.run_coroutine_threadsafe(_within(coroutine, timeout_s, call), loop)
    try:
        return _await(answer, call, timeout_s + 2 * CANCEL_S)
    except Overran:
        if not answer.done():
            _forget_loop()  # something blocks it: it is left behind, as a thread is
        raise


async def _within(coroutine: Coroutine[Any, Any, Any], timeout_s: float, call: Call) -> Any:
    CALL.set(call)
    task = asyncio.ensure_future(coroutine)
    if (await asyncio.wait({task}, timeout=timeout_s))[0]:
        return task.result()
    call.give_up()
    task.cancel()
    await asyncio.wait({task}, timeout=CANCEL_S)
    raise Overran


def _await(answer: Future[Any], call: Call, timeout_s: float) -> Any:
    # Not `result(timeout)`: it cannot tell its own TimeoutError from one that the tool raised.
    if not wait((answer,), timeout_s).done:
        call.give_up()
        raise Overran
    return answer.result()


def _settle(answer: Future[Any], function: Callable[[], Any]) -> None:
    try:
        result = function()
    except BaseException as error:
        answer.set_exception(error)
    else:
        answer.set_result(result)


_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that runs on a thread of this process, starting it at the first use."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(_loop,), name="turnwise-tools", daemon=True).start()
        return _loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.turnwise_thread = threading.get_ident()  # type: ignore[attr-defined]
    loop.run_forever()


def _forget_loop() -> None:
    global _loop
    with _lock:
        _loop = None


def _forget_in_child() -> None:
    # The thread that runs the loop stays in the parent.
    global _lock, _loop
    _lock, _loop = threading.Lock(), None


os.register_at_fork(after_in_child=_forget_in_child)
