"""What all formats share that look for calls among other text.

Text around the calls is ignored, and so are calls that are only thought about: all that stands in
a leading `<think>` block, or before a `</think>` that no well-formed call holds (some chat
templates put `<think>` into the prompt, so that only its end is in the action).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from turnwise.envs.calls import Action, ToolCall, failed
from turnwise.envs.formats.strict_json import surrogate

MAX_CALLS = 256
"""Far above what an environment runs in one turn. Locating a fault takes time that grows with the
text, and so does writing it down: a bound on calls keeps the whole linear."""
THOUGHT_TAGS = ("<think>", "</think>", "[THINK]", "[/THINK]")
"""Reasoning as Qwen, DeepSeek and Mistral models mark it."""

Find = Callable[[str, int], int]
"""(text, offset) to where the next call begins, from that offset on; below 0 if none does."""
Read = Callable[[str, int, int], tuple[list[ToolCall], int]]
"""(text, where it begins, index of the first) to the calls there and the offset behind them."""

_SPACE = re.compile(r"\s*")
_OPENED = re.compile(r"\s*(<think>|\[THINK\])")
_CLOSED = re.compile(r"</think>|\[/THINK\]")


def skip_space(text: str, at: int) -> int:
    """Return the offset of the first character from `at` on that is no white space."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def read_calls(text: str, find: Find, read: Read, *, code: str, expected: str) -> Action:
    """Return the calls of an action.

    Args:
        text: The action.
        find: Looks for calls.
        read: Reads what `find` has found; what is broken becomes an error call.
        code: Of text that is not valid.
        expected: What the error says where there is no call.
    """
    if (bad := surrogate(text)) is not None:
        return Action(text, (failed(code, text, bad, "not valid UTF-8", ""),))
    at, thought = after_thought(text)
    calls: list[ToolCall] = []
    missing = failed("no_call", text, len(text), expected, "")
    while True:
        start = find(text, at)
        if thought and not 0 <= start < thought.start():
            calls, at, thought = [], thought.end(), None  # so far, it was only thinking
            continue
        if start < 0:
            return Action(text, tuple(calls) or (missing,))
        if len(calls) >= MAX_CALLS:
            why = f"at most {MAX_CALLS} calls per action are read"
            last = failed("budget_exhausted", text, start, why, "", index=len(calls))
            return Action(text, (*calls, last))
        found, behind = read(text, start, len(calls))
        if thought and thought.start() < behind:
            if found[-1].error is None:  # a call quotes the tag
                thought = _CLOSED.search(text, behind)
            else:  # a thought may mention a tag; if no call follows, it was begun all the same
                missing, behind = replace(found[-1], id="c0"), thought.end()
                calls, found, thought = [], [], None
        calls += found
        at = behind


def after_thought(text: str) -> tuple[int, re.Match[str] | None]:
    """Return where the answer begins, and the first tag that may still turn it into a thought."""
    if (opened := _OPENED.match(text)) is None:
        return 0, _CLOSED.search(text)
    tag = f"{opened[1][0]}/{opened[1][1:]}"
    close = text.find(tag, opened.end())
    return (close + len(tag) if close >= 0 else len(text)), None
