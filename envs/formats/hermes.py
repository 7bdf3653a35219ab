"""Tool calls as JSON between tags, as Hermes and Qwen models are trained on.

    <tool_call>
    {"name": "cat", "arguments": {"path": "/a/b"}}
    </tool_call>

Any number of calls per action, run in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from turnwise.envs.calls import Action, ActionFormat, ToolCall, failed
from turnwise.envs.formats.strict_json import JsonFault, decode, surrogate

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_SPACE = re.compile(r"\s*")


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _shape_error(value: Any) -> str | None:
    """Return what is wrong with a decoded call, or None."""
    if not isinstance(value, dict):
        return f"expected an object, got {type(value).__name__}"
    if extra := sorted(value.keys() - {"name", "arguments"}):
        return f"unexpected key {extra[0][:40]!r}; a call has the keys 'name' and 'arguments'"
    if not isinstance(value.get("name"), str) or not value["name"]:
        return "expected a key 'name' that holds the tool's name"
    if not isinstance(value.get("arguments"), dict):
        return "expected a key 'arguments' that holds an object"
    return None


def _read(text: str, at: int) -> tuple[Any, int, int, str | None]:
    """Read one call at `at`; return (call, offset after it, offset of the fault, the fault)."""
    try:
        value, end = decode(text, at)
    except JsonFault as fault:
        return None, fault.at, fault.at, str(fault)
    close = _skip_space(text, end)
    if not text.startswith(CLOSE, close):
        return None, close, close, f"expected {CLOSE}"
    return value, close, at, _shape_error(value)


def _call(text: str, start: int, index: int) -> tuple[ToolCall, int]:
    """Read the call whose tag opens at `start`; return it and the offset after it."""
    value, end, fault, why = _read(text, _skip_space(text, start + len(OPEN)))
    close = text.find(CLOSE, end)
    stop = close + len(CLOSE) if close >= 0 else len(text)
    raw = text[start:stop]
    if why is not None:
        return failed("bad_json", text, fault, why, raw, index=index), stop
    return ToolCall(f"c{index}", value["name"], value["arguments"], raw), stop


def _after_reasoning(text: str) -> int:
    """Return where the answer starts: calls that are only thought about are not run.

    Some chat templates put `<think>` into the prompt, so that only its end is in the action.
    """
    close = text.find("</think>")
    opened = text.startswith("<think>", _skip_space(text, 0))
    if close < 0:
        return len(text) if opened else 0
    call = text.find(OPEN)
    return close + len("</think>") if opened or call < 0 or close < call else 0


def parse(text: str) -> Action:
    """Return the calls in `text`, strictly.

    Text around the calls is allowed and ignored, and so is everything in a leading `<think>` block.
    JSON must be one object of exactly `name` and `arguments`, without duplicate keys, NaN,
    infinities or lone surrogates, and closed by its tag. A closing tag inside a string is text.
    """
    if (bad := surrogate(text)) is not None:
        return Action(text, (failed("bad_json", text, bad, "not valid UTF-8", ""),))
    calls: list[ToolCall] = []
    at = _after_reasoning(text)
    while (start := text.find(OPEN, at)) >= 0:
        call, at = _call(text, start, len(calls))
        calls.append(call)
    if not calls:
        calls = [failed("no_call", text, len(text), f"expected {OPEN}", "")]
    return Action(text, tuple(calls))


def render(name: str, args: Mapping[str, Any]) -> str:
    """Return the call as Qwen's chat templates write it.

    Raises:
        ValueError: an argument holds NaN or an infinity.
    """
    body = json.dumps({"name": name, "arguments": dict(args)}, ensure_ascii=False, allow_nan=False)
    return f"{OPEN}\n{body}\n{CLOSE}"


def describe(name: str, parameters: Sequence[str]) -> str:
    """Return the pattern of a call on one line."""
    args = ", ".join(f'"{parameter}": ...' for parameter in parameters)
    return f'{OPEN}{{"name": "{name}", "arguments": {{{args}}}}}{CLOSE}'


def system(schemas: Sequence[Mapping[str, Any]]) -> str:
    """Return the system prompt that Hermes and Qwen models were trained with."""
    listed = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{listed}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        f"{OPEN}{CLOSE} XML tags:\n"
        f'{OPEN}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{CLOSE}'
    )


HERMES = ActionFormat("hermes", parse, render, describe, system)
"""JSON between `<tool_call>` tags."""
