"""Several processes of one run on this machine: started together, ended together.

A process that fails leaves a report and says nothing; the one line is written here, when it is
known who failed first. A process whose launcher is gone stops after its step, saved.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPORTS = "TURNWISE_RANK_REPORTS"
"""Environment variable: the folder in which a rank says why it failed."""
POLL_S = 0.05
KILLED = 4
RESUME = "go on from the newest checkpoint with --resume"
FINE = (0, 130)
"""Exit codes of a rank that is done, or was stopped and has saved."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank ended."""

    code: int
    line: str
    lost: bool = False
    """It only found that another one was gone."""


def launch(
    command: Sequence[str],
    processes: int,
    *,
    logs: Path,
    env: Mapping[str, str] | None = None,
    grace_s: float = 20.0,
) -> tuple[int, str]:
    """Run `command` in `processes` processes until all are over.

    Args:
        command: what each runs; the environment tells it its rank.
        logs: folder for what ranks other than 0 print.
        env: what they get beside this process's own variables.
        grace_s: how long the others have to end by themselves once one has failed.

    Returns:
        The exit code, and the line that tells which rank failed and how; empty where none did.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="turnwise-ranks-") as folder:
        started = [
            _start(command, rank, processes, Path(folder), logs, env or {})
            for rank in range(processes)
        ]
        with _signals_to(started) as signals:
            first, silent = _wait(started, grace_s, signals)
        if first is None:
            return max(process.returncode for process in started), ""
        rank, why = _verdict(first, silent, started, Path(folder))
        return why.code, f"rank {rank}: {why.line}"


def _start(
    command: Sequence[str],
    rank: int,
    processes: int,
    folder: Path,
    logs: Path,
    env: Mapping[str, str],
) -> subprocess.Popen[bytes]:
    seat = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    seat |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    seat |= {REPORTS: str(folder), "TURNWISE_RENDEZVOUS": f"file://{folder}/meeting"}
    if sys.platform == "linux":
        seat["GLOO_SOCKET_IFNAME"] = "lo"  # all are on this machine
    with open(os.devnull if rank == 0 else logs / f"rank-{rank}.log", "ab") as log:
        output = None if rank == 0 else log
        return subprocess.Popen(
            list(command),
            env={**os.environ, **env, **seat},
            stdin=subprocess.PIPE,  # closed when this process is gone
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C comes once, from here
        )


def _wait(
    started: Sequence[subprocess.Popen[bytes]], grace_s: float, signals: Sequence[int]
) -> tuple[int | None, set[int]]:
    """Wait for all; return the rank that failed first, and those that were still there after it,
    or after a second signal, and had to be killed."""
    first, until, silent = None, float("inf"), set[int]()
    while any(process.poll() is None for process in started):
        if first is None and (first := _failed(started)) is not None:
            until = time.monotonic() + grace_s
        if len(signals) > 1:  # who waits for another one in a call of gloo hears no signal
            until = min(until, time.monotonic() + grace_s)
        if time.monotonic() > until:
            silent |= _kill(started)
        time.sleep(POLL_S)
    return first if first is not None else _failed(started), silent


def _failed(started: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Return the first rank that is over and neither done nor stopped."""
    codes = [process.poll() for process in started]
    return next((rank for rank, code in enumerate(codes) if code not in (None, *FINE)), None)


def _kill(started: Sequence[subprocess.Popen[bytes]]) -> set[int]:
    """Kill those of our processes that are still there; return their ranks."""
    left = {rank for rank, process in enumerate(started) if process.poll() is None}
    for rank in left:
        started[rank].kill()
    return left


def _verdict(
    first: int, silent: set[int], started: Sequence[subprocess.Popen[bytes]], folder: Path
) -> tuple[int, Failure]:
    """Return which rank to name, and why: one that died or failed by itself before one that did
    not answer, that before one that was stopped amid a step, and that before one that only
    missed another."""
    order = [first, *(rank for rank in range(len(started)) if rank != first)]
    found = {rank: _failure(rank, started[rank], folder) for rank in order if rank not in silent}
    failures = {rank: failure for rank, failure in found.items() if failure is not None}
    own = next((rank for rank, failure in failures.items() if not failure.lost), None)
    if own is not None:
        return own, failures[own]
    if silent:
        return min(silent), Failure(KILLED, f"did not answer, and was killed; {RESUME}")
    left = next((rank for rank in order if rank not in failures and started[rank].returncode), None)
    if left is not None:  # the others missed it: it was stopped at once, by a second Ctrl-C
        code = started[left].returncode
        return left, Failure(code, f"was stopped amid a step; {RESUME}")
    return next(iter(failures.items()))


def _failure(rank: int, process: subprocess.Popen[bytes], folder: Path) -> Failure | None:
    report = folder / f"rank-{rank}.json"
    if report.exists():
        return Failure(**json.loads(report.read_text()))
    code = process.returncode
    if code < 0:
        name = signal.Signals(-code).name
        return Failure(KILLED, f"was killed by {name}; {RESUME}")
    return Failure(code, f"ended with code {code} and no word") if code not in FINE else None


@contextmanager
def _signals_to(started: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Hand SIGINT and SIGTERM on to every rank; yield those that came."""
    came: list[int] = []

    def hand_on(number: int, _: Any) -> None:
        came.append(number)
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {n: signal.signal(n, hand_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _kill(started)


# What a rank does


def report(code: int, line: str, *, lost: bool) -> bool:
    """Leave word of why this rank ends; False where nobody waits for it."""
    folder = os.environ.get(REPORTS)
    if not folder:
        return False
    failure = {"code": code, "line": line, "lost": lost}
    path = Path(folder) / f"rank-{os.environ['RANK']}.json"
    path.write_text(json.dumps(failure))
    return True


def stop_with_launcher() -> None:
    """Ask this process to stop, as Ctrl-C does, once the one that started it is gone."""
    if os.environ.get(REPORTS):
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    # Not sys.stdin, whose lock a thread may not hold when the interpreter ends.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
