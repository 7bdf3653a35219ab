"""An exception as one line and an exit code: what the user can mend, what the machine did, a bug.

1  the command line, a name, a file: the message says what to do
4  a sandbox, an engine, the disk: the command was right
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator

from turnwise.agents.engines.base import EngineError
from turnwise.sandboxes.base import SandboxError

USAGE, FAILED, DIVERGED, INFRASTRUCTURE = 1, 2, 3, 4
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MACHINE = (*_FULL, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.EROFS)
_CURES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "; free some space and run it again"
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "; name a path that you may use"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "; a part of that path is a file: name another"),
    errno.ENOENT: "; name a path that exists",
}
_ARGUMENTS = (ValueError, TypeError, LookupError, RuntimeError, ImportError)


def describe(error: Exception) -> tuple[int, str]:
    """Return (exit code, line). What we did not foresee is named as such."""
    if isinstance(error, SandboxError | EngineError) or _by_the_machine(error):
        return INFRASTRUCTURE, _line(error)
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_of(error.name or "")):
        return USAGE, f"{error.name} is not installed; run `pip install 'turnwise[{extra}]'`"
    if isinstance(error, OSError) and error.errno is not None:
        code = INFRASTRUCTURE if error.errno in _MACHINE else USAGE
        where = f"{error.filename}: " if error.filename else ""
        cure = _CURES.get(error.errno, "")
        return code, f"{where}{error.strerror}{cure}"
    if type(error).__module__.startswith("turnwise.") or _said_by_us(error):
        return USAGE, _line(error)
    name = type(error).__name__
    return USAGE, f"unexpected {name}: {_line(error)}; add --debug to see where"


def _by_the_machine(error: Exception) -> bool:
    """Whether an error of ours tells of a disk that is full or fails."""
    cause = error.__cause__
    full = isinstance(cause, OSError) and cause.errno in _MACHINE
    return full or bool(getattr(error, "machine", False))


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """While it lasts, all that our logger hears goes to stderr: why an episode was lost, too.

    Processes that are started meanwhile show their tracebacks, as well.
    """
    log, handler = logging.getLogger("turnwise"), _Stderr()
    before, asked = log.level, os.environ.get("TURNWISE_DEBUG")
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    os.environ["TURNWISE_DEBUG"] = "1"
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        if asked is None:
            del os.environ["TURNWISE_DEBUG"]


class _Stderr(logging.Handler):
    """Looks stderr up at each line, since a progress bar stands in for it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _said_by_us(error: Exception) -> bool:
    """Whether our own code raised it on purpose: the innermost frame is ours."""
    if type(error) not in _ARGUMENTS:
        return False
    frames = list(traceback.walk_tb(error.__traceback__))
    return frames[-1][0].f_globals.get("__name__", "").startswith("turnwise.")


def _extra_of(module: str) -> str:
    """Return the extra that installs a module of this name, or an empty text."""
    from turnwise.cli.extras import extras

    package = module.partition(".")[0]
    return next((name for name, packages in extras().items() if package in packages), "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
