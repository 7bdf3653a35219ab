"""Laws of the life of a box, and of how its failures are told."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from turnwise.sandboxes.base import (
    Sandbox,
    SandboxDied,
    SandboxError,
    SandboxSpec,
)
from turnwise.sandboxes.law import LIMITS, Law, Trial, added_to, refuses, require

LIFE: list[Law] = []
law = added_to(LIFE)


# ---------------------------------------------------------------- life


@law("life", "make close idempotent; raise SandboxDied, which is retryable, from every later call")
def a_closed_box_stays_closed(trial: Trial, box: Sandbox) -> None:
    """`with` and `finally` both close; a call that was too late must say so, not hang."""
    other = trial.box()
    other.close()
    other.close()
    calls: tuple[Callable[[], object], ...] = (
        lambda: other.exec(["true"]),
        lambda: other.cell("1"),
        lambda: other.put("a", b""),
        lambda: other.get("a"),
    )
    for call in calls:
        error = refuses(call, SandboxDied)
        require(error.retryable is True, "SandboxDied must be retryable")


@law("life", "end the box from outside; wake whoever waits for it with SandboxDied")
def close_ends_a_call_in_progress(trial: Trial, box: Sandbox) -> None:
    """A run that is stopped must not wait for its slowest command."""
    with trial.box() as other:
        began = time.monotonic()
        timer = threading.Timer(0.3, other.close)
        timer.start()
        refuses(lambda: other.exec(["sleep", "30"], timeout_s=30.0), SandboxDied)
        timer.join()
        require(time.monotonic() - began < 8.0, "it took too long")


@law("life", "end the box when lifetime_s is over, in the middle of a call, too")
def a_lifetime_ends(trial: Trial, box: Sandbox) -> None:
    """What is forgotten must not stay for ever."""
    with trial.box(lifetime_s=0.5) as other:
        refuses(lambda: other.exec(["sleep", "30"]), SandboxDied)


@law("life", "tie the box to the process, not to the thread that started it (PDEATHSIG does not)")
def a_box_outlives_the_thread_that_started_it(trial: Trial, box: Sandbox) -> None:
    """Pools start boxes on threads that end."""
    opened: list[Sandbox] = []
    thread = threading.Thread(target=lambda: opened.append(trial.box()))
    thread.start()
    thread.join()
    require(opened, "it could not be started on a thread")
    time.sleep(0.2)
    with opened[0] as other:
        require(other.exec(["echo", "on"]).stdout == b"on\n", "it ended with its thread")


@law("life", "guard the channel by a lock, or give each call one of its own")
def eight_threads_may_call_one_box(trial: Trial, box: Sandbox) -> None:
    """Replies that are mixed up give one episode the output of another."""
    wrong: list[object] = []

    def work(name: int) -> None:
        for i in range(5):
            try:
                said = box.exec(["echo", f"{name}-{i}"])
                printed = box.cell(f"print('{name}-{i}')", kernel=f"thread{name % 2}")
                good = said.stdout == printed.stdout == f"{name}-{i}\n".encode()
                wrong.extend([] if good else [(name, i, said, printed)])
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    require(not wrong, wrong[:1])


@law("life", "end every process of the box in close, and wait until it has ended")
def nothing_is_left_after_close(trial: Trial, box: Sandbox) -> str:
    """387 containers of finished runs on one machine is what it comes to."""
    word = f"{1000 + secrets.randbelow(10**6)}.{secrets.randbelow(10**9)}"
    with trial.box() as other:
        started = other.cell(f"import subprocess\np = subprocess.Popen(['sleep', '{word}'])")
        require(started.exit_code == 0, started)
        # Its command line is there a moment after it was started, if it can be seen at all.
        end = time.monotonic() + 0.5
        while not (seen := len(processes_with(word))) and time.monotonic() < end:
            time.sleep(0.02)
    end = time.monotonic() + 3.0
    while processes_with(word) and time.monotonic() < end:
        time.sleep(0.02)
    require(not processes_with(word), "a process of it still runs")
    return f"{seen} seen from here before it" if seen else "its processes cannot be seen from here"


def processes_with(word: str) -> list[str]:
    """Pids of this machine whose command line holds `word`."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if word.encode() in Path("/proc", name, "cmdline").read_bytes():
                found.append(name)
    return found


@law("failures", "raise a SandboxError that is not retryable where no retry can help")
def failures_are_typed(trial: Trial, box: Sandbox) -> str:
    """The trainer masks and retries what is a `SandboxError`, and stops at everything else."""
    image = "turnwise/there-is-no-such-image"

    def start() -> None:
        trial.open(SandboxSpec(image=image, limits=LIMITS)).close()

    error = refuses(start, SandboxError)
    require(error.retryable is False, f"{type(error).__name__} says that a retry may help")
    return type(error).__name__
