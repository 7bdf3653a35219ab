"""What is wrong with an environment, and what it leaves behind.

One line in the episode, with the place in the code, and all of it in the log.
"""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any

from turnwise.envs.base import is_mute
from turnwise.envs.types import Message, Outcome

log = logging.getLogger("turnwise")
MOST = 300
"""Characters of a message that are kept."""


def in_one_line(error: BaseException) -> str:
    """Return the type of an exception and the first line of its message."""
    message = next(iter(str(error).splitlines()), "")[:MOST]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def place(error: BaseException) -> str:
    """Return where it was raised, as ` (vault.py:31 in submit)`; nothing if it never was."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    frame = frames[-1]
    return f" ({Path(frame.filename).name}:{frame.lineno} in {frame.name})"


def malformed(value: Any, *, opening: bool) -> Exception | None:
    """Return what is wrong with the shape of an environment's answer: a bug of its author."""
    try:
        observation, *numbers, info = value
        if len(numbers) != (0 if opening else 3):
            return TypeError(f"expected {2 if opening else 5} values, got {len(value)}")
        if not isinstance(observation, str):
            return TypeError(f"an observation is a str, got {type(observation).__name__}")
        if opening and is_mute(info.get("messages") or [Message(role="user", content=observation)]):
            return ValueError("the opening is empty; reset must return what the agent reads first")
        Outcome(info.get("outcome", Outcome.OK))
        float(numbers[0] if numbers else 0.0)
        if not isinstance(info.get("picture"), bytes | None):
            return TypeError(f"a picture is bytes, got {type(info['picture']).__name__}")
    except (TypeError, ValueError, AttributeError) as error:
        return error.with_traceback(None)  # it was raised here, and the fault is elsewhere
    return None
