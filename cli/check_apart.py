"""The laws of `turnwise check`, tried in a process of their own, which an environment may end.

A tool that calls `os._exit`, or a library that crashes, takes its process with it. What was seen
until then is told line by line, so that the report is whole but for the law that was being tried.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import site
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from turnwise.agents import check_replay
from turnwise.envs.check import STARTS, Check, Report, check_env
from turnwise.sandboxes.reaper import end_at_sigterm

SEEDS = "seeds are honoured"
"""Where this law is broken, one ran out of time, or it does not start, a replay tells no more."""
GRACE_S = 10.0
_MEND = (
    "let nothing end the process that trains: no os._exit or abort in a tool, and what crashes in "
    "native code in a sandbox"
)


class Refused(Exception):
    """The laws could not be tried; holds the exit code and the line that says why."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code


def checked_apart(order: dict[str, Any], watch: Callable[[str], None]) -> Report:
    """Return the report over the laws of `order`.

    Args:
        order: `env`, `laws`, `adversary` and `how`, the other arguments of `check_env`, as JSON
            values.
        watch: called with the name of each law before it is tried.

    Raises:
        Refused: the environment cannot be made on this machine, or there is no such law.
    """
    report, law, over = Report(order["env"], ()), STARTS, False
    with _started(order) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told = json.loads(line)
            if "refused" in told:
                raise Refused(*told["refused"])
            if "check" in told:
                report = report.with_check(Check(**told["check"]))
            if over := "over" in told:
                break
            if "law" in told:
                watch(law := told["law"])
    if over:
        return report
    return report.with_check(Check(law, "fail", _ended(process.returncode), _MEND))


def _ended(code: int) -> str:
    how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with code {code}"
    return f"the process ended {how} while this law was tried, and nothing raised"


@contextlib.contextmanager
def _started(order: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """Start the process; it ends itself once its standard input is closed, whoever closes it."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the one that was typed to
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        yield process
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)  # what hangs in there must not keep us
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def main() -> None:
    """Try the laws of the order on stdin; what an environment prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _read_path_files()
    order = json.loads(sys.stdin.readline())
    end_at_sigterm()  # laws run on threads, which cannot arrange for it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _try_laws(order, answers)
        _tell(answers, over=True)
    except Exception as error:
        from turnwise.cli.failures import describe

        if os.environ.get("TURNWISE_DEBUG"):
            traceback.print_exc()
        _tell(answers, refused=describe(error))


def _read_path_files() -> None:
    """Read the .pth files of folders that our parent added to its path: editable installs."""
    known = {*site.getsitepackages(), site.getusersitepackages()}
    for folder in [entry for entry in sys.path if entry not in known]:
        if any(Path(folder).glob("*.pth")):
            site.addsitedir(folder)


def _end_with_parent() -> None:
    """End the boxes and this process once nobody waits for the answer."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _tell(answers: TextIO, **words: Any) -> None:
    answers.write(json.dumps(words) + "\n")
    answers.flush()


def _try_laws(order: dict[str, Any], answers: TextIO) -> None:
    """Try all laws that were asked for, that of replay included, and tell each result."""
    how = {**order["how"], "seeds": range(order["how"]["seeds"])}
    replay, wanted = check_replay.NAME, order["laws"]
    laws = [law for law in wanted if law != replay]

    def done(check: Check) -> None:
        _tell(answers, check=asdict(check))

    def watch(law: str) -> None:
        _tell(answers, law=law)

    hopeless = False
    if laws or not wanted:
        adversary = order["adversary"]
        report = check_env(
            order["env"], adversary=adversary, laws=laws, watch=watch, done=done, **how
        )
        hopeless = any(check.overdue or check.name in (SEEDS, STARTS) for check in report.failures)
    if (not wanted and not hopeless) or replay in wanted:
        watch(replay)
        done(check_replay.check_replay(order["env"], **how))
