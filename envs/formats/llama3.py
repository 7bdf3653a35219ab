"""Tool calls as bare JSON objects, as Llama 3.1 and later models are trained on.

    {"name": "cat", "parameters": {"path": "/a/b"}}

Several calls are separated by `;`. The tag `<|python_tag|>` may stand before a call; some models
write `arguments` for `parameters`, or begin with `"type": "function"`.

There is no closing tag. So an object is a call wherever it begins the answer, follows a call or the
tag, or starts with a quoted key: other JSON has no place in an answer. What stands behind a broken
call belongs to it, up to the next tag: it may be the text of a file, and must not be run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from turnwise.envs.calls import Action, ActionFormat, ToolCall, failed
from turnwise.envs.formats.reading import read_calls
from turnwise.envs.formats.strict_json import JsonFault, call_fault, decode

TAG = "<|python_tag|>"

_NEXT = re.compile(r"\s*(?:;\s*(?=\S)|(?=\{))")
_BEGIN = re.compile(r'<\|python_tag\|>|\{(?=\s*")')
_LEAD = re.compile(r"(?:<\|python_tag\|>\s*)?")


def parse(text: str) -> Action:
    """Return the calls in `text`, strictly; text around them is allowed and ignored."""
    expected = 'expected {"name": ..., "parameters": {...}}'
    return read_calls(text, _find, _read, code="bad_json", expected=expected)


def _find(text: str, at: int) -> int:
    if (following := _NEXT.match(text, at)) is not None:
        return following.end()
    match = _BEGIN.search(text, at)
    return match.start() if match else -1


def _read(text: str, start: int, index: int) -> tuple[list[ToolCall], int]:
    """Read the call that begins at `start`."""
    lead = _LEAD.match(text, start)
    body = lead.end() if lead else start
    try:
        call, stop = _call(text, body)
    except JsonFault as fault:
        tag = text.find(TAG, max(fault.at, start + 1))
        stop = tag if tag >= 0 else len(text)
        raw = text[start:stop]
        return [failed("bad_json", text, fault.at, str(fault), raw, index=index)], stop
    return [ToolCall(f"c{index}", call["name"], call["args"], text[start:stop])], stop


def _call(text: str, at: int) -> tuple[dict[str, Any], int]:
    if not text.startswith("{", at):
        raise JsonFault(at, 'expected {"name": ..., "parameters": {...}}')
    value, end = decode(text, at)
    key = "arguments" if "arguments" in value and "parameters" not in value else "parameters"
    if value.get("type", "function") != "function":
        raise JsonFault(at, "expected a key 'type' that holds 'function', or none")
    if (why := call_fault(value, key, also=("type",))) is not None:
        raise JsonFault(at, why)
    return {"name": value["name"], "args": value[key]}, end


def render(name: str, args: Mapping[str, Any]) -> str:
    """Return the call as the chat templates of Llama 3.1 write it.

    Raises:
        ValueError: an argument holds NaN or an infinity.
    """
    call = {"name": name, "parameters": dict(args)}
    return json.dumps(call, ensure_ascii=False, allow_nan=False)


def describe(name: str, parameters: Sequence[str]) -> str:
    """Return the pattern of a call."""
    args = ", ".join(f'"{parameter}": ...' for parameter in parameters)
    return f'{{"name": "{name}", "parameters": {{{args}}}}}'


def system(schemas: Sequence[Mapping[str, Any]]) -> str:
    """Return the system prompt that Llama 3.1 models were trained with."""
    listed = "\n\n".join(json.dumps(schema, ensure_ascii=False, indent=4) for schema in schemas)
    return (
        "You have access to the following functions. To call a function, please respond with JSON "
        'for a function call. Respond in the format {"name": function name, "parameters": '
        "dictionary of argument name and its value}. Do not use variables.\n\n" + listed
    )


LLAMA3 = ActionFormat("llama3", parse, render, describe, system, tags=(TAG,))
"""JSON objects, with or without `<|python_tag|>`."""
