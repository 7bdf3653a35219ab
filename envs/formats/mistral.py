"""Tool calls behind `[TOOL_CALLS]`, as Mistral models are trained on, in both of their forms.

    [TOOL_CALLS]cat[ARGS]{"path": "/a/b"}                                   one tag for each call
    [TOOL_CALLS][{"name": "cat", "arguments": {"path": "/a/b"}}]            before tokenizer v11

The first is what `render` writes. A call may carry an id: `[CALL_ID]...` before `[ARGS]`, or a key
`id`. Behind a call follows another one, or nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from turnwise.envs.calls import Action, ActionFormat, ToolCall, failed
from turnwise.envs.formats.reading import THOUGHT_TAGS, read_calls, skip_space
from turnwise.envs.formats.strict_json import JsonFault, call_fault, decode

TAG, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"

_HEAD = re.compile(r"([\w.\-]+)\s*(?:\[CALL_ID\]\s*[\w\-]*\s*)?(?:\[ARGS\]\s*)?(?=(\{)?)")
_Found = tuple[str, dict[str, Any], int, int]
"""(name, arguments, start, end) of a call."""


def parse(text: str) -> Action:
    """Return the calls in `text`, strictly; text before the first is allowed and ignored."""
    return read_calls(text, _find, _read, code="bad_json", expected=f"expected {TAG}")


def _find(text: str, at: int) -> int:
    return text.find(TAG, at)


def _read(text: str, start: int, index: int) -> tuple[list[ToolCall], int]:
    """Read all calls of one tag; those before a fault stand."""
    calls: list[ToolCall] = []
    at = first = skip_space(text, start + len(TAG))
    try:
        for name, args, begin, at in _calls(text, first):
            calls.append(ToolCall(f"c{index + len(calls)}", name, args, text[begin:at]))
    except JsonFault as fault:
        tag = text.find(TAG, fault.at)
        stop = tag if tag >= 0 else len(text)
        raw, number = text[at if calls else start : stop], index + len(calls)
        calls.append(failed("bad_json", text, fault.at, str(fault), raw, index=number))
        return calls, stop
    return calls, at


def _calls(text: str, at: int) -> Iterator[_Found]:
    return _listed(text, at + 1) if text.startswith("[", at) else _named(text, at)


def _named(text: str, at: int) -> Iterator[_Found]:
    """Yield the call `name[ARGS]{...}`."""
    head = _HEAD.match(text, at)
    if head is None:
        raise JsonFault(at, "expected a tool's name or [")
    if head[2] is None:
        raise JsonFault(head.end(), f"expected {ARGS} and an object")
    args, end = decode(text, head.end())
    _require_end(text, end)
    yield head[1], args, at, end


def _listed(text: str, at: int) -> Iterator[_Found]:
    """Yield the calls of a JSON array, from behind its bracket on."""
    more = True
    while more:
        begin = skip_space(text, at)
        value, end = decode(text, begin)
        if (why := call_fault(value, "arguments", also=("id",))) is not None:
            raise JsonFault(begin, why)
        yield value["name"], value["arguments"], begin, end
        at = skip_space(text, end)
        more = text.startswith(",", at)
        if not more and not text.startswith("]", at):
            raise JsonFault(at, "expected , or ]")
        at += 1
    _require_end(text, at)


def _require_end(text: str, at: int) -> None:
    at = skip_space(text, at)
    if at < len(text) and not text.startswith((TAG, *THOUGHT_TAGS), at):
        raise JsonFault(at, f"expected {TAG} or the end")


def render(name: str, args: Mapping[str, Any]) -> str:
    """Return the call as Mistral's tokenizers write it since their version 11.

    Raises:
        ValueError: an argument holds NaN or an infinity, or the name is none.
    """
    if not re.fullmatch(r"[\w.\-]+", name):
        raise ValueError(f"a name in this format is letters, digits and _ . -, got {name[:40]!r}")
    return f"{TAG}{name}{ARGS}{json.dumps(dict(args), ensure_ascii=False, allow_nan=False)}"


def describe(name: str, parameters: Sequence[str]) -> str:
    """Return the pattern of a call."""
    args = ", ".join(f'"{parameter}": ...' for parameter in parameters)
    return f"{TAG}{name}{ARGS}{{{args}}}"


def system(schemas: Sequence[Mapping[str, Any]]) -> str:
    """Return a system prompt; Mistral's own template lists tools between control tokens."""
    listed = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
    return (
        f"You can call these tools:\n{listed}\n\n"
        f"Write each call as {TAG}tool name{ARGS}" + '{"argument name": value}, and nothing after.'
    )


MISTRAL = ActionFormat("mistral", parse, render, describe, system, tags=(TAG, CALL_ID, ARGS))
"""`[TOOL_CALLS]name[ARGS]{...}`, or a JSON array behind the tag."""
