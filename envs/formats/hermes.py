"""Tool calls as JSON between tags, as Hermes and Qwen models are trained on.

    <tool_call>
    {"name": "cat", "arguments": {"path": "/a/b"}}
    </tool_call>

Any number of calls per action, run in order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from turnwise.envs.calls import Action, ActionFormat, ToolCall, failed
from turnwise.envs.formats.reading import read_calls, skip_space
from turnwise.envs.formats.strict_json import JsonFault, call_fault, decode

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def parse(text: str) -> Action:
    """Return the calls in `text`, strictly.

    Text around the calls is allowed and ignored, and so are calls that are only thought about.
    JSON must be one object of exactly `name` and `arguments`, without duplicate keys, NaN,
    infinities or lone surrogates, and closed by its tag. A closing tag inside a string is text.
    """
    return read_calls(text, _find, _read, code="bad_json", expected=f"expected {OPEN}")


def _find(text: str, at: int) -> int:
    return text.find(OPEN, at)


def _read(text: str, start: int, index: int) -> tuple[list[ToolCall], int]:
    """Read the call whose tag opens at `start`."""
    value, end, fault, why = _decoded(text, skip_space(text, start + len(OPEN)))
    close = text.find(CLOSE, end)
    stop = close + len(CLOSE) if close >= 0 else len(text)
    raw = text[start:stop]
    if why is not None:
        return [failed("bad_json", text, fault, why, raw, index=index)], stop
    return [ToolCall(f"c{index}", value["name"], value["arguments"], raw)], stop


def _decoded(text: str, at: int) -> tuple[Any, int, int, str | None]:
    """Read one call at `at`; return (call, offset after it, offset of the fault, the fault)."""
    try:
        value, end = decode(text, at)
    except JsonFault as fault:
        return None, fault.at, fault.at, str(fault)
    close = skip_space(text, end)
    if not text.startswith(CLOSE, close):
        return None, close, close, f"expected {CLOSE}"
    return value, close, at, call_fault(value, "arguments")


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


HERMES = ActionFormat("hermes", parse, render, describe, system, tags=(OPEN, CLOSE))
"""JSON between `<tool_call>` tags."""
