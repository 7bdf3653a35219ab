"""Whose code raised an exception, so that nobody looks for their own bug in the checker."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path
from types import FrameType

from turnwise.envs.extras import MissingExtra
from turnwise.envs.names import UnknownName
from turnwise.sandboxes.base import SandboxError

NOT_ITS_FAULT = (SandboxError, MissingExtra, UnknownName)
"""What an environment is not to blame for: the machine, the installation, the command line."""
_STDLIB = (sysconfig.get_path("stdlib"), "<frozen")
_CHECKER = (
    *("turnwise.envs.probes.", "turnwise.envs.check", "turnwise.envs.playing"),
    *("turnwise.envs.fuzz", "turnwise.agents."),
)


def whereabouts(error: BaseException) -> str:
    """Return where an exception left the environment, as `vault.py:31 (dial)`, or nothing.

    That is the innermost line of whoever wrote the environment; for one of ours, the innermost.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    frames = _frames_of_the_environment(error)
    for frame, line in reversed([at for at in frames if not _ours(at[0])] or frames):
        return f"{Path(frame.f_code.co_filename).name}:{line} ({frame.f_code.co_name})"
    return ""


def on_purpose(error: BaseException) -> bool:
    """Whether our own code refused what it was given, and no line of anybody else's raised it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    kinds = (ValueError, TypeError, LookupError, ImportError, NotImplementedError)
    return isinstance(error, kinds) and _ours(frames[-1]) and all(map(_known, frames))


def told(error: BaseException) -> tuple[str, str]:
    """Return what happened and how to mend it, as a line of the report says them."""
    where = whereabouts(error)
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if not where:
        return what, "this exception left the environment: mend the code that raised it"
    if on_purpose(error):
        return f"{what} in {where}", "give the environment's class what the message asks for"
    return f"{what} in {where}", f"correct {where}, or what it was called with"


def lost_at(error: SandboxError) -> str:
    """Return why nothing can be said of the environment, as a line of the report says it."""
    return f"not tried: the machine failed: {' '.join(f'{type(error).__name__}: {error}'.split())}"


def _frames_of_the_environment(error: BaseException) -> list[tuple[FrameType, int]]:
    """Return the lines that the exception passed, the outermost first, without the checker's."""
    return [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not _module(frame).startswith(_CHECKER)
        and not frame.f_code.co_filename.startswith(_STDLIB)
    ]


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _ours(frame: FrameType) -> bool:
    return _module(frame).partition(".")[0] == "turnwise"


def _known(frame: FrameType) -> bool:
    """Whether a line is ours or Python's."""
    return _ours(frame) or _module(frame).partition(".")[0] in sys.stdlib_module_names
